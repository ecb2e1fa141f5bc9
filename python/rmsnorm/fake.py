"""What the operators return, without computing it: for torch.compile, export and meta tensors."""

import functools
from typing import Any

import torch
from torch import Tensor

from rmsnorm.checks import check_backward, check_forward, check_out, real_dtype, rstd_shape

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
    axes = check_forward(x, gamma, rounding, out_dtype)
    y = x.new_empty(x.shape, dtype=out_dtype or x.dtype)
    return y, _per_row(x, axes)


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
    check_out(x, gamma, rounding, out)


@register("rmsnorm::rms_norm_backward")
def _rms_norm_backward(
    dy: Tensor,
    x: Tensor,
    gamma: Tensor | None,
    rstd: Tensor,
    gamma_offset: float = 0.0,
    wanted: tuple[bool, bool] = (True, True),
) -> tuple[Tensor, Tensor]:
    return _gradients(x, check_backward(dy, x, gamma, rstd), wanted)


@register("rmsnorm::rms_norm_row_sums")
def _rms_norm_row_sums(
    dy: Tensor, x: Tensor, gamma: Tensor | None, rstd: Tensor, gamma_offset: float = 0.0
) -> Tensor:
    return _per_row(x, check_backward(dy, x, gamma, rstd))


@register("rmsnorm::rms_norm_backward_from_sums")
def _rms_norm_backward_from_sums(
    dy: Tensor,
    x: Tensor,
    gamma: Tensor | None,
    rstd: Tensor,
    sums: Tensor,
    n: int,
    gamma_offset: float = 0.0,
    wanted: tuple[bool, bool] = (True, True),
) -> tuple[Tensor, Tensor]:
    return _gradients(x, check_backward(dy, x, gamma, rstd, sums), wanted)


def _per_row(x: Tensor, axes: int) -> Tensor:
    return x.new_empty(rstd_shape(x, axes), dtype=real_dtype(x))


def _gradients(x: Tensor, axes: int, wanted: tuple[bool, bool]) -> tuple[Tensor, Tensor]:
    dx = x.new_empty(x.shape if wanted[0] else [0])
    dgamma = x.new_empty(x.shape[x.dim() - axes :] if wanted[1] else [0], dtype=real_dtype(x))
    return dx, dgamma
