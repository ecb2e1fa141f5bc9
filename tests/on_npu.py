"""rmsnorm on a stand-in for an Ascend NPU. test_devices.py runs it in a process of its own.

The stand-in's operators have the kernels' bits, so other bits would show an argument in a wrong
place, or a rounding that the operators of torch_npu should not have got to do.
"""

import itertools

import pytest
import torch
from torch import nn

import rmsnorm
import standin
from operands import DTYPES, same_bits
from rmsnorm import doctor
from standin import on_cpu

standin.register("npu")

X, DY = torch.randn(3, 5, 96), torch.randn(3, 5, 96)
GAMMA = torch.randn(96)
CASES = [
    (x, gamma, offset, rounding, y)
    for x, gamma, offset, rounding, y in itertools.product(
        DTYPES, (None, *DTYPES), (0.0, 1.0), ("once", "before_gamma"), (None, torch.float32)
    )
    if gamma is not None or offset == 0
]


@pytest.fixture(scope="module")
def operators():
    standin.define_operators()


@pytest.fixture(autouse=True)
def _no_calls_yet():
    standin.calls.clear()


def moved(tensor):
    return None if tensor is None else tensor.to("npu")


def test_without_the_operators_the_composite_computes():
    assert doctor.devices([])["npu"].startswith("a composite")
    x, gamma = (t.to("npu").requires_grad_() for t in (X, GAMMA))
    own_x, own_gamma = (t.clone().requires_grad_() for t in (X, GAMMA))
    y, own_y = rmsnorm.rms_norm(x, gamma), rmsnorm.rms_norm(own_x, own_gamma)
    results = y, *torch.autograd.grad(y, (x, gamma), DY.to("npu"))
    expected = own_y, *torch.autograd.grad(own_y, (own_x, own_gamma), DY)
    for result, wanted in zip(results, expected, strict=True):
        assert result.device.type == "npu"
        torch.testing.assert_close(on_cpu(result), wanted, rtol=1e-5, atol=1e-5)


def test_npu_rms_norm_is_torch_npus_call(operators):
    y, rstd = rmsnorm.npu_rms_norm(X.to("npu"), GAMMA.to("npu"), epsilon=1e-3)
    assert standin.calls == ["npu_rms_norm"]
    expected = rmsnorm.npu_rms_norm(X, GAMMA, epsilon=1e-3)
    assert same_bits(on_cpu(y), expected[0]) and same_bits(on_cpu(rstd), expected[1])
    dx, dgamma = rmsnorm.npu_rms_norm_backward(DY.to("npu"), X.to("npu"), GAMMA.to("npu"), rstd)
    assert standin.calls[1:] == ["npu_rms_norm_backward"]
    expected = rmsnorm.npu_rms_norm_backward(DY, X, GAMMA, expected[1])
    assert same_bits(on_cpu(dx), expected[0]) and same_bits(on_cpu(dgamma), expected[1])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_call_is_one_of_torch_npus_with_the_roundings_of_the_kernels(operators, case):
    x_dtype, gamma_dtype, offset, rounding, out_dtype = case
    x = X.to(x_dtype)
    gamma = None if gamma_dtype is None else GAMMA.to(gamma_dtype)
    options = 1e-6, offset, rounding, out_dtype
    forward, backward = torch.ops.rmsnorm.rms_norm, torch.ops.rmsnorm.rms_norm_backward
    y, rstd = forward(moved(x), moved(gamma), *options)
    expected_y, expected_rstd = forward(x, gamma, *options)
    assert same_bits(on_cpu(y), expected_y) and same_bits(on_cpu(rstd), expected_rstd)
    dy = DY.to(expected_y.dtype)
    gradients = backward(moved(dy), moved(x), moved(gamma), rstd, offset)
    expected = backward(dy, x, gamma, expected_rstd, offset)
    assert all(same_bits(on_cpu(a), b) for a, b in zip(gradients, expected, strict=True))
    assert gradients[1].dtype == torch.float32
    assert standin.calls == ["npu_rms_norm", "npu_rms_norm_backward"]


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
def test_a_gradient_that_is_not_wanted_is_empty(operators, wanted):
    x, gamma = X.to("npu"), GAMMA.to("npu")
    rstd = rmsnorm.npu_rms_norm(x, gamma)[1]
    outputs = torch.ops.rmsnorm.rms_norm_backward(DY.to("npu"), x, gamma, rstd, 0.0, wanted)
    assert [output.numel() > 0 for output in outputs] == list(wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_autograd_goes_through_torch_npus_backward(operators, dtype):
    results = []
    for device in ("npu", "cpu"):
        x, gamma = (t.to(device, dtype, copy=True).requires_grad_() for t in (X, GAMMA))
        y = rmsnorm.rms_norm(x, gamma)
        results.append(torch.autograd.grad(y, (x, gamma), DY.to(dtype).to(device)))
    assert standin.calls == ["npu_rms_norm", "npu_rms_norm_backward"]
    assert all(same_bits(on_cpu(a), b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("order", ["patched, then moved", "moved, then patched"])
def test_a_patched_model_goes_to_torch_npu(operators, order):
    own = nn.Sequential(nn.Linear(48, 96), nn.RMSNorm(96, eps=1e-6), nn.Linear(96, 8))
    rmsnorm.patch(own)
    expected = own(X[..., :48])
    model = rmsnorm.unpatch(own) or own
    if order.startswith("moved"):
        model = model.to("npu")
    report = rmsnorm.patch(model)
    model = model.to("npu")
    assert [norm.name for norm in report.replaced] == ["1"], report.left
    standin.calls.clear()
    logits = model(X[..., :48].to("npu"))
    logits.sum().backward()
    assert standin.calls == ["npu_rms_norm", "npu_rms_norm_backward"]
    assert same_bits(on_cpu(logits.detach()), expected.detach())


def test_a_compiled_module_goes_to_torch_npu(operators):
    norm = rmsnorm.RMSNorm(96).to("npu")
    x = X.to("npu").requires_grad_()
    y = torch.compile(norm, fullgraph=True, backend="aot_eager")(x)
    y.sum().backward()
    assert standin.calls == ["npu_rms_norm", "npu_rms_norm_backward"]
    assert same_bits(on_cpu(y.detach()), rmsnorm.rms_norm(X, torch.ones(96)))


OUTSIDE = {
    "float64": (torch.randn(3, 96, dtype=torch.float64), torch.randn(96, dtype=torch.float64)),
    "a gamma of less than 32 bytes": (torch.randn(3, 7), torch.randn(7)),
    "no rows": (torch.randn(0, 96), GAMMA),
    "nine axes": (torch.randn(1, 1, 1, 1, 1, 1, 1, 2, 96), GAMMA),
}


@pytest.mark.parametrize("case", OUTSIDE.values(), ids=OUTSIDE)
def test_what_torch_npu_does_not_take_is_computed_by_the_composite(operators, case):
    x, gamma = case
    y, rstd = rmsnorm.npu_rms_norm(x.to("npu"), gamma.to("npu"))
    rmsnorm.npu_rms_norm_backward(y, x.to("npu"), gamma.to("npu"), rstd)
    assert standin.calls == []
    torch.testing.assert_close(on_cpu(y), rmsnorm.rms_norm(x, gamma))


def test_out_is_written_in_place(operators):
    x = X.to("npu")
    assert rmsnorm.rms_norm(x, GAMMA.to("npu"), out=x) is x
    assert standin.calls == ["npu_rms_norm"]
    assert same_bits(on_cpu(x), rmsnorm.rms_norm(X, GAMMA))


def test_a_gamma_on_another_device_is_refused_before_the_call(operators):
    with pytest.raises(ValueError, match="gamma: device cpu; expected x's, npu:0"):
        rmsnorm.rms_norm(X.to("npu"), GAMMA)
    assert standin.calls == []


def test_doctor_names_torch_npus_call(operators):
    facts = doctor.devices([])
    assert facts["npu"] == "torch_npu's npu_rms_norm, whose bits are not promised"
