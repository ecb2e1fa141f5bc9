"""Devices without kernels of ours: the composite, and a stand-in for an NPU with torch_npu."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import accuracy
import rmsnorm
from operands import DTYPES, SHAPES, bits, gamma_shapes, needs_pytorch, random_operands, same_bits
from rmsnorm import composite, doctor
from test_errors import BACKWARD, FORWARD, GAMMA, KEYWORDS, X, expect_refusal

OPS, FLOAT = torch.ops.rmsnorm, torch.float32
TESTS = Path(__file__).parent
needs_standin = pytest.mark.skipif(
    not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="needs a PyTorch after 2.8, where Python can make a device",
)


class AnyOrder(accuracy.Bounds):
    """Of the formula with sums in any order, where a term meets each addition at worst; no fma."""

    @property
    def dot(self):
        return self.n

    @property
    def dx(self):
        return super().dx + 1

    @property
    def dgamma(self):
        return self.rstd + 1 + self.rows


class Composite(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, gamma):
        y, rstd = composite.rms_norm(x, gamma, accuracy.EPSILON)
        ctx.save_for_backward(x, gamma, rstd)
        ctx.mark_non_differentiable(rstd)
        return y, rstd

    @staticmethod
    def backward(ctx, dy, _):
        return composite.rms_norm_backward(dy, *ctx.saved_tensors)


def ulps(a, b):
    """The largest distance of two tensors in units in the last place; NaN is as far as NaN."""
    assert (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())
    assert torch.equal(a.isnan(), b.isnan())
    ordered = []
    for integers in (bits(a.nan_to_num()).long(), bits(b.nan_to_num()).long()):
        sign = 1 << (8 * a.element_size() - 1)
        ordered.append(torch.where(integers < 0, -sign - integers, integers))
    return (ordered[0] - ordered[1]).abs().max().item() if a.numel() else 0


@pytest.mark.parametrize("shape", [(1, 1), (40, 7), (17, 513), (5, 4097), (1000, 100)], ids=str)
@pytest.mark.parametrize("quantity", accuracy.QUANTITIES)
def test_errors_are_within_the_bounds_of_any_order_of_the_sums(shape, quantity):
    error = accuracy.errors(Composite.apply, *shape)[quantity]
    assert error <= (1 + 2**-10) * getattr(AnyOrder(*shape), quantity)


@pytest.mark.parametrize("x_dtype", [*DTYPES, torch.float64], ids=str)
def test_results_are_within_units_in_the_last_place_of_the_kernels(x_dtype):
    wide = x_dtype == torch.float64
    for shape in SHAPES[:-1]:
        for gamma_shape in gamma_shapes(shape):
            for gamma_dtype in (torch.float64,) if wide else DTYPES:
                x, gamma, _ = random_operands(shape, gamma_shape, (x_dtype, gamma_dtype))
                for options in ((0.0, "once", None), (1.0, "once", gamma_dtype if wide else FLOAT)):
                    y, rstd = composite.rms_norm(x, gamma, 1e-6, *options)
                    own_y, own_rstd = OPS.rms_norm(x, gamma, 1e-6, *options)
                    assert ulps(rstd, own_rstd) <= 4
                    assert ulps(y, own_y) <= (8 if y.element_size() > 2 else 1)


@pytest.mark.parametrize("x_dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("out_dtype", [None, FLOAT], ids=str)
def test_before_gamma_differs_from_the_kernels_by_flipped_roundings_at_most(x_dtype, out_dtype):
    x, gamma, _ = random_operands([64, 768], [768], (x_dtype, torch.float32))
    options = 1e-6, 0.0, "before_gamma", out_dtype
    y, own_y = (norm(x, gamma, *options)[0] for norm in (composite.rms_norm, OPS.rms_norm))
    once = composite.rms_norm(x, gamma, 1e-6, 0.0, "once", out_dtype)[0]
    eps = torch.finfo(x_dtype).eps
    torch.testing.assert_close(y, own_y, rtol=2 * eps, atol=2**-24)
    assert (y == own_y).float().mean() > 0.99 > (y == once).float().mean()


# One value for all, in one place of a row of zeros, and beside 1: where the sum of squares is 0,
# subnormal, infinite, or on the edge of the ranges in which it is taken again.
HARD = [1e20, 3e38, 2.0**64, 2.0**63, 2.0**-44, 2.0**-45, 2.0**-46, 1e-20, 1e-30, 1e-38, 1e-45]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("epsilon", [0.0, 1e-40, 1e-30, 1e-6, 3e38])
def test_finite_rows_are_as_near_where_squares_leave_the_range_of_float32(dtype, epsilon):
    for n in (1, 3, 64, 4096):
        for value in HARD:
            x = torch.zeros(3, n)
            x[0] = value * torch.linspace(-1, 1, n + 1)[1:]
            x[1, n // 2] = value
            x[2] = torch.where(torch.arange(n) % 2 == 0, value, 1.0)
            x = x.to(dtype)
            results = composite.rms_norm(x, None, epsilon)
            expected = OPS.rms_norm(x, None, epsilon)
            for result, wanted in zip(results, expected, strict=True):
                assert ulps(result, wanted) <= 4, (n, value)


INFINITY, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    "row", [[0, 0, 0], [INFINITY, 1, 2], [-INFINITY, INFINITY, 0], [NAN, 1, 2], [INFINITY, NAN, 0]]
)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_nan_and_infinity_go_where_the_formula_sends_them(row, dtype):
    x, gamma = torch.tensor([row, [1, 2, 3]], dtype=dtype), torch.ones(3, dtype=dtype)
    outputs = composite.rms_norm(x, gamma, 0.0)
    outputs += composite.rms_norm_backward(x, x, gamma, outputs[1])
    expected = OPS.rms_norm(x, gamma, 0.0)
    expected += OPS.rms_norm_backward(x, x, gamma, expected[1])
    for result, wanted in zip(outputs, expected, strict=True):
        torch.testing.assert_close(result, wanted, equal_nan=True, rtol=1e-2, atol=1e-6)


def test_no_rows_and_one_axis_give_a_dgamma_of_gammas_shape():
    for shape in ([0, 8], [8]):
        x, gamma = torch.ones(shape), torch.ones(8)
        y, rstd = composite.rms_norm(x, gamma)
        dx, dgamma = composite.rms_norm_backward(x, x, gamma, rstd)
        assert (y.shape, dx.shape, dgamma.shape) == (x.shape, x.shape, (8,))
        assert torch.allclose(dgamma, torch.full([8], float(x.numel() > 0)))


def test_outputs_are_contiguous_as_the_compiler_was_told():
    x = torch.randn(4, 96, 3).transpose(1, 2)
    for outputs in (
        composite.rms_norm(x, torch.ones(3, 96), 1e-6),
        composite.rms_norm_backward(x, x, torch.ones(96), torch.ones(3, 4).t()[..., None]),
    ):
        assert all(output.is_contiguous() for output in outputs)


@needs_pytorch("2.3", "a graph of the composite for every batch")
def test_a_compiler_traces_the_composite_once_for_every_batch():
    def forward_and_backward(x, gamma, dy):
        y, rstd = composite.rms_norm(x, gamma, 1e-6, 1.0, "before_gamma")
        return y, *composite.rms_norm_backward(dy, x, gamma, rstd, 1.0)

    compiled = torch.compile(
        forward_and_backward, fullgraph=True, dynamic=True, backend="aot_eager"
    )
    with torch._dynamo.config.patch(error_on_recompile=True):
        for rows in (3, 5, 8):
            operands = torch.randn(rows, 48), torch.randn(48), torch.randn(rows, 48)
            expected = forward_and_backward(*operands)
            assert all(same_bits(a, b) for a, b in zip(compiled(*operands), expected, strict=True))


# Overlap is no error to the composite, which completes y before it writes it.
REFUSED = {
    **{name: (composite.rms_norm, *case) for name, case in FORWARD.items()},
    **{name: (composite.rms_norm_backward, *case) for name, case in BACKWARD.items()},
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_the_composite_refuses_what_the_kernels_refuse(case):
    function, args, message = case
    gamma = (None,) if len(args) == 1 else ()
    expect_refusal(message.split(" ", 1)[0], function, *args, *gamma)


NUMBERS = ["negative epsilon", "NaN epsilon", "infinite epsilon", "epsilon beyond float32"]


@pytest.mark.parametrize("name", [*NUMBERS, "x without columns"])
def test_the_composite_refuses_numbers_in_the_kernels_words(name):
    args, message = FORWARD[name]
    expect_refusal(message, composite.rms_norm, *args)


@pytest.mark.parametrize(
    "name", [name for name in KEYWORDS if "overlap" not in name and "against" not in name]
)
def test_the_composite_refuses_options_like_the_kernels(name):
    options, message = KEYWORDS[name]
    gamma = options.get("gamma", GAMMA)
    function = composite.rms_norm_out if "out" in options else composite.rms_norm
    options = {key: value for key, value in options.items() if key != "gamma"}
    expect_refusal(message.split(";")[0].split(":")[0], function, X, gamma, **options)


KINDS = {
    "sparse": (lambda: X.to_sparse(), "torch.sparse_coo"),
    "nested": (lambda: torch.nested.nested_tensor([X, X[:3]]), "nested"),
}


@pytest.mark.filterwarnings("ignore")  # nested tensors are a prototype
@pytest.mark.parametrize("kind", KINDS)
def test_sparse_and_nested_tensors_are_refused_by_what_is_accepted(kind):
    make, layout = KINDS[kind]
    message = f"layout {layout}; expected torch.strided"
    expect_refusal(f"x: {message}", rmsnorm.rms_norm, make(), GAMMA)
    expect_refusal(f"gamma: {message}", rmsnorm.rms_norm, X, make())
    expect_refusal(f"out: {message}", rmsnorm.rms_norm, X, out=make())


def test_the_first_argument_of_npu_rms_norm_is_self_or_input():
    expected = rmsnorm.npu_rms_norm(X, GAMMA, 1e-3)
    for outputs in (
        rmsnorm.npu_rms_norm(input=X, gamma=GAMMA, epsilon=1e-3),
        rmsnorm.npu_rms_norm(self=X, gamma=GAMMA, epsilon=1e-3),
    ):
        assert all(same_bits(a, b) for a, b in zip(outputs, expected, strict=True))
    for args, kwargs in (((X,), {}), ((), {"gamma": GAMMA}), ((X, GAMMA), {"input": X})):
        with pytest.raises(TypeError, match="either self or input"):
            rmsnorm.npu_rms_norm(*args, **kwargs)


def test_doctor_names_our_kernels():
    problems = []
    assert doctor.devices(problems)["cpu"] == "our kernels" and problems == []


def run(*command: str) -> None:
    """In a process of its own: PyTorch has one such device for the whole of a process."""
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *command],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_standin
def test_an_npu_computes_by_torch_npus_operators():
    run("-m", "pytest", "-q", "-p", "no:cacheprovider", str(TESTS / "on_npu.py"))


OTHER_VENDOR = """
import torch, rmsnorm, standin
standin.register("other")
standin.define_operators()
x, gamma = torch.randn(3, 96), torch.randn(96)
y, rstd = rmsnorm.npu_rms_norm(x.to("other"), gamma.to("other"))
rmsnorm.npu_rms_norm_backward(y, x.to("other"), gamma.to("other"), rstd)
assert y.device.type == "other" and standin.calls == []
torch.testing.assert_close(standin.on_cpu(y), rmsnorm.rms_norm(x, gamma))
"""


@needs_standin
def test_the_device_of_another_vendor_computes_by_the_composite():
    run("-c", OTHER_VENDOR)
