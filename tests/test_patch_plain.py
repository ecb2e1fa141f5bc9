"""patch on norms written by hand, in every PyTorch that the package runs on."""

import pytest
import torch
from torch import nn

import rmsnorm
from operands import DTYPES, same_bits


class SmallOperators(nn.Module):
    """As the operator page prints them."""

    def __init__(self, dim: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.randn(dim))

    def _norm(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)

    def forward(self, x):
        return self._norm(x.float()).type_as(x) * self.weight


class Centered(SmallOperators):
    """Takes the mean away first: no RMSNorm."""

    def _norm(self, x):
        return super()._norm(x - x.mean(-1, keepdim=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_patched_norm_has_the_bits_of_the_operator_until_it_is_unpatched(dtype):
    model = nn.Sequential(SmallOperators(48), nn.Linear(48, 48)).to(dtype)
    x = torch.randn(5, 48).to(dtype)
    own = model[0](x).detach()
    with rmsnorm.patch(model) as report:
        y = model[0](x).detach()
    assert str(report).startswith("replaced 1 of 1 norms")
    rounding = "once" if dtype == torch.float32 else "before_gamma"
    assert same_bits(y, rmsnorm.rms_norm(x, model[0].weight.detach(), 1e-6, rounding=rounding))
    assert same_bits(model[0](x).detach(), own)


def test_a_norm_that_centers_is_left():
    model = nn.Sequential(Centered(48))
    assert not rmsnorm.patch(model).replaced
    assert type(model[0]) is Centered
