"""Every way on a case: checked against float64, then timed in turn with a copy of the same bytes."""

from __future__ import annotations

from collections.abc import Callable
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
    FUSED,
    INTO,
    WAYS,
    Case,
    Passes,
    compiled,
    passes_of,
)

FORWARD, BOTH = "forward", "forward + backward"
BOUND = 4.0  # of errors, in units of the dtype's eps: a way above it is wrong and isn't timed


@dataclass
class Row:
    """One line of the table: a pass on a shape.

    Attributes:
        seconds: by way; those that are right, and the copy.
        errors: by way, the norm of the difference from float64 over the norm of the result, in
            units of the dtype's eps. Rounding the result gives half a unit at most; the sums of
            float32 and a second rounding give the rest.
        missing: by way, why it has no time.
    """

    part: str
    threads: int
    shape: Shape
    dtype: str
    seconds: Seconds = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


Expected = tuple[Tensor, Tensor, Tensor]  # y, dx, dgamma


def expected(case: Case) -> Expected:
    """The formula in float64."""
    x, gamma, dy = (tensor.detach().double() for tensor in (case.x, case.gamma, case.dy))
    rstd = torch.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON)
    xhat, w = x.mul_(rstd), dy * gamma
    dx = (w - xhat * (w * xhat).mean(-1, keepdim=True)) * rstd
    return xhat * gamma, dx, (dy * xhat).sum(0)


def measure(case: Case, right: Expected, threads: int, repeats: int) -> list[Row]:
    """Times of a forward pass without gradient, and of a forward pass with its backward pass.

    `copy` moves the bytes that the pass has to move into memory that was written before. Forward
    reads x and writes y, as much as copying x. Backward reads dy and x and writes dx; both passes
    together are as much as copying two and a half times x. `rmsnorm, out=` and ONNX Runtime write
    to such memory too; the others allocate their results, as a model does.
    """
    ways = {name: passes_of(way, case) for name, way in WAYS.items()}
    ways[COMPILED] = passes_of(compiled(), case)
    missing = {}
    for name, make in peers.PEERS.items():
        try:
            ways[name] = make(case, threads)
        except LookupError as reason:
            missing[name] = str(reason)
    forward, both = (
        Row(part, threads, case.shape, name_of(case.dtype), missing=dict(missing))
        for part in (FORWARD, BOTH)
    )
    y = torch.zeros_like(case.dy)
    x = case.x.detach()

    def into() -> Tensor:
        return rmsnorm.rms_norm(x, case.gamma.detach(), EPSILON, out=y)

    calls: dict[str, Callable[[], object]] = {COPY: lambda: y.copy_(x)}
    calls |= _right_calls(forward, {**ways, INTO: Passes(into)}, right)
    forward.seconds = interleaved(calls, repeats)
    more_x, more_y = (torch.zeros(y.numel() * 5 // 2, dtype=case.dtype) for _ in range(2))
    calls = {COPY: lambda: more_y.copy_(more_x), **_right_calls(both, ways, right)}
    both.seconds = interleaved(calls, repeats)
    return [forward, both]


def _right_calls(
    row: Row, ways: dict[str, Passes], right: Expected
) -> dict[str, Callable[[], object]]:
    """The calls of the ways whose results are right; notes the errors of all in `row`."""
    found: dict[str, Callable[[], object]] = {}
    for name, passes in ways.items():
        call: Callable[[], object] | None
        if row.part == FORWARD:
            call, results, wanted = passes.forward, (passes.forward(),), right[:1]
        elif passes.both is not None:
            call, results, wanted = passes.both, passes.both(), right[1:]
        else:
            row.missing[name] = "no backward"
            continue
        eps = torch.finfo(getattr(torch, row.dtype)).eps
        row.errors[name] = max(
            float((passes.tensor(got).double() - true).norm() / true.norm()) / eps
            for got, true in zip(results, wanted, strict=True)
        )
        if row.errors[name] <= BOUND:
            found[name] = call
        else:
            row.missing[name] = "wrong"
    return found


def of(shape: Shape, dtype: torch.dtype, repeats: int) -> dict[str, Seconds]:
    """measure() with the threads of now, by pass."""
    case = Case.of(shape, dtype)
    rows = measure(case, expected(case), torch.get_num_threads(), repeats)
    return {row.part: row.seconds for row in rows}
