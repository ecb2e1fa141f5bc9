"""Norms that the tests of patch use, and comparison of their results."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm
from transformers.models.qwen3_next.modeling_qwen3_next import (
    Qwen3NextRMSNorm,
)
from transformers.models.t5.modeling_t5 import T5LayerNorm

from operands import DTYPES

N = 48


class OperatorPageRMSNorm(nn.Module):
    """The small operators of the operator page, as printed there."""

    def __init__(self, dim: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def _norm(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)

    def forward(self, x):
        output = self._norm(x.float()).type_as(x)
        return output * self.weight


class BaichuanRMSNorm(nn.Module):
    """Rounds to the dtype of a 16-bit weight, whatever that of x."""

    def __init__(self, width, epsilon=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.epsilon = epsilon

    def forward(self, hidden):
        variance = hidden.to(torch.float32).square().mean(-1, keepdim=True)
        hidden = hidden * torch.rsqrt(variance + self.epsilon)
        if self.weight.dtype != torch.float32:
            hidden = hidden.to(self.weight.dtype)
        return self.weight * hidden


class Rescale(nn.Module):
    """RMSNorm by another name, with epsilon in the code and an argument that is rarely given."""

    def __init__(self, n):
        super().__init__()
        self.g = nn.Parameter(torch.ones(n))

    def forward(self, x, shift=0.0):
        xhat = x.float() * (x.float().square().sum(-1, keepdim=True) / x.shape[-1] + 1e-5) ** -0.5
        return (xhat * self.g).to(x.dtype) + shift


# name: how to make it, its rounding in 16 bits, gamma_offset, epsilon
NORMS = {
    "operator page": (lambda: OperatorPageRMSNorm(N), "before_gamma", 0, 1e-6),
    "llama": (lambda: LlamaRMSNorm(N, eps=1e-5), "before_gamma", 0, 1e-5),
    "mistral": (lambda: MistralRMSNorm(N), "before_gamma", 0, 1e-6),
    "qwen2": (lambda: Qwen2RMSNorm(N), "before_gamma", 0, 1e-6),
    "qwen3": (lambda: Qwen3RMSNorm(N), "before_gamma", 0, 1e-6),
    "t5": (lambda: T5LayerNorm(N), "before_gamma", 0, 1e-6),
    "baichuan": (lambda: BaichuanRMSNorm(N), "before_gamma", 0, 1e-6),
    "olmo2": (lambda: Olmo2RMSNorm(N), "once", 0, 1e-6),
    "gemma": (lambda: GemmaRMSNorm(N), "once", 1, 1e-6),
    "qwen3 next": (lambda: Qwen3NextRMSNorm(N), "once", 1, 1e-6),
    "another name": (lambda: Rescale(N), "once", 0, 1e-5),
    "torch": (lambda: nn.RMSNorm(N, eps=1e-3), "once", 0, 1e-3),
    "torch, no eps": (lambda: nn.RMSNorm(N), "once", 0, torch.finfo(torch.float32).eps),
    "torch, integer eps": (lambda: nn.RMSNorm(N, eps=0), "once", 0, 0.0),
    "torch, eps 0": (lambda: nn.RMSNorm(N, eps=0.0), "once", 0, 0.0),
    "torch, no weight": (lambda: nn.RMSNorm(N, 1e-6, elementwise_affine=False), "once", 0, 1e-6),
    "torch, two axes": (lambda: nn.RMSNorm((3, N // 3), eps=1e-6), "once", 0, 1e-6),
}
every_norm = pytest.mark.parametrize("name", NORMS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])


def make(name, dtype=torch.float32):
    """The norm with a random weight, alone in a model."""
    norm = NORMS[name][0]()
    for parameter in norm.parameters():
        nn.init.normal_(parameter, mean=0.5)
    return nn.Sequential(norm).to(dtype)


def rows(dtype, *leading, n=N, norm=None):
    """Random x; of the shape that norm wants, if it wants more than one axis."""
    shape = getattr(norm, "normalized_shape", (n,))
    return torch.randn(*(leading or (7, 5)), *shape).to(dtype)


def assert_close(got, expected, rounding_dtype):
    """Apart by at most what two right norms may differ by, in each value.

    In float32 each is within 2^-18 of the formula. In 16 bits those errors may flip the rounding of
    x * rstd, by one machine epsilon, and then that of y, by another.
    """
    eps = torch.finfo(rounding_dtype).eps
    bound = 2.0**-17 if rounding_dtype == torch.float32 else 2 * eps
    assert got.dtype == expected.dtype
    torch.testing.assert_close(got.double(), expected.double(), rtol=bound, atol=0)


def distance(got, expected):
    """Norm-wise, relative."""
    return ((got.double() - expected.double()).norm() / expected.double().norm()).item()


class LookalikeNorm(nn.Module):
    """Almost RMSNorm: the formula is a function of the module and x."""

    def __init__(self, formula, eps=1e-6):
        super().__init__()
        self.formula = formula
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(N))

    def forward(self, x):
        return self.formula(self, x).to(x.dtype)


def mean_square(x, axis=-1):
    return x.float().square().mean(axis, keepdim=True)


def xhat(m, x, axis=-1):
    return x.float() * torch.rsqrt(mean_square(x, axis) + m.eps)


def right(m, x):
    return xhat(m, x) * m.weight


LOOKALIKES = {
    "mean subtracted": lambda m, x: right(m, x.float() - x.float().mean(-1, keepdim=True)),
    "sum instead of mean": lambda m, x: (
        x.float() * torch.rsqrt(N * mean_square(x) + m.eps) * m.weight
    ),
    "n - 1 instead of n": lambda m, x: (
        x.float() * torch.rsqrt(mean_square(x) * N / (N - 1) + m.eps) * m.weight
    ),
    "mean of a part of the row": lambda m, x: (
        x.float() * torch.rsqrt(mean_square(x[..., : N // 4]) + m.eps) * m.weight
    ),
    "mean of absolute values": lambda m, x: (
        x.float() / (x.float().abs().mean(-1, keepdim=True) + m.eps) * m.weight
    ),
    "epsilon outside of the root": lambda m, x: (
        x.float() / (mean_square(x).sqrt() + m.eps) * m.weight
    ),
    "epsilon squared": lambda m, x: x.float() * torch.rsqrt(mean_square(x) + m.eps**2) * m.weight,
    "epsilon a thousandth off": lambda m, x: (
        x.float() * torch.rsqrt(mean_square(x) + 1.001 * m.eps) * m.weight
    ),
    "epsilon as a floor": lambda m, x: (
        x.float() * torch.rsqrt(mean_square(x).clamp(min=m.eps)) * m.weight
    ),
    "L2 norm": lambda m, x: F.normalize(x.float(), dim=-1) * m.weight,
    "scale before the norm": lambda m, x: xhat(m, x.float() * m.weight),
    "scale twice": lambda m, x: xhat(m, x) * m.weight * m.weight,
    "absolute scale": lambda m, x: xhat(m, x) * m.weight.abs(),
    "gate of 1 + tanh": lambda m, x: xhat(m, x) * (1 + torch.tanh(m.weight)),
    "offset of a half": lambda m, x: xhat(m, x) * (0.5 + m.weight),
    "bias added": lambda m, x: right(m, x) + 0.01,
    "x clamped": lambda m, x: right(m, x.clamp(-1000, 1000)),
    "y clamped": lambda m, x: right(m, x).clamp(-5, 5),
    "over rows": lambda m, x: xhat(m, x, axis=-2) * m.weight,
    "over axis 1": lambda m, x: xhat(m, x, axis=1) * m.weight,
    "over all axes but the first": lambda m, x: xhat(m, x, tuple(range(1, x.dim()))) * m.weight,
    "dropout": lambda m, x: F.dropout(right(m, x), 0.01, m.training),
    "noise in evaluation": lambda m, x: right(m, x) * (1 if m.training else 1 + torch.rand(()) / 9),
    "mean square in bfloat16": lambda m, x: (
        x.float() * torch.rsqrt(mean_square(x).bfloat16() + m.eps) * m.weight
    ),
    "squares in bfloat16": lambda m, x: (
        (x.float() * torch.rsqrt(x.square().bfloat16().float().mean(-1, keepdim=True) + m.eps))
        * m.weight
    ),
    "root held constant in the gradient": lambda m, x: (
        x.float() * torch.rsqrt(mean_square(x) + m.eps).detach() * m.weight
    ),
    "scale held constant in the gradient": lambda m, x: xhat(m, x) * m.weight.detach(),
    "no gradient": lambda m, x: right(m, x).detach(),
    "in place": lambda m, x: x.copy_(right(m, x)),
}
# Right in float32; in 16 bits they round more often than any form.
LOOKALIKES_IN_16_BITS = {
    "all arithmetic in 16 bits": lambda m, x: (
        x * torch.rsqrt(x.square().mean(-1, keepdim=True) + m.eps) * m.weight.to(x.dtype)
    ),
    "rstd in 16 bits": lambda m, x: (
        x * torch.rsqrt(mean_square(x) + m.eps).to(x.dtype) * m.weight.to(x.dtype)
    ),
    "offset added in 16 bits": lambda m, x: xhat(m, x) * (1 + m.weight.to(x.dtype)),
    "rounded toward zero": lambda m, x: (right(m, x).view(torch.int32) & ~0xFFFF).view(
        torch.float32
    ),
}
