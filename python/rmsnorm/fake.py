"""What the operators return, without computing it: for torch.compile, export and meta tensors."""

import torch
from torch import Tensor

RmsNormResult = tuple[Tensor, Tensor]


@torch.library.register_fake("rmsnorm::rms_norm")
def _rms_norm(
    x: Tensor,
    gamma: Tensor | None,
    epsilon: float = 1e-6,
    gamma_offset: float = 0.0,
    rounding: str = "once",
    out_dtype: torch.dtype | None = None,
) -> RmsNormResult:
    axes = _check_tail(x, gamma)
    y = x.new_empty(x.shape, dtype=out_dtype or x.dtype)
    rstd = x.new_empty([*x.shape[: x.dim() - axes], *[1] * axes], dtype=torch.float32)
    return y, rstd


@torch.library.register_fake("rmsnorm::rms_norm_out")
def _rms_norm_out(
    x: Tensor,
    gamma: Tensor | None,
    epsilon: float = 1e-6,
    gamma_offset: float = 0.0,
    rounding: str = "once",
    *,
    out: Tensor,
) -> None:
    _check_tail(x, gamma)


@torch.library.register_fake("rmsnorm::rms_norm_backward")
def _rms_norm_backward(
    dy: Tensor,
    x: Tensor,
    gamma: Tensor | None,
    rstd: Tensor,
    gamma_offset: float = 0.0,
    wanted: tuple[bool, bool] = (True, True),
) -> RmsNormResult:
    axes = _check_tail(x, gamma)
    dx = x.new_empty(x.shape if wanted[0] else [0])
    dgamma = x.new_empty(x.shape[x.dim() - axes :] if wanted[1] else [0], dtype=torch.float32)
    return dx, dgamma


def _check_tail(x: Tensor, gamma: Tensor | None) -> int:
    """How many of x's last axes are normalized over."""
    if gamma is None:
        return 1
    tail = list(x.shape[max(x.dim() - gamma.dim(), 0) :])
    if gamma.dim() == 0 or list(gamma.shape) != tail:
        raise ValueError(f"gamma: shape {list(gamma.shape)} is not the tail of x's {list(x.shape)}")
    return gamma.dim()
