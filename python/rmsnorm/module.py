"""The operator as a torch.nn.Module."""

import numbers
from typing import Any

import torch
from torch import Tensor

from rmsnorm.functional import rms_norm


class RMSNorm(torch.nn.Module):
    """rms_norm with a weight of its own; the state_dict is that of torch.nn.RMSNorm.

    Args:
        normalized_shape: sizes of the last axes, which are normalized over; an int stands for one.
        eps: finite, >= 0; added to the mean square.
        elementwise_affine: False: no weight, the scale is 1.
        device, dtype: of the weight.
        gamma_offset: added to the weight, which then starts at 1 - gamma_offset; 1 for models that
            store it around zero (Gemma).
        rounding: "once" or "before_gamma", as in rms_norm.

    >>> RMSNorm(2, eps=0.0)(torch.tensor([3.0, 4.0])).detach()
    tensor([0.8485, 1.1314])
    """

    def __init__(
        self,
        normalized_shape: int | list[int] | torch.Size,
        eps: float = 1e-6,
        elementwise_affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        gamma_offset: float = 0.0,
        rounding: str = "once",
    ) -> None:
        super().__init__()
        if gamma_offset and not elementwise_affine:
            raise ValueError(f"gamma_offset: {gamma_offset} without a weight; expected 0")
        one_axis = isinstance(normalized_shape, numbers.Integral)
        sizes: Any = [normalized_shape] if one_axis else normalized_shape
        self.normalized_shape = tuple(int(size) for size in sizes)
        self.eps = eps
        self.elementwise_affine = elementwise_affine
        self.gamma_offset = gamma_offset
        self.rounding = rounding
        if elementwise_affine:
            empty = torch.empty(self.normalized_shape, device=device, dtype=dtype)
            self.weight = torch.nn.Parameter(empty)
        else:
            self.register_parameter("weight", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Make the scale gamma_offset + weight equal to 1."""
        if self.weight is not None:
            torch.nn.init.constant_(self.weight, 1.0 - self.gamma_offset)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        rows = x if weight is not None else self._one_axis(x)
        y = rms_norm(rows, weight, self.eps, gamma_offset=self.gamma_offset, rounding=self.rounding)
        return y if rows is x else y.view(x.shape)

    def _one_axis(self, x: Tensor) -> Tensor:
        """x with the normalized axes as one, which is what rms_norm without gamma goes over."""
        axes = len(self.normalized_shape)
        if tuple(x.shape[-axes:]) != self.normalized_shape:
            raise ValueError(
                f"x: shape {list(x.shape)} does not end in {list(self.normalized_shape)}"
            )
        return x if axes == 1 else x.flatten(-axes)

    def extra_repr(self) -> str:
        text = f"{self.normalized_shape}, eps={self.eps}"
        if not self.elementwise_affine:
            text += ", elementwise_affine=False"
        if self.gamma_offset:
            text += f", gamma_offset={self.gamma_offset}"
        return text if self.rounding == "once" else f"{text}, rounding={self.rounding!r}"
