"""Every way on a case: checked against float64, then timed in turn with a copy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

import rmsnorm
from rmsnorm.bench import peers
from rmsnorm.bench.harness import Seconds, interleaved, name_of
from rmsnorm.bench.shapes import Shape
from rmsnorm.bench.ways import (
    COMPILED,
    COPY,
    EPSILON,
    INTO,
    OURS,
    WAYS,
    Case,
    Passes,
    compiled,
    passes_of,
)

FORWARD, BOTH = "forward", "forward + backward"
BOUND = 4.0  # of errors, in units of the dtype's eps: a way above it is wrong and isn't timed


@dataclass
class Result:
    """A pass on a shape, by every way.

    Attributes:
        seconds: by way; those that are right, and the copy.
        errors: by way, the norm of the difference from float64 over the norm of the result, in
            units of the dtype's eps, at most over the results. Rounding a result gives half a unit
            at most; the sums of float32 and other roundings give the rest.
        missing: by way, why it has no time.
    """

    part: str
    shape: Shape
    dtype: str
    seconds: Seconds = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


@dataclass
class Row(Result):
    """One line of the CPU's table."""

    threads: int = 1


Expected = tuple[Tensor, Tensor, Tensor]  # y, dx, dgamma


def expected(case: Case) -> Expected:
    """The formula in float64."""
    x, gamma, dy = (tensor.detach().double() for tensor in (case.x, case.gamma, case.dy))
    rstd = torch.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON)
    xhat, w = x.mul_(rstd), dy * gamma
    dx = (w - xhat * (w * xhat).mean(-1, keepdim=True)) * rstd
    return xhat * gamma, dx, (dy * xhat).sum(0)


def every_way(case: Case, threads: int) -> dict[str, Passes | str]:
    """The calls of all ways on a case; of a way that has none, why."""
    ways: dict[str, Passes | str] = dict(pytorch_ways(case))
    ways[COMPILED] = passes_of(compiled(), case)
    for name, make in peers.PEERS.items():
        try:
            ways[name] = make(case, threads)
        except LookupError as reason:
            ways[name] = str(reason)
    return ways


def pytorch_ways(case: Case) -> dict[str, Passes]:
    """Those that neither compile nor ask for more than PyTorch."""
    return {name: passes_of(way, case) for name, way in WAYS.items()}


def measure(
    case: Case, ways: Mapping[str, Passes | str], right: Expected, repeats: int
) -> list[Row]:
    """Times of a forward pass without gradient, and of a forward pass with its backward pass.

    `copy` moves the bytes that the pass has to move into memory that was written before. Forward
    reads x and writes y, as much as copying x. Backward reads dy and x and writes dx; both passes
    together are as much as copying two and a half times x. `rmsnorm, out=` and ONNX Runtime write
    to such memory too; the others allocate their results, as a model does.
    """
    x, gamma = case.x.detach(), case.gamma.detach()
    y = torch.zeros_like(case.dy)
    more_x, more_y = (torch.empty(y.numel() * 5 // 2, dtype=case.dtype).uniform_() for _ in "xy")
    into = Passes(lambda: rmsnorm.rms_norm(x, gamma, EPSILON, out=y))
    copies: dict[str, Callable[[], object]] = {
        FORWARD: lambda: y.copy_(x),
        BOTH: lambda: more_y.copy_(more_x),
    }
    rows = []
    for part, copy in copies.items():
        row = Row(part, case.shape, name_of(case.dtype), threads=torch.get_num_threads())
        candidates = {**ways, INTO: into} if part == FORWARD else ways
        row.seconds = interleaved({COPY: copy, **right_calls(row, candidates, right)}, repeats)
        rows.append(row)
    return rows


def pytorch(shape: Shape, dtype: torch.dtype, repeats: int) -> dict[str, Seconds]:
    """The times of pytorch_ways(), by pass."""
    case = Case.of(shape, dtype)
    rows = measure(case, pytorch_ways(case), expected(case), repeats)
    return {row.part: row.seconds for row in rows}


def right_calls(
    row: Result, ways: Mapping[str, Passes | str], right: Expected
) -> dict[str, Callable[[], object]]:
    """The calls of the ways whose results are right; notes the errors of all in `row`.

    Raises:
        Exception: what a call of ours raised.
    """
    found: dict[str, Callable[[], object]] = {}
    for name, passes in ways.items():
        if isinstance(passes, str):
            row.missing[name] = passes
            continue
        call, wanted = (
            (passes.forward, right[:1]) if row.part == FORWARD else (passes.both, right[1:])
        )
        if call is None:
            row.missing[name] = "no backward"
            continue
        try:
            results = (call(),) if row.part == FORWARD else call()
        except Exception as error:
            if name in OURS:
                raise
            row.missing[name] = failure(error)  # such as torch.compile without a compiler
            continue
        row.errors[name] = max(
            _error(passes.tensor(got), true, row) for got, true in zip(results, wanted, strict=True)
        )
        if row.errors[name] <= BOUND:
            found[name] = call
        else:
            row.missing[name] = "wrong"
    return found


def failure(error: Exception) -> str:
    """Why a way has no time, in one line."""
    lines = str(error).splitlines()
    return f"failed: {lines[0] if lines else type(error).__name__}"


def _error(got: Tensor, true: Tensor, row: Result) -> float:
    eps = torch.finfo(getattr(torch, row.dtype)).eps
    if true.dim() == 1:  # dgamma: a plain sum of the rows in float32 strays like a random walk
        eps += math.sqrt(row.shape.rows) * torch.finfo(torch.float32).eps
    return float((got.double() - true).norm() / true.norm()) / eps
