"""What the operators refuse, for what computes without the kernels."""

import math

import torch
from torch import Tensor

from rmsnorm.library import operators

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_ACCEPTED = {
    part["name"]: part.get("accepted") or part["dtypes"]
    for part in operators()[0]["inputs"] + operators()[0]["attributes"]
}
_BEYOND_FLOAT32 = 2.0**128 - 2.0**103  # the least that rounds to infinity


def check_forward(
    x: Tensor, gamma: Tensor | None, rounding: str, out_dtype: torch.dtype | None
) -> int:
    """Refuses what the kernels would refuse of tensors; returns how many axes a row spans."""
    axes = _check_tensors(x, gamma)
    _check_rounding(rounding)
    if out_dtype not in (None, x.dtype, real_dtype(x)):
        raise ValueError(f"out_dtype: {out_dtype}; expected {_ACCEPTED['out_dtype']}")
    return axes


def check_out(x: Tensor, gamma: Tensor | None, rounding: str, out: Tensor) -> None:
    _check_tensors(x, gamma, out=out)
    _check_rounding(rounding)
    if out.dtype not in (x.dtype, real_dtype(x)):
        raise ValueError(f"out: dtype {out.dtype}; expected {_ACCEPTED['out_dtype']}")


def check_backward(
    dy: Tensor, x: Tensor, gamma: Tensor | None, rstd: Tensor, sums: Tensor | None = None
) -> int:
    """As check_forward."""
    axes = _check_tensors(x, gamma, dy=dy)
    if dy.dtype not in (x.dtype, real_dtype(x)):
        raise ValueError(f"dy: dtype {dy.dtype}; expected {_ACCEPTED['out_dtype']}")
    for name, tensor in {"rstd": rstd, "sums": sums}.items():
        if tensor is None:
            continue
        _check_device(name, tensor, x)
        if tensor.dtype != real_dtype(x):
            raise ValueError(f"{name}: dtype {tensor.dtype}; expected {real_dtype(x)}")
    return axes


def check_numbers(x: Tensor, gamma: Tensor | None, epsilon: float, gamma_offset: float) -> None:
    """What the kernels check when they run, and not the shapes' inference before it."""
    if not 0 <= epsilon < _BEYOND_FLOAT32:
        raise ValueError(f"epsilon: {epsilon:g}; expected {_ACCEPTED['epsilon']} (as float32)")
    if not abs(gamma_offset) < _BEYOND_FLOAT32:
        accepted = _ACCEPTED["gamma_offset"]
        raise ValueError(f"gamma_offset: {gamma_offset:g}; expected {accepted} (as float32)")
    if gamma is None and gamma_offset != 0:
        raise ValueError(f"gamma_offset: {gamma_offset:g} without gamma; expected 0")
    if math.prod(x.shape[x.dim() - (1 if gamma is None else gamma.dim()) :]) == 0:
        raise ValueError(f"x: shape {list(x.shape)} has no element to normalize over")


def check_rstd(rstd: Tensor, x: Tensor, axes: int, name: str = "rstd") -> list[int]:
    """The shape that rstd, or sums, has or, with as many elements, stands for."""
    shape = rstd_shape(x, axes)
    if rstd.numel() != math.prod(shape):
        raise ValueError(f"{name}: shape {list(rstd.shape)}; expected {shape}")
    return shape


def rstd_shape(x: Tensor, axes: int) -> list[int]:
    """Of rstd and of sums, where a row spans `axes`."""
    return [*x.shape[: x.dim() - axes], *[1] * axes]


def real_dtype(x: Tensor) -> torch.dtype:
    """The dtype of rstd, sums and dgamma."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _check_tensors(x: Tensor, gamma: Tensor | None, **like_x: Tensor) -> int:
    for name, tensor in {"x": x, "gamma": gamma, **like_x}.items():
        if tensor is not None and (tensor.is_nested or tensor.layout != torch.strided):
            layout = "nested" if tensor.is_nested else tensor.layout
            raise ValueError(f"{name}: layout {layout}; expected torch.strided")
    if x.dtype not in _DTYPES:
        raise ValueError(f"x: dtype {x.dtype}; expected {_ACCEPTED['x']}")
    if x.dim() == 0:
        raise ValueError("x: 0 dimensions; expected 1 or more")
    for name, tensor in like_x.items():
        if tensor.shape != x.shape:
            raise ValueError(f"{name}: shape {list(tensor.shape)}; expected x's {list(x.shape)}")
        _check_device(name, tensor, x)
    return 1 if gamma is None else _check_gamma(x, gamma)


def _check_gamma(x: Tensor, gamma: Tensor) -> int:
    wide = torch.float64 in (x.dtype, gamma.dtype)
    if gamma.dtype != x.dtype if wide else gamma.dtype not in _DTYPES:
        accepted = _ACCEPTED["gamma"]
        raise ValueError(f"gamma: dtype {gamma.dtype}; expected {accepted}, and x is {x.dtype}")
    _check_device("gamma", gamma, x)
    tail = x.shape[max(x.dim() - gamma.dim(), 0) :]
    if gamma.dim() == 0 or gamma.shape != tail:
        raise ValueError(f"gamma: shape {list(gamma.shape)} is not the tail of x's {list(x.shape)}")
    return gamma.dim()


def _check_device(name: str, tensor: Tensor, x: Tensor) -> None:
    if tensor.device != x.device:
        raise ValueError(f"{name}: device {tensor.device}; expected x's, {x.device}")


def _check_rounding(rounding: str) -> None:
    if rounding not in ("once", "before_gamma"):
        raise ValueError(f"rounding: {rounding}; expected {_ACCEPTED['rounding']}")
