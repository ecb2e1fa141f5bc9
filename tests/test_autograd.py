"""Gradients: against float64 autograd of the formula, twice, and refused where there is none."""

import pytest
import torch

import rmsnorm
from operands import DTYPES, dtype_pairs, formula, same_bits

pytestmark = pytest.mark.usefixtures("device")

# Units in the last place of one rounding to each dtype, as a relative error.
ROUNDING = {torch.float32: 2**-24, torch.float16: 2**-11, torch.bfloat16: 2**-8}


def norm_wise(actual: torch.Tensor, exact: torch.Tensor) -> float:
    return ((actual.double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("dtypes", dtype_pairs(), ids=str)
@pytest.mark.parametrize("shape", [[7], [2, 64], [5, 513], [2, 3, 4096]], ids=str)
@pytest.mark.parametrize("gamma_offset", [0.0, 1.0])
def test_gradients_are_those_of_float64_autograd(shape, dtypes, gamma_offset):
    x = torch.randn(shape).to(dtypes[0]).requires_grad_()
    gamma = torch.randn(shape[-1:]).to(dtypes[1]).requires_grad_()
    dy = torch.randn(shape).to(dtypes[0])
    rmsnorm.rms_norm(x, gamma, gamma_offset=gamma_offset).backward(dy)
    wide_x, wide_gamma = (t.detach().double().requires_grad_() for t in (x, gamma))
    formula(wide_x, wide_gamma, 1e-6, gamma_offset).backward(dy.double())
    assert x.grad.dtype == x.dtype and gamma.grad.dtype == gamma.dtype
    # One rounding of the result, and of float32 arithmetic: rstd (at most 12 ulp), c and 5 more.
    for grad, exact, own in ((x.grad, wide_x.grad, x), (gamma.grad, wide_gamma.grad, gamma)):
        assert norm_wise(grad, exact) <= ROUNDING[own.dtype] + 40 * 2**-24


@pytest.mark.parametrize("gamma_shape", [None, [5], [4, 5], [3, 4, 5]], ids=str)
def test_rows_may_span_several_axes_or_have_no_gamma(gamma_shape):
    x = torch.randn(3, 4, 5, requires_grad=True)
    gamma = None if gamma_shape is None else torch.randn(gamma_shape, requires_grad=True)
    y = rmsnorm.rms_norm(x, gamma)
    wide = x.detach().double().requires_grad_()
    exact = formula(wide, None if gamma is None else gamma.detach().double(), 1e-6)
    y.sum().backward()
    exact.sum().backward()
    assert norm_wise(y, exact) <= 2**-20
    assert (x.grad - wide.grad).abs().max() <= 2**-20 * wide.grad.abs().max() + 2**-20


def test_only_what_is_needed_is_computed():
    x = torch.randn(4, 8)
    gamma = torch.ones(8, requires_grad=True)
    rmsnorm.rms_norm(x, gamma).sum().backward()
    assert x.grad is None and gamma.grad is not None
    x.requires_grad_()
    rmsnorm.rms_norm(x, gamma.detach()).sum().backward()
    assert x.grad is not None


def test_rstd_is_not_differentiable():
    _, rstd = rmsnorm.npu_rms_norm(torch.randn(4, 8, requires_grad=True), torch.ones(8))
    assert not rstd.requires_grad


@pytest.mark.parametrize("gamma_shape", [[6], [3, 6]], ids=str)
def test_second_derivatives_are_those_of_float64_autograd(gamma_shape):
    x = torch.randn(4, 3, 6, requires_grad=True)
    gamma = torch.randn(gamma_shape, requires_grad=True)
    dy = torch.randn(4, 3, 6, requires_grad=True)
    mix = torch.randn(4, 3, 6)

    def second(normalize, x, gamma, dy, mix):
        dx, dgamma = torch.autograd.grad(normalize(x, gamma), (x, gamma), dy, create_graph=True)
        return torch.autograd.grad((dx * mix).sum() + dgamma.square().sum(), (x, gamma, dy))

    ours = second(rmsnorm.rms_norm, x, gamma, dy, mix)
    wide = [t.detach().double().requires_grad_() for t in (x, gamma, dy)]
    exact = second(lambda x, gamma: formula(x, gamma, 1e-6), *wide, mix.double())
    for a, b in zip(ours, exact, strict=True):
        assert norm_wise(a, b) <= 2**-18


@pytest.mark.parametrize("create_graph", [False, True])
def test_derivatives_of_a_loss_stay_right_where_dy_depends_on_x(create_graph):
    x, gamma = torch.randn(4, 6, requires_grad=True), torch.randn(6, requires_grad=True)

    def penalty(normalize, x, gamma):
        loss = normalize(x, gamma).pow(3).sum()
        gradients = torch.autograd.grad(loss, (x, gamma), create_graph=True)
        norm = sum(gradient.square().sum() for gradient in gradients)
        second = torch.autograd.grad(norm, (x, gamma), create_graph=create_graph)
        if not create_graph:
            return second
        third = sum(gradient.pow(2).sum() for gradient in second)
        return (*second, *torch.autograd.grad(third, (x, gamma)))

    ours = penalty(rmsnorm.rms_norm, x, gamma)
    wide = [t.detach().double().requires_grad_() for t in (x, gamma)]
    exact = penalty(lambda x, gamma: formula(x, gamma, 1e-6), *wide)
    for a, b in zip(ours, exact, strict=True):
        assert norm_wise(a, b) <= 2**-16


@pytest.mark.parametrize("gamma_shape", [None, [5], [2, 5]], ids=str)
@pytest.mark.parametrize("rounding", ["once", "before_gamma"])
def test_gradcheck_in_float64_accepts_first_and_second_derivatives(gamma_shape, rounding):
    x = torch.randn(3, 2, 5, dtype=torch.float64, requires_grad=True)
    gamma = None
    if gamma_shape is not None:
        gamma = torch.randn(gamma_shape, dtype=torch.float64, requires_grad=True)

    def normalize(*operands):
        return rmsnorm.rms_norm(*operands, gamma_offset=gamma is not None, rounding=rounding)

    operands = (x,) if gamma is None else (x, gamma)
    assert torch.autograd.gradcheck(normalize, operands)
    assert torch.autograd.gradgradcheck(normalize, operands)


def test_gradcheck_in_float64_accepts_a_model_with_our_norm():
    norm = rmsnorm.RMSNorm(6, dtype=torch.float64)
    model = torch.nn.Sequential(torch.nn.Linear(4, 6, dtype=torch.float64), norm, torch.nn.Tanh())
    assert torch.autograd.gradcheck(model, torch.randn(3, 4, dtype=torch.float64).requires_grad_())


def test_float64_is_computed_in_float64():
    x = torch.randn(4, 600, dtype=torch.float64)
    gamma = torch.randn(600, dtype=torch.float64)
    y, rstd = rmsnorm.npu_rms_norm(x, gamma)
    assert rstd.dtype == torch.float64
    torch.testing.assert_close(y, formula(x, gamma, 1e-6), rtol=1e-14, atol=0)
    meta_y, meta_rstd = rmsnorm.npu_rms_norm(x.to("meta"), gamma.to("meta"))
    assert meta_y.dtype == meta_rstd.dtype == torch.float64


def test_a_hessian_is_that_of_float64():
    x, gamma = torch.randn(2, 3), torch.randn(3)
    ours = torch.autograd.functional.hessian(lambda x: rmsnorm.rms_norm(x, gamma).pow(3).sum(), x)
    exact = torch.autograd.functional.hessian(
        lambda x: formula(x, gamma.double(), 1e-6).pow(3).sum(), x.double()
    )
    assert norm_wise(ours, exact) <= 2**-16


def test_a_first_derivative_has_the_same_bits_with_and_without_a_graph_of_its_own():
    x = torch.randn(4, 600, requires_grad=True)
    gamma = torch.randn(600, requires_grad=True)
    y = rmsnorm.rms_norm(x, gamma)
    dy = torch.randn_like(y)
    plain = torch.autograd.grad(y, (x, gamma), dy, retain_graph=True)
    graphed = torch.autograd.grad(y, (x, gamma), dy, create_graph=True)
    assert all(same_bits(a, b.detach()) for a, b in zip(plain, graphed, strict=True))


def test_npu_rms_norm_backward_is_the_gradient_of_npu_rms_norm():
    x = torch.randn(5, 77, requires_grad=True)
    gamma = torch.randn(77, requires_grad=True)
    y, rstd = rmsnorm.npu_rms_norm(x, gamma)
    dy = torch.randn_like(y)
    expected = torch.autograd.grad(y, (x, gamma), dy)
    actual = rmsnorm.npu_rms_norm_backward(dy, x.detach(), gamma.detach(), rstd)
    assert all(same_bits(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize("changed", ["x", "gamma"])
def test_a_change_between_forward_and_backward_is_pytorchs_error(changed):
    leaves = {"x": torch.randn(4, 8, requires_grad=True), "gamma": torch.ones(8).requires_grad_()}
    used = {name: leaf * 1 for name, leaf in leaves.items()}
    y = rmsnorm.rms_norm(used["x"], used["gamma"])
    with torch.no_grad():
        used[changed].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_writing_into_out_counts_as_a_change_of_it():
    x = torch.randn(4, 8)
    out = torch.empty(4, 8)
    product = torch.ones(4, 8, requires_grad=True) * out
    rmsnorm.rms_norm(x, out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


def test_writing_into_out_counts_as_a_change_in_inference_mode_too():
    out = torch.empty(4, 8)
    product = torch.ones(4, 8, requires_grad=True) * out
    with torch.inference_mode():
        rmsnorm.rms_norm(torch.randn(4, 8), out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


def test_out_with_a_gradient_is_refused():
    x = torch.randn(4, 8, requires_grad=True)
    with pytest.raises(RuntimeError, match="out: rms_norm with out= has no gradient"):
        rmsnorm.rms_norm(x, out=torch.empty(4, 8))
    with torch.no_grad():
        rmsnorm.rms_norm(x, out=torch.empty(4, 8))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_float64_error_of_rstd_is_within_the_bound_of_the_order(dtype):
    for n in (1, 7, 64, 513, 4096, 12288):
        x = torch.randn(64, n).to(dtype)
        _, rstd = rmsnorm.npu_rms_norm(x, torch.ones(n))
        epsilon = torch.tensor(1e-6).double()  # as float32 holds it
        exact = (x.double().square().mean(-1, keepdim=True) + epsilon).rsqrt()
        ulp = torch.nextafter(rstd, torch.tensor(torch.inf)) - rstd
        levels = torch.tensor(max(n, 512) / 512).log2().ceil().item()
        bound = (8 + 6 + levels + 5) / 2
        assert ((rstd.double() - exact).abs() / ulp).max() <= bound
