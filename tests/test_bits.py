"""The same bits for every instruction set, number of threads, batch and memory layout."""

from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import rmsnorm
from operands import (
    DTYPES,
    SHAPES,
    dtype_pairs,
    forward_and_backward,
    gamma_shapes,
    random_operands,
    same_bits,
)

SMALL_SHAPES = [shape for shape in SHAPES if shape != [1024, 12288]]
KERNELS = [target for target in rmsnorm.cpu_targets() if target != "reference"]


def expect_reference_bits(x: Tensor, gamma: Tensor, dy: Tensor) -> None:
    rmsnorm.use_cpu_target("reference")
    expected = forward_and_backward(x, gamma, dy)
    for target in KERNELS:
        rmsnorm.use_cpu_target(target)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            actual = forward_and_backward(x, gamma, dy)
            for name, a, b in zip(("y", "rstd", "dx", "dgamma"), actual, expected, strict=True):
                assert same_bits(a, b), f"{name}, {target}, {threads} threads"


@pytest.mark.parametrize("dtypes", dtype_pairs(), ids=str)
@pytest.mark.parametrize("shape", SMALL_SHAPES, ids=str)
def test_every_target_and_thread_count_has_the_bits_of_the_reference(shape, dtypes):
    for gamma_shape in gamma_shapes(shape):
        expect_reference_bits(*random_operands(shape, gamma_shape, dtypes))


@pytest.mark.parametrize("dtypes", dtype_pairs(), ids=str)
def test_a_large_batch_has_the_bits_of_the_reference(dtypes):
    for gamma_shape in gamma_shapes([1024, 12288]):
        expect_reference_bits(*random_operands([1024, 12288], gamma_shape, dtypes))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [s for s in SHAPES if len(s) > 1], ids=str)
def test_a_row_alone_has_the_bits_it_has_in_its_batch(shape, dtype):
    x, gamma, dy = random_operands(shape, shape[-1:], (dtype, dtype))
    y, rstd, dx, _ = forward_and_backward(x, gamma, dy)
    rows = [t.reshape(-1, t.shape[-1]) for t in (x, dy, y, rstd, dx)]
    for row in {0, rows[0].shape[0] // 2, rows[0].shape[0] - 1}:
        x_row, dy_row, *expected = (t[row : row + 1] for t in rows)
        actual = forward_and_backward(x_row, gamma, dy_row)[:3]
        assert all(same_bits(a, b) for a, b in zip(actual, expected, strict=True))


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_layout_has_the_bits_of_the_contiguous_call(data):
    shape = data.draw(st.lists(st.integers(1, 5), min_size=2, max_size=5))
    dtype = data.draw(st.sampled_from(DTYPES))
    base = torch.randn([*shape, 3]).to(dtype)
    kind = data.draw(st.sampled_from(["permuted", "sliced", "expanded", "offset"]))
    if kind == "permuted":
        x = base.permute(*data.draw(st.permutations(range(base.dim()))))
    elif kind == "sliced":
        x = base[..., ::2, :]
    elif kind == "expanded":
        x = base[..., :1, :].expand_as(base)
    else:
        x = torch.randn(base.numel() + 1).to(dtype)[1:].view_as(base)
    gamma = torch.randn(x.shape[-1])
    dy = torch.randn(x.shape).to(dtype)
    expected = forward_and_backward(x.contiguous(), gamma, dy)
    strided_dy = dy.transpose(0, -1).contiguous().transpose(0, -1)
    actual = forward_and_backward(x, gamma, strided_dy)
    assert all(same_bits(a, b) for a, b in zip(actual, expected, strict=True))


def test_query_heads_inside_a_wider_projection_are_read_in_place_with_the_same_bits():
    qkv = torch.randn(6, 3, 128)
    query = qkv[:, 1]
    gamma = torch.randn(128)
    assert not query.is_contiguous()
    assert same_bits(rmsnorm.rms_norm(query, gamma), rmsnorm.rms_norm(query.contiguous(), gamma))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_out_and_in_place_have_the_bits_of_a_fresh_output(dtype):
    x, gamma, _ = random_operands([4, 33, 100], [100], (dtype, dtype))
    expected = rmsnorm.rms_norm(x, gamma)
    out = torch.empty_like(x)
    assert rmsnorm.rms_norm(x, gamma, out=out) is out
    assert same_bits(out, expected)
    strided = torch.empty(100, 33, 4, dtype=dtype).permute(2, 1, 0)
    assert same_bits(rmsnorm.rms_norm(x, gamma, out=strided), expected)
    assert same_bits(rmsnorm.rms_norm(x, gamma, out=x), expected)
    assert same_bits(x, expected)


def test_float32_output_of_16_bit_rows_rounds_to_the_16_bit_output():
    x, gamma, _ = random_operands([4, 100], [100], (torch.bfloat16, torch.bfloat16))
    wide = rmsnorm.rms_norm(x, gamma, out_dtype=torch.float32)
    assert wide.dtype == torch.float32
    assert same_bits(wide.bfloat16(), rmsnorm.rms_norm(x, gamma))


def test_pytorchs_own_threads_do_the_work():
    """No pool of ours beside PyTorch's: its OpenMP runtime is the only one that is mapped."""
    rmsnorm.rms_norm(torch.randn(4096, 1024))
    maps = Path("/proc/self/maps").read_text().splitlines()
    runtimes = {line.split()[-1] for line in maps if "libgomp" in line}
    assert len(runtimes) == 1, runtimes
