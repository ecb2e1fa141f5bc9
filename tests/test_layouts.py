"""Strides and empty tensors: the bits of the contiguous call, and gradients of the right shape."""

import pytest
import torch
from torch import Tensor

import rmsnorm
from operands import DTYPES, same_bits

pytestmark = pytest.mark.usefixtures("device")


def transposed(shape: list[int], dtype: torch.dtype) -> Tensor:
    """The two last axes are swapped in memory."""
    return torch.randn([*shape[:-2], shape[-1], shape[-2]]).to(dtype).mT


def rows_transposed(shape: list[int], dtype: torch.dtype) -> Tensor:
    """The leading axes are swapped in memory; each row is packed."""
    return torch.randn([*reversed(shape[:-1]), shape[-1]]).to(dtype).transpose(0, -2)


def channels_last(shape: list[int], dtype: torch.dtype) -> Tensor:
    return torch.randn(shape).to(dtype, memory_format=torch.channels_last)


def channels_of_a_cropped_image(shape: list[int], dtype: torch.dtype) -> Tensor:
    """Channels-last memory with the channels as rows: packed ones, but unevenly spaced."""
    whole = channels_last([shape[0], shape[3], shape[1], shape[2] + 1], dtype)
    return whole[..., :-1].permute(0, 2, 3, 1)


def every_other_column(shape: list[int], dtype: torch.dtype) -> Tensor:
    return torch.randn([*shape[:-1], 2 * shape[-1]]).to(dtype)[..., ::2]


def expanded_row(shape: list[int], dtype: torch.dtype) -> Tensor:
    return torch.randn(shape[-1]).to(dtype).expand(shape)


def expanded_element(shape: list[int], dtype: torch.dtype) -> Tensor:
    return torch.randn([*shape[:-1], 1]).to(dtype).expand(shape)


LAYOUTS = (
    transposed,
    rows_transposed,
    channels_last,
    channels_of_a_cropped_image,
    every_other_column,
    expanded_row,
    expanded_element,
)
SHAPE = [2, 5, 7, 66]
TARGETS = rmsnorm.cpu_targets()


def results(x: Tensor, gamma: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
    """y, dx, dgamma by autograd, and (y, rstd, dx, dgamma) by the two calls of torch_npu."""
    leaves = (x.detach().requires_grad_(), gamma.detach().requires_grad_())
    y = rmsnorm.rms_norm(*leaves)
    npu_y, rstd = rmsnorm.npu_rms_norm(x, gamma)
    npu = rmsnorm.npu_rms_norm_backward(dy, x, gamma, rstd)
    return y, *torch.autograd.grad(y, leaves, dy), npu_y, rstd, *npu


def expect_bits_of_contiguous(x: Tensor, gamma: Tensor, dy: Tensor) -> None:
    actual = results(x, gamma, dy)
    expected = results(x.contiguous(), gamma.contiguous(), dy.contiguous())
    for i, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert same_bits(a, b), f"result {i}"


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_any_layout_of_x_and_dy_has_the_bits_of_the_contiguous_call(layout, dtype, target):
    rmsnorm.use_cpu_target(target)
    x, dy = layout(SHAPE, dtype), layout(SHAPE, dtype)
    assert x.shape == torch.Size(SHAPE)
    gamma, packed = torch.randn(SHAPE[-1]), torch.randn(SHAPE).to(dtype)
    expect_bits_of_contiguous(x, gamma, dy)
    expect_bits_of_contiguous(x, gamma, packed)
    expect_bits_of_contiguous(packed, gamma, dy)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_rows_of_several_axes_have_the_bits_of_the_contiguous_call(layout, dtype, target):
    rmsnorm.use_cpu_target(target)
    for axes in (2, 3):
        gamma = torch.randn(SHAPE[-axes:])
        expect_bits_of_contiguous(layout(SHAPE, dtype), gamma, layout(SHAPE, dtype))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_layout_of_gamma_has_the_bits_of_the_contiguous_call(dtype, target):
    rmsnorm.use_cpu_target(target)
    x, dy = torch.randn(SHAPE).to(dtype), torch.randn(SHAPE).to(dtype)
    wide = torch.randn(7, 2 * 66)
    for gamma in (
        wide[0, ::2],
        wide[0, :1].expand(66),
        wide[:, :66],
        wide.view(2, 66, 7)[1].t(),
        wide[0, :66].expand(7, 66),
    ):
        expect_bits_of_contiguous(x, gamma, dy)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [[0, 8], [3, 0, 8], [0, 3, 8], [2, 0, 0, 8]], ids=str)
def test_no_rows_give_empty_results_and_a_gradient_of_zeros_for_gamma(shape, dtype):
    x, gamma = torch.randn(shape).to(dtype), torch.randn(8)
    y, dx, dgamma, npu_y, rstd, npu_dx, npu_dgamma = results(x, gamma, torch.randn_like(x))
    for of_x in (y, dx, npu_y, npu_dx):
        assert of_x.shape == x.shape and of_x.dtype == dtype
    assert rstd.shape == torch.Size([*shape[:-1], 1]) and rstd.dtype == torch.float32
    for of_gamma in (dgamma, npu_dgamma):
        assert same_bits(of_gamma, torch.zeros(8))
