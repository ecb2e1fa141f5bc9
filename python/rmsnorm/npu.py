"""An Ascend NPU computes by torch_npu's own operators; another vendor's device by the composite.

Source: Ascend/op-plugin, op_plugin/config/derivatives.yaml; the same since PyTorch 1.11:
    npu_rms_norm(Tensor self, Tensor gamma, float epsilon=1e-06) -> (Tensor, Tensor)
    npu_rms_norm_backward(Tensor dy, Tensor self, Tensor gamma, Tensor rstd) -> (Tensor, Tensor)
and op_plugin/ops/aclops/RmsNorm{,Backward}KernelNpu.cpp: rstd and dgamma are float32.
"""

from typing import Any

import torch
from torch import Tensor

from rmsnorm import composite
from rmsnorm.checks import check_backward, check_forward, check_numbers, check_rstd

# What the operator page promises. The bytes, of gamma, are those of Atlas inference products.
_MOST_AXES = 8
_LEAST_BYTES = 32


def operator(name: str) -> Any:
    """torch.ops.npu's, or None. Looked up anew: torch_npu may be imported after rmsnorm."""
    return getattr(torch.ops.npu, name, None)


def rms_norm(
    x: Tensor,
    gamma: Tensor | None,
    epsilon: float = 1e-6,
    gamma_offset: float = 0.0,
    rounding: str = "once",
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """(y, rstd) of torch.ops.rmsnorm.rms_norm by torch_npu's npu_rms_norm.

    That wants gamma in x's dtype, gives y in it and rounds once. So that roundings are where the
    kernels have them, it gets
        without gamma              ones
        rounding "before_gamma"    ones, and y is multiplied by gamma_offset + gamma after it
        another dtype of gamma     x and gamma_offset + gamma in float32, and y is rounded after it
        or y, or a gamma_offset
    The sums are its own, also of rows whose mean square leaves float32's range.

    By the composite go float64, a row of less than 32 bytes, more than 8 axes, no rows, and devices
    without the operator.
    """
    axes = check_forward(x, gamma, rounding, out_dtype)
    call = operator("npu_rms_norm")
    if call is None or not _takes(x, axes):
        return composite.rms_norm(x, gamma, epsilon, gamma_offset, rounding, out_dtype)
    check_numbers(x, gamma, epsilon, gamma_offset)
    y_dtype = out_dtype or x.dtype
    if rounding == "before_gamma" and x.dtype != torch.float32:
        y, rstd = call(x, _common(x, axes, None, 0.0, x.dtype)[1], epsilon)
        if gamma is not None:
            y = y.float() * (gamma.float() + gamma_offset)
    else:
        dtype, scale = _common(x, axes, gamma, gamma_offset, y_dtype)
        y, rstd = call(x.to(dtype), scale, epsilon)
    return y.to(y_dtype).contiguous(), rstd


def rms_norm_backward(
    dy: Tensor,
    x: Tensor,
    gamma: Tensor | None,
    rstd: Tensor,
    gamma_offset: float = 0.0,
    wanted: tuple[bool, bool] = (True, True),
) -> tuple[Tensor, Tensor]:
    """(dx, dgamma) of torch.ops.rmsnorm.rms_norm_backward by torch_npu's npu_rms_norm_backward.

    In float32, with dx rounded after it, where dtypes differ or there is a gamma_offset. By the
    composite goes what does so in rms_norm.
    """
    axes = check_backward(dy, x, gamma, rstd)
    call = operator("npu_rms_norm_backward")
    if call is None or not _takes(x, axes):
        return composite.rms_norm_backward(dy, x, gamma, rstd, gamma_offset, wanted)
    check_numbers(x, gamma, 0.0, gamma_offset)
    dtype, scale = _common(x, axes, gamma, gamma_offset, dy.dtype)
    rows = rstd.reshape(check_rstd(rstd, x, axes))
    dx, dgamma = call(dy.to(dtype), x.to(dtype), scale, rows)
    return (
        dx.to(x.dtype).contiguous() if wanted[0] else x.new_empty([0]),
        dgamma.contiguous() if wanted[1] else rstd.new_empty([0]),
    )


def _takes(x: Tensor, axes: int) -> bool:
    """Whether torch_npu's operators compute rows of this shape and dtype."""
    n = x.shape[x.dim() - axes :].numel()
    return (
        x.device.type == "npu"
        and x.dtype != torch.float64
        and x.dim() <= _MOST_AXES
        and x.numel() > 0
        and n * x.element_size() >= _LEAST_BYTES
    )


def _common(
    x: Tensor, axes: int, gamma: Tensor | None, gamma_offset: float, other: torch.dtype
) -> tuple[torch.dtype, Tensor]:
    """The dtype, x's or float32, that holds x, gamma_offset + gamma and other; the sum in it."""
    if gamma is None:
        dtype = x.dtype if other == x.dtype else torch.float32
        return dtype, x.new_ones(x.shape[x.dim() - axes :], dtype=dtype)
    same = gamma.dtype == other == x.dtype and gamma_offset == 0
    dtype = x.dtype if same else torch.float32
    return dtype, gamma if same else gamma.to(dtype) + gamma_offset


_library = torch.library.Library("rmsnorm", "IMPL")
for _function in (rms_norm, composite.rms_norm_out, rms_norm_backward):
    _library.impl(_function.__name__, _function, "PrivateUse1")
