"""The operators as functions of tensors."""

import torch
from torch import Tensor

from rmsnorm import library
from rmsnorm.versions import is_compiling, load_operators

library.check_arithmetic()
load_operators()

# All but call and compiled register themselves.
from rmsnorm import batching, call, compiled, composite, fake, npu  # noqa: E402, F401

_rms_norm = torch.ops.rmsnorm.rms_norm.default
_rms_norm_out = torch.ops.rmsnorm.rms_norm_out.default
_rms_norm_backward = torch.ops.rmsnorm.rms_norm_backward.default


def rms_norm(
    x: Tensor,
    gamma: Tensor | None = None,
    epsilon: float = 1e-6,
    *,
    gamma_offset: float = 0.0,
    rounding: str = "once",
    out_dtype: torch.dtype | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Divide x by its root mean square over the trailing axes that gamma spans, scale by gamma.

    Args:
        x: [..., *gamma.shape], 1 or more axes; float32, float16 or bfloat16; any strides, any
            device. float64 works where all tensors are, in plain loops: to check gradients with.
        gamma: the last axes of x; any of the three dtypes; on x's device. None scales by 1, over
            the last axis.
        epsilon: finite, >= 0; added to the mean square, so in units of x squared.
        gamma_offset: added to gamma; 1 for models that store the weight around zero (Gemma).
        rounding: where 16-bit results are rounded: "once", at the end, or "before_gamma": x * rstd
            is rounded to x's dtype and then multiplied by gamma, as LLaMA's class does.
        out_dtype: x's dtype or float32; None: x's.
        out: where to write y: x's shape; x's dtype or float32; x itself works in place. Has no
            gradient.

    Returns:
        y: shape of x; dtype of x, or out_dtype; `out` where it is given. Under CUDA's autocast
            float32, where torch.rms_norm gives that.

    Raises:
        ValueError: a shape, dtype, device or number breaks the rules above; the text names it and
            its value.
        RuntimeError, NotImplementedError: a gradient or a tangent is asked for through out.

    Bits: the same on every CPU, GPU of NVIDIA's, thread count and batch split (docs/numerics.md).
        Not promised on other devices: an Ascend NPU computes by torch_npu's own operators, others
        by a composite of PyTorch's.
    Cost: reads x once from memory, writes y and rstd once; allocates y and rstd, and a copy of x
        only where its rows are not packed or not evenly spaced.
    Source: Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4; epsilon as in LLaMA.

    >>> rms_norm(torch.tensor([3.0, 4.0]), torch.ones(2), epsilon=0.0)
    tensor([0.8485, 1.1314])
    """
    if out is None:
        if is_compiling():  # which sees through torch.ops, and not through call
            return compiled.rms_norm(x, gamma, epsilon, gamma_offset, rounding, out_dtype)[0]
        y = call.rms_norm(x, gamma, epsilon, gamma_offset, rounding, out_dtype)
        if y is not NotImplemented:
            return y
        return _rms_norm(x, gamma, epsilon, gamma_offset, rounding, out_dtype)[0]
    if out_dtype not in (None, out.dtype):
        raise ValueError(f"out_dtype: {out_dtype}; expected out's, {out.dtype}, or None")
    _rms_norm_out(x, gamma, epsilon, gamma_offset, rounding, out=out)
    return out


def npu_rms_norm(
    self: Tensor | None = None,
    gamma: Tensor | None = None,
    epsilon: float = 1e-6,
    input: Tensor | None = None,  # not keyword-only: Python takes 25 ns for those
) -> tuple[Tensor, Tensor]:
    """The call of torch_npu, on any device: rms_norm with one rounding.

    Args:
        self: [..., *gamma.shape], 1 or more axes; float32, float16 or bfloat16; any strides.
        gamma: the last axes of self; any of the three dtypes.
        epsilon: finite, >= 0.
        input: the name of self in torch_npu for PyTorch 1.11 and 2.0; one of the two is given.

    Returns:
        y: shape and dtype of self.
        rstd: 1 / sqrt(mean(self^2) + epsilon), float32; self's shape with a 1 for each of gamma's
            axes; not differentiable.

    Raises:
        TypeError: self or gamma is missing, or both self and input are given.
        ValueError: as rms_norm.

    >>> y, rstd = npu_rms_norm(torch.tensor([[3.0, 4.0]]), torch.ones(2), epsilon=0.0)
    >>> rstd
    tensor([[0.2828]])
    """
    if input is None and gamma is not None and not is_compiling():
        outputs = call.rms_norm_and_rstd(self, gamma, epsilon, 0.0, "once", None)
        if outputs is not NotImplemented:
            return outputs
    x = self if input is None else input
    if x is None or gamma is None or (self is not None and input is not None):
        raise TypeError("npu_rms_norm: expected gamma, and either self or input")
    if is_compiling():
        return compiled.rms_norm(x, gamma, epsilon, 0.0, "once", None)
    return _rms_norm(x, gamma, epsilon)


def npu_rms_norm_backward(
    dy: Tensor, self: Tensor, gamma: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradient of npu_rms_norm, from the rstd that it returned.

    Args:
        dy: shape of self; self's dtype or float32.
        self, gamma, rstd: what npu_rms_norm was given and returned.

    Returns:
        dx: shape and dtype of self.
        dgamma: gamma's shape; float32.

    Raises:
        ValueError: as rms_norm.

    Bits: the same on every CPU and thread count; dgamma sums rows in a fixed order.
    Cost: reads dy and self once from memory, writes dx once.
    """
    return _rms_norm_backward(dy, self, gamma, rstd)
