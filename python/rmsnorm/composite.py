"""The operators as PyTorch's own: what computes on every device that has no kernels of ours."""

import math

import torch
from torch import Tensor

from rmsnorm.checks import (
    check_backward,
    check_forward,
    check_numbers,
    check_out,
    check_rstd,
    real_dtype,
)

LEAST_IN_RANGE = 2.0**-90  # of a mean square in float32, as of the kernels
# Where the mean square leaves float32's range, x times this, or divided by it, has one inside.
_SCALE = 2.0**88


def rms_norm(
    x: Tensor,
    gamma: Tensor | None,
    epsilon: float = 1e-6,
    gamma_offset: float = 0.0,
    rounding: str = "once",
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """(y, rstd) of torch.ops.rmsnorm.rms_norm.

    Computes in float32, for float64 in float64, and rounds where the kernels do. The order of the
    sums is the device's own, so equal bits are not promised. Has no gradient of its own: the
    operators of torch.ops.rmsnorm have.

    Raises:
        ValueError: as the kernels do.

    Cost: in eager mode about ten passes over x, and up to three float32 copies of it at a time.
    """
    axes = check_forward(x, gamma, rounding, out_dtype)
    check_numbers(x, gamma, epsilon, gamma_offset)
    wide = x.to(real_dtype(x))
    rstd = _rstd(wide, axes, epsilon, may_leave_range=x.dtype in (torch.float32, torch.bfloat16))
    y = wide * rstd
    if rounding == "before_gamma":
        y = y.to(x.dtype).to(rstd.dtype)
    if gamma is not None:
        y = y * _scale(gamma, gamma_offset, rstd.dtype)
    return y.to(out_dtype or x.dtype).contiguous(), rstd.contiguous()


def rms_norm_out(
    x: Tensor,
    gamma: Tensor | None,
    epsilon: float = 1e-6,
    gamma_offset: float = 0.0,
    rounding: str = "once",
    *,
    out: Tensor,
) -> None:
    """The y of the device's own rms_norm, complete before out is written: out may overlap x."""
    check_out(x, gamma, rounding, out)
    y, _ = torch.ops.rmsnorm.rms_norm(x, gamma, epsilon, gamma_offset, rounding, out.dtype)
    out.copy_(y)


def rms_norm_backward(
    dy: Tensor,
    x: Tensor,
    gamma: Tensor | None,
    rstd: Tensor,
    gamma_offset: float = 0.0,
    wanted: tuple[bool, bool] = (True, True),
) -> tuple[Tensor, Tensor]:
    """(dx, dgamma) of torch.ops.rmsnorm.rms_norm_backward; what isn't wanted has shape [0]."""
    axes = check_backward(dy, x, gamma, rstd)
    return _backward(dy, x, gamma, rstd, axes, None, gamma_offset, wanted)


def rms_norm_row_sums(
    dy: Tensor, x: Tensor, gamma: Tensor | None, rstd: Tensor, gamma_offset: float = 0.0
) -> Tensor:
    """The sums of torch.ops.rmsnorm.rms_norm_row_sums, each in the device's own order."""
    axes = check_backward(dy, x, gamma, rstd)
    check_numbers(x, gamma, 0.0, gamma_offset)
    xhat = x.to(rstd.dtype) * rstd.reshape(check_rstd(rstd, x, axes))
    w = dy if gamma is None else dy * _scale(gamma, gamma_offset, rstd.dtype)
    return (w * xhat).sum(list(range(x.dim() - axes, x.dim())), keepdim=True).contiguous()


def rms_norm_backward_from_sums(
    dy: Tensor,
    x: Tensor,
    gamma: Tensor | None,
    rstd: Tensor,
    sums: Tensor,
    n: int,
    gamma_offset: float = 0.0,
    wanted: tuple[bool, bool] = (True, True),
) -> tuple[Tensor, Tensor]:
    """(dx, dgamma) of torch.ops.rmsnorm.rms_norm_backward_from_sums."""
    axes = check_backward(dy, x, gamma, rstd, sums)
    least = math.prod(x.shape[x.dim() - axes :])
    if n < least:
        raise ValueError(f"n: {n}; expected {least} or more, the elements of a whole row")
    c = sums.reshape(check_rstd(sums, x, axes, "sums")) / n
    return _backward(dy, x, gamma, rstd, axes, c, gamma_offset, wanted)


def _backward(
    dy: Tensor,
    x: Tensor,
    gamma: Tensor | None,
    rstd: Tensor,
    axes: int,
    c: Tensor | None,  # the mean of w * xhat over whole rows; None: x's are whole
    gamma_offset: float,
    wanted: tuple[bool, bool],
) -> tuple[Tensor, Tensor]:
    check_numbers(x, gamma, 0.0, gamma_offset)
    real, leading = rstd.dtype, x.dim() - axes
    dx, dgamma = x.new_empty([0]), x.new_empty([0], dtype=real)
    rstd = rstd.reshape(check_rstd(rstd, x, axes))
    dy = dy.to(real)
    xhat = x.to(real) * rstd
    if wanted[0]:
        w = dy if gamma is None else dy * _scale(gamma, gamma_offset, real)
        if c is None:
            c = (w * xhat).mean(list(range(leading, x.dim())), keepdim=True)
        dx = ((w - xhat * c) * rstd).to(x.dtype).contiguous()
    if wanted[1]:
        products = dy * xhat
        dgamma = products.sum(list(range(leading))) if leading else products
    return dx, dgamma.contiguous()


def _rstd(x: Tensor, axes: int, epsilon: float, *, may_leave_range: bool) -> Tensor:
    """In x's dtype; may_leave_range: whether the squares of x may, where that is float32."""
    rows = list(range(x.dim() - axes, x.dim()))
    rounded_epsilon = x.new_full([], epsilon)
    t = x.square().mean(rows, keepdim=True) + rounded_epsilon
    if not may_leave_range:
        return t.sqrt().reciprocal()
    one = torch.ones_like(t)
    big, small = t == float("inf"), t < LEAST_IN_RANGE
    scale = torch.where(big, one / _SCALE, torch.where(small, one * _SCALE, one))
    t = (x * scale).square().mean(rows, keepdim=True) + rounded_epsilon * scale * scale
    return t.sqrt().reciprocal() * scale


def _scale(gamma: Tensor, gamma_offset: float, dtype: torch.dtype) -> Tensor:
    return gamma.to(dtype) + gamma_offset


# For every kind of tensor that has no kernel of its own; the nested ones are refused in words.
_library = torch.library.Library("rmsnorm", "IMPL")
for _function in (
    rms_norm,
    rms_norm_out,
    rms_norm_backward,
    rms_norm_row_sums,
    rms_norm_backward_from_sums,
):
    for _key in ("CompositeExplicitAutograd", "NestedTensorCPU", "NestedTensorCUDA"):
        _library.impl(_function.__name__, _function, _key)
