"""Schemas, fake tensors, what PyTorch does around a norm, the module, the operator page's class."""

import copy
import doctest
import functools
import io
import pickle

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils import checkpoint as checkpoints
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import rmsnorm
from operands import DTYPES, needs_pytorch, same_bits

pytestmark = pytest.mark.usefixtures("device")

NEEDS_THEIRS = pytest.mark.skipif(
    not hasattr(torch, "rms_norm"), reason="needs PyTorch 2.4: torch.rms_norm"
)

OPS = torch.ops.rmsnorm
ROWS = (3, 4, 32)

# x, gamma, dy, rstd -> an operator, its arguments and its keyword arguments.
CALLS = {
    "rms_norm": lambda x, gamma, dy, rstd: (OPS.rms_norm.default, (x, gamma), {}),
    "rms_norm to rstd's dtype": lambda x, gamma, dy, rstd: (
        OPS.rms_norm.default,
        (x, None, 1e-5, 0.0, "once", rstd.dtype),
        {},
    ),
    "rms_norm_backward": lambda x, gamma, dy, rstd: (
        OPS.rms_norm_backward.default,
        (dy, x, gamma, rstd),
        {},
    ),
    "rms_norm_backward for dx": lambda x, gamma, dy, rstd: (
        OPS.rms_norm_backward.default,
        (dy, x, gamma, rstd, 0.0, [True, False]),
        {},
    ),
    "rms_norm_out": lambda x, gamma, dy, rstd: (
        OPS.rms_norm_out.default,
        (x.detach(), gamma.detach()),
        {"out": torch.empty_like(x.detach())},
    ),
}


@pytest.mark.skipif(
    not hasattr(torch.library, "opcheck"), reason="needs PyTorch 2.4: torch.library.opcheck"
)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("needs_grad", [False, True])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(
    "test",
    ["test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"],
)
def test_opcheck_accepts_every_operator(test, call, dtype, needs_grad):
    x = torch.randn(ROWS).to(dtype).requires_grad_(needs_grad)
    wide = dtype == torch.float64
    gamma = torch.randn(ROWS[1:], dtype=dtype if wide else None).requires_grad_(needs_grad)
    operator, args, kwargs = call(x, gamma, torch.randn(ROWS).to(dtype), OPS.rms_norm(x, gamma)[1])
    result = torch.library.opcheck(operator, args, kwargs, test_utils=test)
    assert result == {test: "SUCCESS"}


def test_meta_tensors_have_the_shapes_and_dtypes_of_real_ones():
    x = torch.empty(2, 3, 8, dtype=torch.bfloat16, device="meta")
    y, rstd = rmsnorm.npu_rms_norm(x, torch.empty(3, 8, device="meta"))
    assert (y.shape, y.dtype) == ((2, 3, 8), torch.bfloat16)
    assert (rstd.shape, rstd.dtype) == ((2, 1, 1), torch.float32)


@needs_pytorch("2.4", "fake tensors of a device that is not here")
def test_fake_tensors_stay_on_their_device():
    with FakeTensorMode():
        x, gamma = torch.empty(2, 8, device="cuda"), torch.empty(8, device="cuda")
        y, rstd = rmsnorm.npu_rms_norm(x, gamma)
        gradients = rmsnorm.npu_rms_norm_backward(y, x, gamma, rstd)
    assert {t.device.type for t in (y, rstd, *gradients)} == {"cuda"}


def trained(forward, x):
    """y and the gradients of x and of a norm's weight."""
    x = x.detach().requires_grad_()
    norm = rmsnorm.RMSNorm(x.shape[-1])
    y = forward(norm, x)
    y.square().sum().backward()
    return [y.detach(), x.grad, norm.weight.grad]


def expect_bits_of_no_checkpoint(**options):
    x = torch.randn(5, 600)
    plain = trained(lambda norm, x: norm(x.sin()), x)
    again = trained(lambda norm, x: checkpoint(lambda x: norm(x.sin()), x, **options), x)
    assert all(same_bits(*pair) for pair in zip(plain, again, strict=True))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_checkpoint_recomputes_the_bits(use_reentrant):
    expect_bits_of_no_checkpoint(use_reentrant=use_reentrant)


@pytest.mark.skipif(not hasattr(checkpoints, "SAC_IGNORED_OPS"), reason="needs PyTorch 2.4")
def test_a_checkpoint_that_keeps_y_has_the_same_bits():
    keep = functools.partial(
        checkpoints.create_selective_checkpoint_contexts, [OPS.rms_norm.default]
    )
    expect_bits_of_no_checkpoint(use_reentrant=False, context_fn=keep)


def test_a_norm_counts_no_flops_as_pytorchs_norms_do():
    def flops(norm):
        model = nn.Sequential(nn.Linear(8, 8), norm)
        with FlopCounterMode(display=False) as counter:
            model(torch.randn(4, 8)).sum().backward()
        return counter.get_total_flops()

    assert flops(rmsnorm.RMSNorm(8)) == flops(nn.LayerNorm(8)) > 0  # matrix products alone count


def test_the_profiler_shows_forward_and_backward_by_name():
    with torch.profiler.profile() as profile:
        rmsnorm.rms_norm(torch.randn(4, 8, requires_grad=True)).sum().backward()
    names = [event.name for event in profile.events()]
    assert "rmsnorm::rms_norm" in names and "rmsnorm::rms_norm_backward" in names


@NEEDS_THEIRS
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_on_the_cpu_does_what_it_does_to_pytorchs_norm(autocast, dtype):
    x = torch.randn(4, 96, dtype=dtype, device="cpu")
    with torch.autocast("cpu", dtype=autocast):
        y, theirs = rmsnorm.rms_norm(x), torch.rms_norm(x, (96,), None, 1e-6)
    assert same_bits(y, rmsnorm.rms_norm(x)) and y.dtype == theirs.dtype


@needs_pytorch("2.8", "autocast that treats torch.rms_norm as a whole")
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_autocast_on_cuda_gives_the_dtype_of_pytorchs_norm(dtype):
    torch.set_autocast_enabled(True)  # CUDA's, which torch.autocast leaves off without a GPU
    try:
        with FakeTensorMode():
            x = torch.empty(4, 96, dtype=dtype, device="cuda")
            y, theirs = rmsnorm.rms_norm(x), torch.rms_norm(x, (96,), None, 1e-6)
            asked = rmsnorm.rms_norm(x, out_dtype=dtype)
    finally:
        torch.set_autocast_enabled(False)
    assert y.dtype == theirs.dtype and asked.dtype == dtype


def test_deterministic_mode_changes_nothing():
    x = torch.randn(5, 600)
    plain = trained(lambda norm, x: norm(x), x)
    torch.use_deterministic_algorithms(True)
    try:
        assert all(
            same_bits(*pair)
            for pair in zip(trained(lambda norm, x: norm(x), x), plain, strict=True)
        )
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("copied", ["copy", "pickle", "saved"])
def test_a_copied_or_saved_module_is_the_module(copied):
    norm = rmsnorm.RMSNorm([2, 8], eps=1e-3, gamma_offset=1.0, rounding="before_gamma")
    nn.init.normal_(norm.weight)
    if copied == "copy":
        other = copy.deepcopy(norm)
    elif copied == "pickle":
        other = pickle.loads(pickle.dumps(norm))
    else:
        torch.save(norm, file := io.BytesIO())
        other = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    x = torch.randn(3, 2, 8).bfloat16()
    assert repr(other) == repr(norm) and same_bits(other(x).detach(), norm(x).detach())
    assert other.weight.data_ptr() != norm.weight.data_ptr()


def test_a_state_dict_loads_with_weights_only():
    norm, other = rmsnorm.RMSNorm(8), rmsnorm.RMSNorm(8)
    nn.init.normal_(norm.weight)
    torch.save(norm.state_dict(), file := io.BytesIO())
    other.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    assert same_bits(other.weight, norm.weight)


def test_a_module_on_meta_becomes_real(device):
    norm = rmsnorm.RMSNorm(8, device="meta", gamma_offset=1.0)
    assert norm(torch.empty(2, 8, device="meta")).device.type == "meta"
    norm.to_empty(device=device)
    norm.reset_parameters()
    x = torch.randn(2, 8)
    assert same_bits(norm(x).detach(), rmsnorm.rms_norm(x))


def test_no_rows_give_empty_outputs_and_a_gradient_of_zero():
    x = torch.randn(0, 3, 8, requires_grad=True)
    gamma = torch.randn(8, requires_grad=True)
    y = rmsnorm.rms_norm(x, gamma)
    y.sum().backward()
    assert y.shape == (0, 3, 8)
    assert torch.equal(gamma.grad, torch.zeros(8))


@needs_pytorch("2.4", "torch.nn.RMSNorm")
def test_module_has_the_state_dict_and_the_numbers_of_pytorchs():
    theirs = nn.RMSNorm([4, 8], eps=1e-5)
    nn.init.normal_(theirs.weight)
    norm = rmsnorm.RMSNorm([4, 8], eps=1e-5)
    norm.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 4, 8)
    torch.testing.assert_close(norm(x), theirs(x), rtol=2**-21, atol=0)
    assert repr(norm) == "RMSNorm((4, 8), eps=1e-05)"


@needs_pytorch("2.4", "torch.nn.RMSNorm")
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


EXAMPLES = [
    "compiled",
    "functional",
    "mapping",
    "module",
    pytest.param("compile_pass", marks=needs_pytorch("2.6", "passes that inductor's cache knows")),
    pytest.param("patch", marks=needs_pytorch("2.4", "torch.nn.RMSNorm")),
]


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_in_docstrings_print_what_they_say(name, device):
    if device != "cpu":
        pytest.skip("tensors elsewhere are printed with their device")
    if name == "mapping":
        pytest.importorskip("transformers")
    module = __import__(f"rmsnorm.{name}", fromlist=[name])
    result = doctest.testmod(module)
    assert result.attempted > 0 and result.failed == 0
