"""On a GPU: the bits of the CPU, PyTorch's streams, devices and graphs, and clear errors."""

import pytest
import torch
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
from rmsnorm import digests

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

LONG = [[3, 40000], [2, 300000], [5000, 96], [9000, 2050]]


def expect_bits_of_the_cpu(on_cpu: tuple[Tensor, ...], on_gpu: tuple[Tensor, ...]) -> None:
    expected = forward_and_backward(*on_cpu)
    for name, a, b in zip(
        ("y", "rstd", "dx", "dgamma"), forward_and_backward(*on_gpu), expected, strict=True
    ):
        assert a.is_cuda and same_bits(a.cpu(), b), name


@pytest.mark.parametrize("dtypes", dtype_pairs(), ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, *LONG], ids=str)
def test_every_shape_has_the_bits_of_the_cpu(shape, dtypes):
    for gamma_shape in gamma_shapes(shape):
        on_cpu = random_operands(shape, gamma_shape, dtypes)
        expect_bits_of_the_cpu(on_cpu, tuple(t.cuda() for t in on_cpu))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strided_rows_have_the_bits_of_the_cpu(dtype):
    x, gamma, dy = random_operands([6, 3, 131], [131], (dtype, dtype))
    on_gpu = (x.cuda(), gamma.cuda(), dy.cuda())
    expect_bits_of_the_cpu(
        (x[:, 1], gamma, dy[:, 2]), (on_gpu[0][:, 1], on_gpu[1], on_gpu[2][:, 2])
    )
    expect_bits_of_the_cpu(
        (x[..., :64], gamma[:64], dy[..., :64]),
        (on_gpu[0][..., :64], on_gpu[1][:64], on_gpu[2][..., :64]),
    )


def test_the_digests_are_the_recorded_ones():
    def run(call):
        return digests.run_torch(call, device="cuda")

    assert digests.differences(digests.compute(run)) == []


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_out_and_in_place_have_the_bits_of_a_fresh_output(dtype):
    x, gamma, _ = (t.cuda() for t in random_operands([33, 1000], [1000], (dtype, dtype)))
    expected = rmsnorm.rms_norm(x, gamma)
    assert same_bits(rmsnorm.rms_norm(x, gamma, out=torch.empty_like(x)), expected)
    assert same_bits(rmsnorm.rms_norm(x, gamma, out=x), expected)


def test_more_than_2_to_31_elements_have_the_bits_of_the_cpu():
    rows, n = (1 << 20) + 1, 2048
    if torch.cuda.mem_get_info()[0] < 5 * 2 * rows * n:
        pytest.skip("too little memory")
    x = torch.randn(64, n).bfloat16().repeat(-(-rows // 64), 1)[:rows].cuda()
    gamma = torch.randn(n)
    y, rstd = rmsnorm.npu_rms_norm(x, gamma.cuda())
    dx, _ = rmsnorm.npu_rms_norm_backward(x, x, gamma.cuda(), rstd)
    for part in (slice(0, 64), slice(rows - 64, rows)):
        on_cpu = x[part].cpu()
        expected = forward_and_backward(on_cpu, gamma, on_cpu)
        for a, b in zip((y, rstd, dx), expected, strict=False):
            assert same_bits(a[part].cpu(), b)


def test_work_goes_to_the_current_stream():
    x, gamma = torch.zeros(2048, 4096, device="cuda"), torch.ones(4096, device="cuda")
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        x.fill_(1)  # after the sleep, and before the norm on this stream alone
        y = rmsnorm.rms_norm(x, gamma, epsilon=0.0)
    stream.synchronize()
    assert torch.equal(y, torch.ones_like(y))


@pytest.mark.parametrize("n", [100, 4096, 40000, 300000])
def test_a_graph_captures_forward_and_backward_and_replays_their_bits(n):
    x, gamma, dy = (
        t.cuda() for t in random_operands([40, n], [n], (torch.bfloat16, torch.bfloat16))
    )
    forward_and_backward(x, gamma, dy)  # kernels are loaded before the capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = forward_and_backward(x, gamma, dy)
    x.copy_(torch.randn(40, n))
    graph.replay()
    assert all(
        same_bits(*pair) for pair in zip(captured, forward_and_backward(x, gamma, dy), strict=True)
    )


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_a_tensor_on_another_gpu_is_computed_there():
    x = torch.randn(5, 600)
    y = rmsnorm.rms_norm(x.to("cuda:1"), torch.ones(600, device="cuda:1"))
    assert y.device.index == 1 and torch.cuda.current_device() == 0
    assert same_bits(y.cpu(), rmsnorm.rms_norm(x, torch.ones(600)))


@pytest.mark.skipif(not hasattr(torch, "rms_norm"), reason="needs PyTorch 2.4")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_autocast_does_what_it_does_to_pytorchs_norm(dtype):
    x, gamma, _ = (t.cuda() for t in random_operands([4, 96], [96], (dtype, dtype)))
    with torch.autocast("cuda", dtype=torch.bfloat16):
        y = rmsnorm.rms_norm(x, gamma)
        theirs = torch.rms_norm(x, (96,), gamma, 1e-6)
        asked = rmsnorm.rms_norm(x, gamma, out_dtype=dtype)
    assert same_bits(y, rmsnorm.rms_norm(x, gamma, out_dtype=theirs.dtype))
    assert same_bits(asked, rmsnorm.rms_norm(x, gamma))


@pytest.mark.parametrize("inference", [False, True])
def test_operands_on_two_devices_are_refused(inference):
    x, gamma = torch.ones(2, 8), torch.ones(8)
    with torch.inference_mode(inference):
        with pytest.raises(ValueError, match="gamma: device cpu; expected x's, cuda:0"):
            rmsnorm.rms_norm(x.cuda(), gamma)
        with pytest.raises(ValueError, match="gamma: device cuda:0; expected x's, cpu"):
            rmsnorm.rms_norm(x, gamma.cuda())
        with pytest.raises(ValueError, match="out: device cpu; expected x's, cuda:0"):
            rmsnorm.rms_norm(x.cuda(), out=x)


def test_a_patched_model_on_a_gpu_is_fused_and_gives_the_bits_of_the_cpu():
    model = torch.nn.Sequential(torch.nn.RMSNorm(64, eps=1e-6))
    torch.nn.init.normal_(model[0].weight)
    x = torch.randn(7, 64)
    assert len(rmsnorm.patch(model.cuda()).replaced) == 1
    y = model(x.cuda())
    assert same_bits(y.cpu().detach(), model.cpu()(x).detach())
