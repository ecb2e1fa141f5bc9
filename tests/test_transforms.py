"""torch.func, forward mode and vmap: the kernel's bits, float64's derivatives, or a clear error."""

import pytest
import torch
import torch.autograd.forward_ad as fwad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils._pytree import tree_flatten

import rmsnorm
from operands import formula, same_bits

OWN_VMAP = pytest.mark.skipif(
    not hasattr(torch.library, "register_vmap"),
    reason="needs PyTorch 2.5: before it, vmap of an operator is a loop of PyTorch's own",
)

SHAPE, GAMMA_SHAPE = (3, 2, 4), (2, 4)


def normalize(x, gamma):
    return rmsnorm.rms_norm(x, gamma)


def exact(x, gamma):
    return formula(x, gamma, 1e-6)


def cubes(norm):
    return lambda x, gamma: norm(x, gamma).pow(3).sum()


def penalty(norm):
    """A function of gradients of the norm, for derivatives of derivatives."""
    gradients = grad(cubes(norm), (0, 1))
    return lambda x, gamma: sum(part.sin().sum() for part in gradients(x, gamma))


def leaves(tree):
    return tree_flatten(tree)[0]


def wide(*shape):
    return torch.randn(shape, dtype=torch.float64)


# What to do with a norm, x and gamma, each in float64.
TRANSFORMS = {
    "grad": lambda norm, x, gamma: grad(cubes(norm), (0, 1))(x, gamma),
    "grad of x": lambda norm, x, gamma: grad(cubes(norm))(x, gamma),
    "grad of gamma": lambda norm, x, gamma: grad(cubes(norm), 1)(x, gamma),
    "vjp": lambda norm, x, gamma: vjp(norm, x, gamma)[1](x + 1),
    "jvp": lambda norm, x, gamma: jvp(norm, (x, gamma), (x.cos(), gamma.cos())),
    "jvp of x": lambda norm, x, gamma: jvp(lambda x: norm(x, gamma), (x,), (x.cos(),)),
    "jvp of gamma": lambda norm, x, gamma: jvp(lambda g: norm(x, g), (gamma,), (gamma.cos(),)),
    "jacrev": lambda norm, x, gamma: jacrev(norm, (0, 1))(x, gamma),
    "jacfwd": lambda norm, x, gamma: jacfwd(norm, (0, 1))(x, gamma),
    "grad of grad": lambda norm, x, gamma: grad(penalty(norm), (0, 1))(x, gamma),
    "jvp of grad": lambda norm, x, gamma: jvp(
        grad(cubes(norm), (0, 1)), (x, gamma), (x.cos(), gamma.cos())
    ),
    "grad of jvp": lambda norm, x, gamma: grad(
        lambda x, gamma: jvp(norm, (x, gamma), (x.cos(), gamma.cos()))[1].pow(3).sum(), (0, 1)
    )(x, gamma),
    "grad of grad of grad": lambda norm, x, gamma: grad(
        lambda x, gamma: sum(t.cos().sum() for t in grad(penalty(norm), (0, 1))(x, gamma)), (0, 1)
    )(x, gamma),
    "hessian": lambda norm, x, gamma: hessian(cubes(norm), (0, 1))(x, gamma),
    "jacrev of jacrev": lambda norm, x, gamma: jacrev(jacrev(cubes(norm), (0, 1)), (0, 1))(
        x, gamma
    ),
    "jacfwd of jacfwd": lambda norm, x, gamma: jacfwd(jacfwd(cubes(norm), (0, 1)), (0, 1))(
        x, gamma
    ),
    "vmap of grad": lambda norm, x, gamma: vmap(grad(cubes(norm), (0, 1)), (0, None))(x, gamma),
    "vmap of a hessian": lambda norm, x, gamma: vmap(hessian(cubes(norm), (0, 1)), (0, None))(
        x, gamma
    ),
    "grad of vmap": lambda norm, x, gamma: grad(cubes(vmap(norm, (0, None))), (0, 1))(x, gamma),
}


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_every_transform_has_the_derivatives_of_the_formula(transform):
    x, gamma = wide(*SHAPE), wide(*GAMMA_SHAPE)
    ours, theirs = (leaves(transform(norm, x, gamma)) for norm in (normalize, exact))
    for a, b in zip(ours, theirs, strict=True):
        assert b.abs().max() > 0.01
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("gamma_shape", [None, [4], [2, 4]], ids=str)
@pytest.mark.parametrize("rounding", ["once", "before_gamma"])
def test_gradcheck_accepts_forward_mode_of_the_norm_and_of_its_gradient(gamma_shape, rounding):
    gamma = () if gamma_shape is None else (wide(*gamma_shape).requires_grad_(),)
    operands = (wide(*SHAPE).requires_grad_(), *gamma)

    def norm(*operands):
        return rmsnorm.rms_norm(*operands, gamma_offset=len(gamma), rounding=rounding)

    assert torch.autograd.gradcheck(norm, operands, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(norm, operands, check_fwd_over_rev=True)


@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)], ids=str)
def test_gradcheck_accepts_the_backward_operator(wanted):
    dy, x, gamma = (wide(*shape).requires_grad_() for shape in (SHAPE, SHAPE, GAMMA_SHAPE))

    def backward(dy, x, gamma):  # rstd is a function of x, so the finite differences see it move
        rstd = torch.ops.rmsnorm.rms_norm(x, gamma)[1].detach()
        results = torch.ops.rmsnorm.rms_norm_backward(dy, x, gamma, rstd, 1.0, wanted)
        return tuple(result for result, asked in zip(results, wanted, strict=True) if asked)

    assert torch.autograd.gradcheck(backward, (dy, x, gamma), check_forward_ad=True)


def test_forward_and_reverse_mode_of_one_tensor_go_together():
    x, gamma = wide(*SHAPE), wide(*GAMMA_SHAPE)

    def both(norm):
        primals = [t.clone().requires_grad_() for t in (x, gamma, x.cos(), gamma.cos())]
        with fwad.dual_level():
            y = norm(*(fwad.make_dual(primals[i], primals[i + 2]) for i in (0, 1)))
            y, tangent = fwad.unpack_dual(y)
            reverse = torch.autograd.grad(tangent.pow(3).sum(), primals, retain_graph=True)
            gradients = torch.autograd.grad(y.pow(3).sum(), primals[:2], create_graph=True)
            duals = [fwad.unpack_dual(gradient).tangent for gradient in gradients]
            return [*reverse, *duals]

    for a, b in zip(both(normalize), both(exact), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_transforms_have_the_bits_of_the_kernels(dtype):
    x, gamma, dy = torch.randn(4, 600).to(dtype), torch.randn(600), torch.randn(4, 600).to(dtype)
    y, rstd = rmsnorm.npu_rms_norm(x, gamma)
    expected = rmsnorm.npu_rms_norm_backward(dy, x, gamma, rstd)
    forward, pull = vjp(normalize, x, gamma)
    assert all(same_bits(*pair) for pair in zip((forward, *pull(dy)), (y, *expected), strict=True))
    primal, tangent = jvp(normalize, (x, gamma), (dy, gamma))
    assert same_bits(primal, y) and tangent.dtype == dtype
    twice = jvp(lambda x: vjp(normalize, x, gamma)[1](dy)[0], (x,), (dy,))
    assert same_bits(twice[0], expected[0]) and twice[1].dtype == dtype


@OWN_VMAP
@pytest.mark.parametrize("rounding", ["once", "before_gamma"])
@pytest.mark.parametrize("dims", [(0, None), (1, None), (2, 0), (None, 1)], ids=str)
def test_vmap_has_the_bits_of_a_loop(dims, rounding):
    x = torch.randn(3, 5, 96) if dims[0] is None else torch.randn(3, 5, 96).movedim(0, dims[0])
    gamma = torch.randn(96) if dims[1] is None else torch.randn(3, 96).movedim(0, dims[1])

    def step(x, gamma, dy):
        y, pull = vjp(lambda *t: rmsnorm.rms_norm(*t, rounding=rounding), x.bfloat16(), gamma)
        return y, *pull(dy.bfloat16())

    dy = torch.randn(3, 3, 5, 96) if dims[0] is None else torch.randn(3, 5, 96)
    batched = vmap(step, (*dims, 0))(x, gamma, dy)
    for i in range(3):
        sample = [t if d is None else t.select(d, i) for t, d in zip((x, gamma), dims, strict=True)]
        expected = step(*sample, dy[i])
        assert all(same_bits(a[i], b) for a, b in zip(batched, expected, strict=True))


@OWN_VMAP
def test_vmap_over_a_shared_gamma_is_one_call_of_the_kernel():
    x, gamma = torch.randn(7, 3, 96), torch.randn(96)
    with torch.profiler.profile() as profile:
        vmap(normalize, (0, None))(x, gamma)
    calls = [event.name for event in profile.events() if event.name == "rmsnorm::rms_norm"]
    assert len(calls) == 2  # vmap's own, and the one within it


@OWN_VMAP
def test_nested_vmaps_have_the_bits_of_loops():
    x, gamma = torch.randn(2, 3, 4, 96), torch.randn(3, 96)
    y = vmap(vmap(normalize, (0, None)), (1, 0), 1)(x, gamma)
    for i in range(3):
        assert same_bits(y[:, i], normalize(x[:, i], gamma[i]))


@OWN_VMAP
def test_vmap_takes_no_batch_for_a_part_of_the_row():
    with pytest.raises(ValueError, match="x: 0 dimensions"):
        vmap(rmsnorm.rms_norm)(torch.randn(4))
    with pytest.raises(ValueError, match=r"gamma: shape \[5, 4\] is not the tail of x's \[4\]"):
        vmap(lambda x: normalize(x, torch.ones(5, 4)))(torch.randn(5, 4))


@OWN_VMAP
def test_a_batch_of_no_samples_works_or_is_refused():
    x = torch.randn(0, 3, 8)
    assert vmap(normalize, (0, None))(x, torch.ones(8)).shape == (0, 3, 8)
    with pytest.raises(ValueError, match="a batch of 0 samples; expected 1 or more"):
        vmap(grad(cubes(normalize), (0, 1)), (0, None))(x, torch.ones(8))


def test_what_has_no_derivative_says_so():
    x = torch.randn(4, 8)
    ones, rstd = torch.ones(8), torch.ones(4, 1)

    def into(x):
        return rmsnorm.rms_norm(x, out=torch.empty(4, 8))

    def by_rstd(rstd):
        return torch.ops.rmsnorm.rms_norm_backward(x, x, ones, rstd)[0].sum()

    with pytest.raises(NotImplementedError, match="x: has a tangent; rms_norm with out="):
        jvp(into, (x,), (x,))
    with pytest.raises(RuntimeError, match="out: rms_norm with out= has no gradient"):
        grad(lambda x: into(x).sum())(x)
    with pytest.raises(NotImplementedError, match="rstd: has a tangent; it is a function of x"):
        jvp(by_rstd, (rstd,), (rstd,))
    with pytest.raises(RuntimeError, match="rstd: requires a gradient; it is a function of x"):
        grad(by_rstd)(rstd)
    with pytest.raises(RuntimeError, match="rmsnorm::rms_norm_out"):
        vmap(into)(torch.randn(3, 4, 8))


def test_a_module_has_gradients_for_each_sample():
    norm, x = rmsnorm.RMSNorm(8), torch.randn(5, 3, 8)
    weights = dict(norm.named_parameters())

    def loss(weights, x):
        return torch.func.functional_call(norm, weights, (x,)).square().sum()

    each = vmap(grad(loss), (None, 0))(weights, x)["weight"]
    for i in range(5):
        (expected,) = torch.autograd.grad(norm(x[i]).square().sum(), norm.weight)
        assert same_bits(each[i], expected)


@pytest.mark.skipif(
    not hasattr(torch.library, "register_vmap"),
    reason="needs PyTorch 2.5: torch.compile of torch.func.jvp",
)
def test_compiled_transforms_have_the_bits_of_eager():
    x, gamma = torch.randn(4, 3, 96), torch.randn(96)
    for transform in (
        vmap(grad(cubes(normalize), (0, 1)), (0, None)),
        lambda x, gamma: jvp(grad(cubes(normalize), (0, 1)), (x, gamma), (x, gamma)),
    ):
        compiled = torch.compile(transform, fullgraph=True, backend="aot_eager")
        ours, eager = (leaves(call(x, gamma)) for call in (compiled, transform))
        assert all(same_bits(*pair) for pair in zip(ours, eager, strict=True))
