"""The words for what a norm computes, and for how the fused operator compares with it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rmsnorm.functional import rms_norm

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class NotRmsNorm(Exception):
    """The module computes something else; the text is the reason."""


@dataclass(frozen=True)
class Form:
    """One way to compute RMSNorm: what to call rms_norm with, for one dtype of x and of gamma.

    Attributes:
        gamma: the name of the module's parameter; None for a norm without one.
        epsilon: the name of the module's attribute, or the number where no attribute holds it.
        gamma_offset, rounding, out_dtype: as in rms_norm.
        axes: how many gamma has.
    """

    gamma: str | None
    epsilon: str | float
    gamma_offset: float
    rounding: str
    out_dtype: torch.dtype
    axes: int = 1

    def epsilon_of(self, module: torch.nn.Module) -> float:
        return getattr(module, self.epsilon) if isinstance(self.epsilon, str) else self.epsilon

    def __call__(self, module: torch.nn.Module, x: Tensor) -> Tensor:
        return rms_norm(
            x,
            None if self.gamma is None else getattr(module, self.gamma),
            self.epsilon_of(module),
            gamma_offset=self.gamma_offset,
            rounding=self.rounding,
            out_dtype=self.out_dtype,
        )


@dataclass(frozen=True)
class Difference:
    """How a result of the fused operator compares with the module's own, on the probes.

    Attributes:
        result: "y", "dx" or "dgamma".
        values: how many were compared.
        differing: how many of them differ in any bit.
        largest: the largest absolute difference; values of y are around 1.
        bound: how far two right results may be apart where the difference is largest.
    """

    result: str
    values: int
    differing: int
    largest: float
    bound: float


@dataclass(frozen=True)
class Match:
    """What a module computes for one pair of dtypes, and what the fused operator makes of it.

    Attributes:
        x_dtype, gamma_dtype: what the form holds for.
        own_rounding: the module's own; that of the form differs where it was asked for.
        form: what runs instead.
        differences: of y, dx and, with a gamma, dgamma; empty where they were not compared.
    """

    x_dtype: torch.dtype
    gamma_dtype: torch.dtype | None
    own_rounding: str
    form: Form
    differences: tuple[Difference, ...]
