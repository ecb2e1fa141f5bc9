"""Schemas, fake tensors, torch.compile, the module, and the operator page's class."""

import doctest

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

import rmsnorm
from operands import DTYPES, same_bits

pytestmark = pytest.mark.usefixtures("device")


def ours(x: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    return rmsnorm.rms_norm(x, gamma)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("needs_grad", [False, True])
def test_opcheck_accepts_every_operator(dtype, needs_grad):
    x = torch.randn(3, 4, 32).to(dtype).requires_grad_(needs_grad)
    wide = dtype == torch.float64
    gamma = torch.randn(4, 32, dtype=dtype if wide else None).requires_grad_(needs_grad)
    dy = torch.randn(3, 4, 32).to(dtype)
    rstd = rmsnorm.npu_rms_norm(x, gamma)[1]
    ops = torch.ops.rmsnorm
    torch.library.opcheck(ops.rms_norm.default, (x, gamma))
    torch.library.opcheck(ops.rms_norm.default, (x, None, 1e-5, 0.0, "once", rstd.dtype))
    torch.library.opcheck(ops.rms_norm_backward.default, (dy, x, gamma, rstd))
    torch.library.opcheck(ops.rms_norm_backward.default, (dy, x, gamma, rstd, 0.0, [True, False]))
    out = torch.empty(3, 4, 32, dtype=dtype)
    torch.library.opcheck(ops.rms_norm_out.default, (x.detach(), gamma.detach()), {"out": out})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_compiled_forward_and_backward_have_the_bits_of_eager(dtype):
    x = torch.randn(6, 96).to(dtype).requires_grad_()
    gamma = torch.randn(96).to(dtype).requires_grad_()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    results = []
    for normalize in (ours, compiled):
        y = normalize(x, gamma)
        results.append([y.detach(), *torch.autograd.grad(y.square().sum(), (x, gamma))])
    assert all(same_bits(a, b) for a, b in zip(*results, strict=True))


def test_inductor_compiles_the_whole_graph_with_changing_batches():
    compiled = torch.compile(ours, fullgraph=True, dynamic=True)
    gamma = torch.randn(48, requires_grad=True)
    for rows in (3, 5, 8):
        x = torch.randn(rows, 48, requires_grad=True)
        y = compiled(x, gamma)
        assert same_bits(y.detach(), ours(x, gamma).detach())
        dy = torch.randn_like(y)
        expected = torch.autograd.grad(ours(x, gamma), (x, gamma), dy)
        actual = torch.autograd.grad(y, (x, gamma), dy)
        assert all(same_bits(a, b) for a, b in zip(actual, expected, strict=True))


def test_compiled_out_writes_into_the_given_tensor():
    def into(x, out):
        rmsnorm.rms_norm(x, out=out)
        return out + 1

    x, out = torch.randn(4, 16), torch.zeros(4, 16)
    result = torch.compile(into, fullgraph=True, backend="aot_eager")(x, out)
    assert same_bits(out, rmsnorm.rms_norm(x))
    assert same_bits(result, out + 1)


def test_meta_tensors_have_the_shapes_and_dtypes_of_real_ones():
    x = torch.empty(2, 3, 8, dtype=torch.bfloat16, device="meta")
    y, rstd = rmsnorm.npu_rms_norm(x, torch.empty(3, 8, device="meta"))
    assert (y.shape, y.dtype) == ((2, 3, 8), torch.bfloat16)
    assert (rstd.shape, rstd.dtype) == ((2, 1, 1), torch.float32)


def test_fake_tensors_stay_on_their_device():
    with FakeTensorMode():
        x, gamma = torch.empty(2, 8, device="cuda"), torch.empty(8, device="cuda")
        y, rstd = rmsnorm.npu_rms_norm(x, gamma)
        gradients = rmsnorm.npu_rms_norm_backward(y, x, gamma, rstd)
    assert {t.device.type for t in (y, rstd, *gradients)} == {"cuda"}


def test_no_rows_give_empty_outputs_and_a_gradient_of_zero():
    x = torch.randn(0, 3, 8, requires_grad=True)
    gamma = torch.randn(8, requires_grad=True)
    y = rmsnorm.rms_norm(x, gamma)
    y.sum().backward()
    assert y.shape == (0, 3, 8)
    assert torch.equal(gamma.grad, torch.zeros(8))


def test_module_has_the_state_dict_and_the_numbers_of_pytorchs():
    theirs = nn.RMSNorm([4, 8], eps=1e-5)
    nn.init.normal_(theirs.weight)
    norm = rmsnorm.RMSNorm([4, 8], eps=1e-5)
    norm.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 4, 8)
    torch.testing.assert_close(norm(x), theirs(x), rtol=2**-21, atol=0)
    assert repr(norm) == "RMSNorm((4, 8), eps=1e-05)"


@pytest.mark.parametrize("shape", [8, [4, 8]])
def test_module_without_weight_scales_by_one(shape):
    norm = rmsnorm.RMSNorm(shape, elementwise_affine=False)
    theirs = nn.RMSNorm(shape, eps=1e-6, elementwise_affine=False)
    x = torch.randn(2, 4, 8)
    assert norm.state_dict() == {}
    torch.testing.assert_close(norm(x), theirs(x), rtol=2**-21, atol=0)


def test_module_with_an_offset_starts_at_a_scale_of_one():
    norm = rmsnorm.RMSNorm(8, gamma_offset=1.0)
    x = torch.randn(2, 8)
    assert torch.equal(norm.weight, torch.zeros(8))
    assert same_bits(norm(x).detach(), rmsnorm.rms_norm(x, torch.ones(8)))


# The operator page's replacement, as it is printed there.
REPLACEMENT = """
import torch
from torch import nn
import rmsnorm as torch_npu

class RMSNorm(torch.nn.Module):
    def __init__(self, dim: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return torch_npu.npu_rms_norm(x, self.weight, epsilon=self.eps)[0]
"""


def test_the_operator_pages_replacement_class_runs_as_printed():
    namespace: dict = {}
    exec(REPLACEMENT, namespace)
    norm = namespace["RMSNorm"](64)
    x = torch.randn(3, 5, 64, requires_grad=True)
    y = norm(x)
    y.square().sum().backward()
    exact = x.detach() * torch.rsqrt(x.detach().square().mean(-1, keepdim=True) + 1e-6)
    torch.testing.assert_close(y.detach(), exact, rtol=2**-20, atol=0)
    assert norm.weight.grad is not None


@pytest.mark.parametrize("name", ["compile_pass", "functional", "mapping", "module", "patch"])
def test_the_examples_in_docstrings_print_what_they_say(name, device):
    if device != "cpu":
        pytest.skip("tensors elsewhere are printed with their device")
    module = __import__(f"rmsnorm.{name}", fromlist=[name])
    result = doctest.testmod(module)
    assert result.attempted > 0 and result.failed == 0
