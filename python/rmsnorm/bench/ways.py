"""The ways to normalize rows in PyTorch: ours, and its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import rmsnorm
from rmsnorm.bench.shapes import Shape

EPSILON = 1e-6
COPY, FUSED, INTO, OPERATOR = "copy", "rmsnorm", "rmsnorm, out=", "rmsnorm, operator"
OURS = (FUSED, INTO, OPERATOR)
SMALL, TORCH, COMPILED = "small operators", "F.rms_norm", "torch.compile"


@dataclass(frozen=True)
class Case:
    """The operands of a call; x and gamma want gradients."""

    shape: Shape
    dtype: torch.dtype
    x: Tensor
    gamma: Tensor
    dy: Tensor

    @staticmethod
    def of(shape: Shape, dtype: torch.dtype) -> Case:
        generator = torch.Generator().manual_seed(0)
        # Means other than 0: the terms that a wrong backward leaves out would be too small to show.
        wide = torch.randn(shape.rows, shape.row_stride or shape.n, generator=generator)
        wide = wide.add_(0.5).to(dtype)
        gamma = torch.empty(shape.n).uniform_(0.5, 1.5, generator=generator).to(dtype)
        dy = torch.randn(shape.rows, shape.n, generator=generator).add_(0.5).to(dtype)
        x = wide[:, : shape.n].detach().requires_grad_()
        return Case(shape, dtype, x, gamma.requires_grad_(), dy)


@dataclass(frozen=True)
class Passes:
    """One way's calls.

    Attributes:
        forward: -> y, without gradient.
        both: forward and backward -> dx, dgamma; None: there is no backward.
        tensor: what a call gave as a tensor of PyTorch.
    """

    forward: Callable[[], Any]
    both: Callable[[], tuple[Any, Any]] | None = None
    tensor: Callable[[Any], Tensor] = lambda result: result


def small_operators(x: Tensor, gamma: Tensor) -> Tensor:
    """What the operator replaces: the class of LLaMA and of Hugging Face, step by step."""
    wide = x.float()
    xhat = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPSILON)
    return xhat.type_as(x) * gamma


# A way that PyTorch differentiates: x, gamma -> y.
WAYS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    FUSED: lambda x, gamma: rmsnorm.rms_norm(x, gamma, EPSILON),
    TORCH: lambda x, gamma: torch.nn.functional.rms_norm(x, gamma.shape, gamma, EPSILON),
    SMALL: small_operators,
}


def compiled(
    way: Callable[[Tensor, Tensor], Tensor] = small_operators,
) -> Callable[[Tensor, Tensor], Tensor]:
    """A way by torch.compile, for the shapes, dtypes and threads of now."""
    import torch._inductor.config as inductor

    inductor.compile_threads = 1  # a pool of compilers would go on beside what is timed
    torch.compiler.reset()
    return torch.compile(way, dynamic=False)


def passes_of(way: Callable[[Tensor, Tensor], Tensor], case: Case) -> Passes:
    """The calls of a way on a case."""

    x, gamma = case.x.detach(), case.gamma.detach()

    def forward() -> Tensor:
        return way(x, gamma)

    def both() -> tuple[Tensor, Tensor]:
        dx, dgamma = torch.autograd.grad(way(case.x, case.gamma), (case.x, case.gamma), case.dy)
        return dx, dgamma

    return Passes(forward, both)
