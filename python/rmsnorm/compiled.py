"""What torch.compile and torch.export see of rms_norm: our kernel, or operators that they fuse."""

import torch
from torch import Tensor

from rmsnorm import composite
from rmsnorm.checks import real_dtype

FORMS = ("kernel", "decomposition")
_form = "kernel"

_operator = torch.ops.rmsnorm.rms_norm.default
_widened_by_autocast = torch._C._dispatch_has_kernel_for_dispatch_key(
    "rmsnorm::rms_norm", "AutocastCUDA"
)


def compile_as(form: str) -> None:
    """Choose what rms_norm, npu_rms_norm and RMSNorm become in graphs of torch.compile and export.

    Args:
        form: "kernel", the default: our operator, with the bits of eager, which the compiler calls
            as it is. "decomposition": PyTorch's operators with the same numerics, finite rows
            included, which the compiler may fuse with what is around them; its sums have an order
            of its own, so bits differ from eager. 16-bit x with rounding "before_gamma" stays the
            kernel: fused operators would round once.

    Raises:
        ValueError: form is neither.

    Holds for the whole process, from the next call: a graph that was compiled for the other form
    is compiled anew. Calls outside of graphs, and out=, always use the kernel. docs/pytorch.md says
    which form is faster where.

    >>> compile_as("decomposition")
    >>> compile_as("kernel")
    """
    global _form
    if form not in FORMS:
        raise ValueError(f"form: {form!r}; expected {' or '.join(map(repr, FORMS))}")
    _form = form


def rms_norm(
    x: Tensor,
    gamma: Tensor | None,
    epsilon: float,
    gamma_offset: float,
    rounding: str,
    out_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    """(y, rstd) in a graph, in the form that was chosen when it is traced."""
    # A compiler drops a rounding between two operators that it fuses.
    rounds_within = rounding == "before_gamma" and x.dtype != real_dtype(x)
    if _form == "kernel" or rounds_within:
        return _operator(x, gamma, epsilon, gamma_offset, rounding, out_dtype)
    if out_dtype is None and _widened_by_autocast and x.is_cuda and torch.is_autocast_enabled():
        out_dtype = real_dtype(x)  # as the operator does
    y, rstd = composite.rms_norm(x, gamma, epsilon, gamma_offset, rounding, out_dtype)
    return y, rstd.detach()
