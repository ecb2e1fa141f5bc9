"""rmsnorm.compile_pass leaves what isn't a norm, and what stands around a norm, as it is."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import rmsnorm
from lookalikes import (
    IN_16_BITS,
    LOOKALIKES,
    READER_ONLY,
    arithmetic,
    behaviour,
    divisor,
    scale,
)
from norms import N, assert_close, distance, make
from operands import same_bits
from traced import EPSILON, GAMMA, Traced, inline


@pytest.fixture(autouse=True)
def _no_graphs_of_other_tests():
    yield
    torch._dynamo.reset()


# Each holds no RMSNorm of any tensor, or changes x in place after it. The others hold one, of
# another x, with another scale or epsilon, or with something after it: the graph says so exactly,
# and that part may be replaced.
WITHOUT_NORM = (
    divisor.SumNorm,
    divisor.UnbiasedNorm,
    divisor.PartialNorm,
    divisor.MeanAbsoluteNorm,
    divisor.LargestValueNorm,
    divisor.L2Norm,
    divisor.ScaledL2Norm,
    divisor.CubicNorm,
    divisor.CubeRootNorm,
    divisor.WrongPowerNorm,
    divisor.NoRootNorm,
    divisor.StandardDeviationNorm,
    divisor.FunctionalLayerNorm,
    divisor.OverRowsNorm,
    divisor.OverAxis1Norm,
    divisor.OverAllButTheFirstNorm,
    divisor.WeightUsedTwiceNorm,
    arithmetic.EpsilonOutsideNorm,
    arithmetic.EpsilonFloorNorm,
    arithmetic.EpsilonInTheSumNorm,
    arithmetic.EpsilonTwiceNorm,
    arithmetic.MeanSquareInBfloat16Norm,
    arithmetic.RsqrtOfBfloat16Norm,
    arithmetic.SquaresInBfloat16Norm,
    behaviour.StoppedAtTheRootNorm,
    behaviour.InPlaceNorm,
    behaviour.InPlaceSquareNorm,
)


def decades(dtype):
    """Rows whose mean squares go from 1 to 1e-12, so that epsilon shows."""
    return (torch.randn(4, 6, N) * 10 ** -torch.linspace(0, 6, 6)[:, None]).to(dtype)


def calls(look_alike, dtype):
    """A function that calls a new one, and its parameters."""
    norm = look_alike(N).to(dtype)
    torch.manual_seed(0)
    for parameter in norm.parameters():
        nn.init.normal_(parameter, mean=0.5)
    gated = look_alike is scale.GatedNorm
    return lambda x: norm(x, x) if gated else norm(x), list(norm.parameters())


def results_and_gradients(call, parameters, x):
    """y, what became of x, and the gradients of x and the parameters, where there are any."""
    own = x.clone().requires_grad_()
    changed = own * 1
    torch.manual_seed(1)
    y = call(changed)
    if not y.requires_grad:
        return [y, changed]
    dy = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape)
    return [y, changed, *torch.autograd.grad(y, [own, *parameters], dy, allow_unused=True)]


class TestLookAlikes:
    @pytest.mark.parametrize("look_alike", [*LOOKALIKES, *IN_16_BITS, *READER_ONLY])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_a_look_alike_is_left_or_holds_a_norm_and_computes_what_it_did(self, look_alike, dtype):
        x = decades(dtype)
        call, parameters = calls(look_alike, dtype)
        traced, got = Traced(call), []
        with contextlib.suppress(RuntimeError):  # x is needed and was changed in place
            got = results_and_gradients(traced, parameters, x)
        left = look_alike in WITHOUT_NORM or (
            look_alike in IN_16_BITS[:2] and dtype != torch.float32
        )
        assert traced.norms() == (0 if left else 1)
        if left:
            return
        expected = results_and_gradients(*calls(look_alike, dtype), x)
        for one, other in zip(got, expected, strict=True):
            assert (one is None) == (other is None)
            if one is not None and other.count_nonzero():
                assert one.dtype == other.dtype
                assert distance(one, other) < (1e-5 if dtype == torch.float32 else 0.01)

    @pytest.mark.parametrize("look_alike", IN_16_BITS[:2])
    def test_what_rounds_in_other_places_is_left_and_the_report_says_so(self, look_alike):
        traced = Traced(look_alike(N).bfloat16())
        traced(decades(torch.bfloat16))
        (reason,) = traced.compile_pass.left
        assert traced.norms() == 0 and "to bfloat16, where no form does" in reason


def mutates_x_inside(x, gamma):
    rstd = torch.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON)
    x.mul_(2)
    return x * rstd * gamma


def mutates_an_alias_of_x_inside(x, gamma):
    wide = x.float()
    rstd = torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPSILON)
    x[0] = 3
    return wide * rstd * gamma


def mutates_x_after(x, gamma):
    y = inline(x, gamma)
    x.view(-1)[:3] += 1
    return y


def mutates_gamma_after(x, gamma):
    gamma = gamma * 2
    y = F.rms_norm(x, [N], gamma)
    gamma.mul_(2)
    return y


def mutates_rstd(x, gamma):
    rstd = torch.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON)
    rstd += 1
    return x * rstd * gamma


def writes_into_out(x, gamma):
    square = x.square()
    torch.mul(x, x, out=square)
    return x * torch.rsqrt(square.mean(-1, keepdim=True) + EPSILON) * gamma


def clamps_in_place(x, gamma):
    rstd = torch.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON)
    F.relu(x, inplace=True)
    return x * rstd * gamma


def stops_the_gradient_inside(x, gamma):
    with torch.no_grad():
        rstd = torch.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON)
    return x * rstd * gamma


def autocasts(x, gamma):
    with torch.autocast("cpu"):
        return inline(x, gamma)


def autocasts_inside(x, gamma):
    with torch.autocast("cpu"):
        rstd = torch.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON)
    return x * rstd * gamma


def in_float64(x, gamma):
    return inline(x.double(), gamma.double())


def with_a_gamma_for_each_row(x, gamma):
    return x * (torch.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON) * x[:, :1])


def divides_by_zero(x, gamma):
    return x / (x.square().mean(-1, keepdim=True) * 0)


def with_a_negative_epsilon(x, gamma):
    return inline(x, gamma, -1e-6)


LEFT = {
    mutates_x_inside: "has mul_ between its operations",
    mutates_an_alias_of_x_inside: "has setitem between its operations",
    mutates_x_after: "is changed in place later",
    mutates_gamma_after: "is changed in place later",
    mutates_rstd: "computes something other than x times rstd",
    writes_into_out: "has mul between its operations",
    clamps_in_place: "between its operations",
    stops_the_gradient_inside: "has _set_grad_enabled between its operations",
    autocasts: "is in a block of torch.autocast",
    autocasts_inside: "has _exit_autocast between its operations",
    in_float64: "x is float64",
    with_a_gamma_for_each_row: "takes a part of a tensor",
    divides_by_zero: "a power that it has not",
    with_a_negative_epsilon: "spans other axes",
}


class TestLeft:
    @pytest.mark.parametrize("function", LEFT, ids=lambda function: function.__name__)
    def test_what_is_changed_or_computed_otherwise_is_left_with_its_reason(self, function):
        x = torch.randn(5, N)
        expected = function(x.clone(), GAMMA)
        traced = Traced(function)
        assert same_bits(traced(x.clone(), GAMMA).nan_to_num(), expected.nan_to_num())
        assert traced.norms() == 0 and LEFT[function] in str(traced.compile_pass)

    def test_a_step_that_was_traced_in_another_dtype_than_it_should_have_is_left(self):
        compile_pass = rmsnorm.compile_pass()

        def backend(module, inputs):
            (step,) = (node for node in module.graph.nodes if node.name == "rsqrt")
            seen = step.meta["example_value"]
            with seen.fake_mode:
                step.meta["example_value"] = seen.double()
            compile_pass(module.graph)
            return module

        torch._dynamo.reset()
        torch.compile(lambda x: inline(x), backend=backend)(torch.randn(5, N))
        assert not compile_pass.replaced
        assert list(compile_pass.left) == ["has an unusual dtype or shape in rsqrt"]

    def test_a_hook_on_a_part_of_the_norm_is_run_with_its_whole_gradient(self):
        def hooked(x):
            xhat = inline(x)  # is replaced, and not y
            y = xhat * GAMMA
            xhat.register_hook(lambda gradient: 2 * gradient)
            return y

        x = torch.randn(5, N, requires_grad=True)
        with torch._dynamo.config.patch(compiled_autograd=True):
            traced = Traced(hooked)
            (got,) = torch.autograd.grad(traced(x).sum(), x)
        assert distance(got, torch.autograd.grad(hooked(x).sum(), x)[0]) < 1e-6
        assert traced.norms() == 1

    @pytest.mark.parametrize(
        "transform",
        [
            torch.func.vmap,
            lambda f: torch.func.grad(lambda x: f(x).sum()),
            lambda f: lambda x: torch.func.jvp(f, (x,), (x,))[1],
        ],
        ids=["vmap", "grad", "jvp"],
    )
    def test_the_inside_of_a_transform_is_left(self, transform):
        x = torch.randn(5, N)
        traced = Traced(transform(lambda x: inline(x, GAMMA)))
        assert_close(traced(x), transform(lambda x: inline(x, GAMMA))(x), torch.float32)
        assert traced.norms() == 0


class TestNeighbours:
    def test_changes_in_place_before_and_after_a_norm_keep_their_order(self):
        def changes(x, gamma, other):
            x.mul_(2)
            y = inline(x, gamma)
            other.add_(1)
            return y.mul_(3)

        x, other = torch.randn(5, N), torch.zeros(5, N)
        expected = 3 * rmsnorm.rms_norm(2 * x, GAMMA, EPSILON)
        traced = Traced(changes)
        assert same_bits(traced(x.clone(), GAMMA, other), expected) and traced.norms() == 1
        assert other.eq(1).all()

    def test_parts_of_a_norm_that_are_used_elsewhere_stay(self):
        def parts(x, gamma):
            wide = x.float()
            rstd = torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPSILON)
            return (wide * rstd * gamma).to(x.dtype), wide, rstd

        x = torch.randn(5, N).bfloat16()
        traced = Traced(parts)
        y, wide, rstd = traced(x, GAMMA)
        assert traced.norms() == 1
        assert same_bits(y, rmsnorm.rms_norm(x, GAMMA, EPSILON))
        assert same_bits(wide, x.float()) and same_bits(rstd, parts(x, GAMMA)[2])

    def test_a_norm_whose_x_times_rstd_is_used_too_is_two_norms(self):
        def two(x, gamma):
            xhat = inline(x)
            return xhat, xhat * gamma, xhat.abs()

        x = torch.randn(5, N)
        traced = Traced(two)
        xhat, y, absolute = traced(x, GAMMA)
        assert traced.norms() == 2 and traced.count("rsqrt") == 0
        assert same_bits(xhat, rmsnorm.rms_norm(x, None, EPSILON))
        assert same_bits(y, rmsnorm.rms_norm(x, GAMMA, EPSILON))
        assert same_bits(absolute, xhat.abs())

    def test_two_scales_of_one_x_are_two_norms(self):
        def two(x, gamma):
            xhat = inline(x)
            return xhat * gamma, xhat * (1 + gamma)

        x = torch.randn(5, N)
        traced = Traced(two)
        y, z = traced(x, GAMMA)
        assert traced.norms() == 2 and traced.count("rsqrt") == 0
        assert same_bits(y, rmsnorm.rms_norm(x, GAMMA, EPSILON))
        assert same_bits(z, rmsnorm.rms_norm(x, GAMMA, EPSILON, gamma_offset=1.0))

    def test_a_gamma_of_any_strides_will_do(self):
        x, wide = torch.randn(5, N), torch.randn(N, 2)
        for gamma in (wide[:, 1], wide[0, :1].expand(N)):
            traced = Traced(inline)
            assert same_bits(traced(x, gamma), rmsnorm.rms_norm(x, gamma, EPSILON))
            assert traced.norms() == 1

    def test_a_tensor_by_two_names_stays_one_tensor(self):
        def renamed(x):
            y = inline(x)
            same = y.to(x.dtype)
            same.mul_(2)
            return y, same

        x = torch.randn(5, N)
        traced = Traced(renamed)
        expected = 2 * rmsnorm.rms_norm(x, None, EPSILON)
        assert all(same_bits(each, expected) for each in traced(x)) and traced.norms() == 1

    def test_a_norm_of_a_norm_is_two(self):
        x = torch.randn(5, N)
        traced = Traced(lambda x: inline(inline(x, GAMMA), GAMMA))
        expected = rmsnorm.rms_norm(rmsnorm.rms_norm(x, GAMMA, EPSILON), GAMMA, EPSILON)
        assert same_bits(traced(x), expected) and traced.norms() == 2

    def test_a_norm_with_autocast_turned_off_around_it_is_replaced(self):
        def wide(x, gamma):
            with torch.autocast("cpu", enabled=False):
                return inline(x.float(), gamma)

        x = torch.randn(5, N).bfloat16()
        with torch.autocast("cpu"):
            traced = Traced(wide)
            y = traced(x, GAMMA)
        assert traced.norms() == 1
        assert same_bits(y, rmsnorm.rms_norm(x, GAMMA, EPSILON, out_dtype=torch.float32))

    def test_a_model_under_autocast_keeps_the_dtypes_that_it_gives(self):
        model = nn.Sequential(nn.Linear(N, N), make("llama"), nn.Linear(N, N))
        x = torch.randn(5, N)
        with torch.autocast("cpu"):
            traced = Traced(model)
            got, expected = traced(x), model(x)
        assert got.dtype == expected.dtype == torch.bfloat16
        assert distance(got, expected) < 0.01 and traced.norms() == 1

    def test_the_report_counts_the_norms_of_a_form_and_the_reasons(self):
        def several(x, gamma):
            y = inline(inline(x, gamma), gamma)
            return F.rms_norm(y, [N], eps=1e-5) + inline(y.double())

        traced = Traced(several)
        traced(torch.randn(5, N), GAMMA)
        assert str(traced.compile_pass).split("\n") == [
            "replaced 3 norms",
            "  2 × float32 -> float32, epsilon 1e-06, gamma_offset 0, rounding once",
            "  1 × float32 -> float32, epsilon 1e-05, gamma_offset 0, rounding once",
            "left 1 norm",
            "  1 × x is float64",
        ]
