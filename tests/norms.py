"""Norms and models that the tests of patch use, and comparison of their results."""

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM
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


SMALL = {
    "vocab_size": 32,
    "hidden_size": N,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def llama(dtype):
    return LlamaForCausalLM(LlamaConfig(**SMALL)).to(dtype)


def qwen3(dtype):
    return Qwen3ForCausalLM(Qwen3Config(**SMALL, head_dim=16)).to(dtype)


TOKENS = torch.arange(24).view(2, 12)


def logits_and_gradients(model):
    model.zero_grad()
    output = model(input_ids=TOKENS, labels=TOKENS)
    output.loss.backward()
    return output.logits.detach(), [p.grad.clone() for p in model.parameters()]
