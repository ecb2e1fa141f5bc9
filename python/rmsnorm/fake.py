"""What the operators return, without computing it: for torch.compile, export and meta tensors."""

import functools
from typing import Any

import torch
from torch import Tensor

from rmsnorm.library import operators

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_ACCEPTED = operators()[0]["inputs"][0]["dtypes"]  # x's, in words

register: Any
if hasattr(torch.library, "register_fake"):
    register = torch.library.register_fake
elif hasattr(torch.library, "impl_abstract"):  # before 2.4
    register = torch.library.impl_abstract
else:  # 2.1, which computes fake tensors as tensors of the meta device
    meta = torch.library.Library("rmsnorm", "IMPL", "Meta")
    register = functools.partial(torch.library.impl, meta)


@register("rmsnorm::rms_norm")
def _rms_norm(
    x: Tensor,
    gamma: Tensor | None,
    epsilon: float = 1e-6,
    gamma_offset: float = 0.0,
    rounding: str = "once",
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    axes = _check(x, gamma)
    _check_rounding(rounding)
    _expect(out_dtype in (None, x.dtype, _real(x)), f"out_dtype: {out_dtype}; expected x's")
    y = x.new_empty(x.shape, dtype=out_dtype or x.dtype)
    rstd = x.new_empty([*x.shape[: x.dim() - axes], *[1] * axes], dtype=_real(x))
    return y, rstd


@register("rmsnorm::rms_norm_out")
def _rms_norm_out(
    x: Tensor,
    gamma: Tensor | None,
    epsilon: float = 1e-6,
    gamma_offset: float = 0.0,
    rounding: str = "once",
    *,
    out: Tensor,
) -> None:
    _check(x, gamma, out=out)
    _check_rounding(rounding)
    _expect(out.dtype in (x.dtype, _real(x)), f"out: dtype {out.dtype}; expected x's")


@register("rmsnorm::rms_norm_backward")
def _rms_norm_backward(
    dy: Tensor,
    x: Tensor,
    gamma: Tensor | None,
    rstd: Tensor,
    gamma_offset: float = 0.0,
    wanted: tuple[bool, bool] = (True, True),
) -> tuple[Tensor, Tensor]:
    axes = _check(x, gamma, dy=dy)
    _expect(dy.dtype in (x.dtype, _real(x)), f"dy: dtype {dy.dtype}; expected x's or float32")
    _expect_device("rstd", rstd, x)
    _expect(rstd.dtype == _real(x), f"rstd: dtype {rstd.dtype}; expected {_real(x)}")
    dx = x.new_empty(x.shape if wanted[0] else [0])
    dgamma = x.new_empty(x.shape[x.dim() - axes :] if wanted[1] else [0], dtype=_real(x))
    return dx, dgamma


def _check(x: Tensor, gamma: Tensor | None, **like_x: Tensor) -> int:
    """Refuses what the kernels would refuse of tensors; returns how many axes a row spans."""
    _expect(x.dtype in _DTYPES, f"x: dtype {x.dtype}; expected {_ACCEPTED}")
    _expect(x.dim() > 0, "x: 0 dimensions; expected 1 or more")
    for name, tensor in like_x.items():
        _expect(
            tensor.shape == x.shape, f"{name}: shape {list(tensor.shape)}; expected {list(x.shape)}"
        )
        _expect_device(name, tensor, x)
    if gamma is None:
        return 1
    wide = torch.float64 in (x.dtype, gamma.dtype)
    _expect(
        gamma.dtype == x.dtype if wide else gamma.dtype in _DTYPES,
        f"gamma: dtype {gamma.dtype}; expected {_ACCEPTED}, and x is {x.dtype}",
    )
    _expect_device("gamma", gamma, x)
    tail = list(x.shape[max(x.dim() - gamma.dim(), 0) :])
    _expect(
        gamma.dim() > 0 and list(gamma.shape) == tail,
        f"gamma: shape {list(gamma.shape)} is not the tail of x's {list(x.shape)}",
    )
    return gamma.dim()


def _expect_device(name: str, tensor: Tensor, x: Tensor) -> None:
    _expect(tensor.device == x.device, f"{name}: device {tensor.device}; expected x's, {x.device}")


def _real(x: Tensor) -> torch.dtype:
    """The dtype of rstd and dgamma."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _check_rounding(rounding: str) -> None:
    accepted = rounding in ("once", "before_gamma")
    _expect(accepted, f"rounding: {rounding}; expected once or before_gamma")


def _expect(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)
