"""The ways to normalize rows on a GPU: ours, PyTorch's, and those of packages that are there."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import rmsnorm
from rmsnorm.bench.cuda.rotation import Slot
from rmsnorm.bench.peers import LIGER, QUACK
from rmsnorm.bench.ways import COMPILED, EPSILON, FUSED, TORCH, WAYS, compiled

Way = Callable[[Tensor, Tensor], Tensor]  # x, gamma -> y


def formula(x: Tensor, gamma: Tensor) -> Tensor:
    """The operator with one rounding, which y's dtype needs where gamma is wider than x."""
    wide = x.float()
    rstd = torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPSILON)
    return (wide * rstd * gamma.float()).to(x.dtype)


def compiled_formula() -> Way:
    """By torch.compile, for the shapes and dtypes of now."""
    import torch._functorch.config as functorch

    functorch.donated_buffer = False  # what is donated can't be read by a second backward pass
    return compiled(formula)


def liger() -> Way:
    """Liger's function, into memory of its own: in place it would overwrite dy."""
    apply = _module("liger_kernel.ops.rms_norm").LigerRMSNormFunction.apply
    return lambda x, gamma: apply(x, gamma, EPSILON, 0.0, "llama", False)


def quack() -> Way:
    """Quack's function."""
    rms_norm = _module("quack.rmsnorm").rmsnorm
    return lambda x, gamma: rms_norm(x, gamma, eps=EPSILON)


# Each makes a way, or says by LookupError why it is not there.
PEERS: dict[str, Callable[[], Way]] = {
    FUSED: lambda: WAYS[FUSED],
    TORCH: lambda: WAYS[TORCH],
    COMPILED: compiled_formula,
    LIGER: liger,
    QUACK: quack,
}


def forward_of(way: Way, slot: Slot) -> Callable[[], Tensor]:
    """The call without gradient."""
    x, gamma = slot.x.detach(), slot.gamma.detach()
    return lambda: way(x, gamma)


def backward_of(way: Way, slot: Slot) -> Callable[[], tuple[Tensor, ...]]:
    """The backward pass alone -> dx, dgamma, of a forward pass that is done here."""
    y = way(slot.x, slot.gamma)
    inputs = (slot.x, slot.gamma)
    return lambda: torch.autograd.grad(y, inputs, slot.dy, retain_graph=True)


def operator_of(slot: Slot) -> Callable[[], tuple[Tensor, ...]]:
    """Our operator's own backward call, whose dgamma is float32 and not rounded to gamma's."""
    x, gamma = slot.x.detach(), slot.gamma.detach()
    _, rstd = rmsnorm.npu_rms_norm(x, gamma, EPSILON)
    return lambda: rmsnorm.npu_rms_norm_backward(slot.dy, x, gamma, rstd)


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.partition(".")[0]:  # it is there and lacks something itself
            raise
        raise LookupError("not installed") from None
