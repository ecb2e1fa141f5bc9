"""Each norm of a model at the inputs that it really gets: its own results beside the fused ones."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import rmsnorm


@dataclass
class Call:
    """What a norm was called with, and what it made of that.

    Attributes:
        reached: whether the model ran the norm; otherwise x and dy are random.
        results: y, dx and, for a norm with a gamma that learns, dgamma.
    """

    x: Tensor
    dy: Tensor | None
    reached: bool
    results: list[Tensor] | None = None


@contextmanager
def recorded(modules: dict[str, torch.nn.Module]) -> Iterator[dict[str, Call]]:
    """Records the first call of each module with one tensor, and the gradient of its result."""
    calls: dict[str, Call] = {}

    def record(name: str) -> Any:
        def hook(module: torch.nn.Module, args: Any, kwargs: Any, y: Any) -> None:
            given = [*args, *kwargs.values()]
            if name in calls or len(given) != 1 or not isinstance(y, Tensor):
                return
            calls[name] = Call(given[0].detach().clone(), None, reached=True)
            if y.requires_grad:
                y.register_hook(lambda dy: setattr(calls[name], "dy", dy.detach().clone()))

        return hook

    handles = [
        module.register_forward_hook(record(name), with_kwargs=True)
        for name, module in modules.items()
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def synthetic_call(module: torch.nn.Module, dtype: torch.dtype) -> Call:
    """Rows for a norm that the model didn't run."""
    shape = next((p.shape for p in module.parameters()), (128,))
    generator = torch.Generator().manual_seed(0)
    x, dy = (torch.randn(6, *shape, generator=generator).to(dtype) for _ in range(2))
    return Call(x, dy, reached=False)


def call_alone(module: torch.nn.Module, call: Call) -> list[Tensor]:
    """y, dx and the gradient of the parameters for one call."""
    x = call.x.clone().requires_grad_()
    with torch.enable_grad():
        y = module(x)
        dy = torch.ones_like(y) if call.dy is None else call.dy.to(y.dtype)
        inputs = [x, *(p for p in module.parameters() if p.requires_grad)]
        return [y.detach(), *torch.autograd.grad(y, inputs, dy)]


def worst_excess(
    norm: rmsnorm.Replaced, module: torch.nn.Module, call: Call, fused: list[Tensor]
) -> float:
    """The largest difference of a value from the own norm's, in units of its bound: at most 1.

    In float32 either norm is within 2^-18 of the formula. In 16 bits, of unit roundoff u = eps / 2:
    y: the two errors of 2^-18 may flip the rounding of x * rstd and then that of y, by eps each.
    dx = (w - xhat * mean(w * xhat)) * rstd: the own class rounds w, the mean takes that over, and
        both round the result: 4 u of the sum of the terms' sizes.
    dgamma: the own class rounds xhat and each product dy * xhat, and both round the sum: 4 u of the
        sum of the products' sizes.
    """
    assert call.results is not None
    match = next(
        (
            m
            for m in norm.matches
            if m.x_dtype == call.x.dtype
            and (m.form.gamma is None or m.gamma_dtype == getattr(module, m.form.gamma).dtype)
        ),
        None,
    )
    if match is None:  # its own forward runs: every bit is the same
        same = all(map(torch.equal, fused, call.results))
        return 0.0 if same else math.inf
    gamma = None if match.form.gamma is None else getattr(module, match.form.gamma).detach()
    coarse = [call.x.dtype, *([gamma.dtype] if gamma is not None else [])]
    eps = max(torch.finfo(dtype).eps for dtype in coarse)
    bound = max(2 * eps, 2.0**-17)

    x, y = call.x.double(), call.results[0].double()
    dy = torch.ones_like(y) if call.dy is None else call.dy.double()
    axes = tuple(range(-(1 if gamma is None else gamma.dim()), 0))
    scale = 1.0 if gamma is None else match.form.gamma_offset + gamma.double()
    rstd = (x.square().mean(axes, keepdim=True) + norm.epsilon).rsqrt()
    xhat, w = x * rstd, dy * scale
    dx_terms = (w.abs() + xhat.abs() * (w * xhat).abs().mean(axes, keepdim=True)) * rstd
    sizes = [y.abs(), dx_terms]
    if gamma is not None:
        sizes.append((dy * xhat).abs().flatten(0, -gamma.dim() - 1).sum(0))
    worst = 0.0
    for got, own, size in zip(fused, call.results, sizes[: len(fused)], strict=True):
        if not own.numel():
            continue
        difference = (got.double() - own.double()).abs()
        allowed = bound * size + torch.finfo(own.dtype).smallest_normal
        worst = max(worst, float((difference / allowed).nan_to_num(math.inf).max()))
    return worst
