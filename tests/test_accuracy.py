"""Errors against exact sums stay within the bounds that the order implies (docs/numerics.md)."""

import pytest
import torch

import accuracy
from operands import DTYPES

SHAPES = [
    *((1, 1), (40, 7), (33, 64), (300, 65), (17, 513), (1000, 100), (5, 4097), (3, 1 << 17)),
]
SLACK = 1 + 2**-12  # the bounds count roundings to first order


@pytest.mark.parametrize("quantity", accuracy.QUANTITIES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float32_errors_are_within_their_bounds(shape, quantity):
    error = accuracy.errors(accuracy.ours, *shape)[quantity]
    assert 0 < error <= SLACK * getattr(accuracy.Bounds(*shape), quantity)


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d != torch.float32], ids=str)
def test_16_bit_results_are_the_exact_ones_rounded_once_up_to_a_float32_error(dtype):
    x, gamma = torch.randn(64, 768).to(dtype), torch.randn(768).to(dtype)
    y, _ = accuracy.ours(x, gamma)
    xhat = x.double() * (x.double().square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    exact = xhat * gamma.double()
    float32_error = accuracy.Bounds(64, 768).y * accuracy.UNIT
    rounding = torch.finfo(dtype).eps / 2 * exact.abs() + torch.finfo(dtype).smallest_normal
    assert ((y.double() - exact).abs() <= rounding + 2 * float32_error * exact.abs()).all()
