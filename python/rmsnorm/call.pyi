"""The types of bindings/torch/call.cc; NotImplemented comes back where torch.ops has to see it."""

import torch
from torch import Tensor

def rms_norm(
    x: Tensor,
    gamma: Tensor | None,
    epsilon: float,
    gamma_offset: float,
    rounding: str,
    out_dtype: torch.dtype | None,
    /,
) -> Tensor: ...
def rms_norm_and_rstd(
    x: Tensor | None,
    gamma: Tensor | None,
    epsilon: float,
    gamma_offset: float,
    rounding: str,
    out_dtype: torch.dtype | None,
    /,
) -> tuple[Tensor, Tensor]: ...
