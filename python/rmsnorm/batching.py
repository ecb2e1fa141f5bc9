"""torch.vmap of the operators, with the bits of a loop over the batch.

Needs PyTorch 2.5: earlier ones loop by themselves, with a warning.
"""

from typing import Any

import torch
from torch import Tensor

_rms_norm = torch.ops.rmsnorm.rms_norm.default
_rms_norm_backward = torch.ops.rmsnorm.rms_norm_backward.default

Outputs = tuple[tuple[Tensor, ...], tuple[int, ...]]  # and which of their axes is the batch


def _forward(info: Any, dims: tuple, x: Tensor, gamma: Tensor | None, *options: Any) -> Outputs:
    if dims[1] is None and _has_rows(x, dims[0], gamma):
        return _rms_norm(_batch_first(x, dims[0], info), gamma, *options), (0, 0)
    return _loop(info, dims, _rms_norm, (x, gamma), options)


def _backward(
    info: Any,
    dims: tuple,
    dy: Tensor,
    x: Tensor,
    gamma: Tensor | None,
    rstd: Tensor,
    gamma_offset: float = 0.0,
    wanted: tuple[bool, bool] = (True, True),
) -> Outputs:
    sums_rows = wanted[1]  # dgamma, of each sample's own
    if dims[2] is None and not sums_rows and _has_rows(x, dims[1], gamma):
        dy, x, rstd = (
            _batch_first(tensor, dim, info)
            for tensor, dim in ((dy, dims[0]), (x, dims[1]), (rstd, dims[3]))
        )
        dx, none = _rms_norm_backward(dy, x, gamma, rstd, gamma_offset, wanted)
        return (dx, none.expand(info.batch_size, 0)), (0, 0)
    tensors = dy, x, gamma, rstd
    return _loop(info, dims, _rms_norm_backward, tensors, (gamma_offset, wanted))


def _has_rows(x: Tensor, dim: int | None, gamma: Tensor | None) -> bool:
    """Whether a sample of x has the axes of a row; if not, the batch would become one of them."""
    axes = 1 if gamma is None else gamma.dim()
    return x.dim() - (dim is not None) >= axes


def _batch_first(tensor: Tensor, dim: int | None, info: Any) -> Tensor:
    """The batch as one more axis of rows: the bits of a row don't depend on the others."""
    return tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _loop(info: Any, dims: tuple, op: Any, tensors: tuple, options: tuple) -> Outputs:
    if info.batch_size == 0:
        raise ValueError("vmap: a batch of 0 samples; expected 1 or more")
    samples = [
        op(
            *(
                tensor if dim is None else tensor.select(dim, i)
                for tensor, dim in zip(tensors, dims, strict=False)  # options have no axes
            ),
            *options,
        )
        for i in range(info.batch_size)
    ]
    return tuple(map(torch.stack, zip(*samples, strict=True))), (0, 0)


if hasattr(torch.library, "register_vmap"):
    torch.library.register_vmap("rmsnorm::rms_norm", _forward)
    torch.library.register_vmap("rmsnorm::rms_norm_backward", _backward)
