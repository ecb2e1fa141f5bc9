"""Calls: what PyTorch may put between Python and the kernel sees every operator, on both paths."""

import sys
import threading
import time

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

import rmsnorm
from operands import needs_pytorch, same_bits
from rmsnorm import call

OP = torch.ops.rmsnorm.rms_norm.default
X, GAMMA = torch.linspace(-2, 3, 4 * 96).view(4, 96), torch.linspace(0.5, 2, 96)


class Intercepted(torch.Tensor):
    """A subclass that records what is called on it."""

    seen: list = []  # noqa: RUF012

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        cls.seen.append(function)
        return super().__torch_function__(function, types, args, kwargs or {})


class Wrapper(torch.Tensor):
    """A subclass that has no memory of its own: PyTorch's dispatcher hands every operator to it."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        inner = tree_map_only(Wrapper, lambda wrapper: wrapper.inner, (args, kwargs or {}))
        return tree_map_only(torch.Tensor, Wrapper, function(*inner[0], **inner[1]))


class Functions(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.seen.append(function)
        return function(*args, **(kwargs or {}))


class Operators(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(function)
        return function(*args, **(kwargs or {}))


NORMS = {
    "rms_norm": lambda x, gamma: rmsnorm.rms_norm(x, gamma),
    "npu_rms_norm": lambda x, gamma: rmsnorm.npu_rms_norm(x, gamma)[0],
}


@pytest.fixture(params=NORMS.values(), ids=NORMS)
def norm(request):
    return request.param


@pytest.mark.parametrize("intercepted", ["x", "gamma"])
def test_a_subclass_sees_the_operator(norm, intercepted):
    operands = {"x": X, "gamma": GAMMA}
    operands[intercepted] = operands[intercepted].as_subclass(Intercepted)
    Intercepted.seen.clear()
    y = norm(**operands)
    assert OP in Intercepted.seen and isinstance(y, Intercepted)
    assert same_bits(y.as_subclass(torch.Tensor), norm(X, GAMMA))


@pytest.mark.parametrize("mode", [Functions, Operators])
def test_a_mode_sees_the_operator(norm, mode):
    with mode() as entered:
        y = norm(X, GAMMA)
    assert entered.seen.count(OP) == 1
    assert same_bits(y, norm(X, GAMMA))


def test_a_subclass_without_memory_gets_the_operator(norm):
    y = norm(Wrapper(X), Wrapper(GAMMA))
    assert isinstance(y, Wrapper) and same_bits(y.inner, norm(X, GAMMA))


def test_tracers_record_the_operator(norm):
    graph = torch.fx.symbolic_trace(norm).graph
    assert OP in [node.target for node in graph.nodes]
    traced = torch.jit.trace(norm, (X, GAMMA))
    assert "rmsnorm::rms_norm" in str(traced.graph)
    assert same_bits(traced(X + 1, GAMMA), norm(X + 1, GAMMA))


@needs_pytorch("2.2", "torch.export.Dim")
@pytest.mark.parametrize("strict", [True, False])
def test_a_module_exports_with_a_batch_of_any_size(strict):
    module = rmsnorm.RMSNorm(96)
    batch = ({0: torch.export.Dim("batch")},)
    exported = torch.export.export(module, (X,), strict=strict, dynamic_shapes=batch)
    assert OP in [node.target for node in exported.graph.nodes]
    assert same_bits(exported.module()(X[:3]), module(X[:3]))


def test_vmap_has_the_bits_of_the_whole(norm):
    y = torch.vmap(norm, in_dims=(0, None))(X.view(2, 2, 96), GAMMA)
    assert same_bits(y.view(4, 96), norm(X, GAMMA))


@pytest.mark.parametrize("rounding", ["once", "before_gamma"])
@pytest.mark.parametrize("out_dtype", [None, torch.float32])
def test_the_short_path_has_the_bits_of_the_operator(rounding, out_dtype):
    args = (X.bfloat16(), GAMMA, 1e-3, 1.0, rounding, out_dtype)
    y, rstd = OP(*args)
    assert same_bits(call.rms_norm(*args), y)
    assert all(
        same_bits(*pair) for pair in zip(call.rms_norm_and_rstd(*args), (y, rstd), strict=True)
    )
    x, gamma, epsilon, offset, *_ = args
    options = dict(gamma_offset=offset, rounding=rounding, out_dtype=out_dtype)
    assert same_bits(rmsnorm.rms_norm(x, gamma, epsilon, **options), y)


def test_the_short_path_leaves_unusual_arguments_to_the_operator():
    plain = [X, GAMMA, 1e-6, 0.0, "once", None]
    for i in range(len(plain)):
        assert call.rms_norm(*plain[:i], object(), *plain[i + 1 :]) is NotImplemented
    assert call.rms_norm(*plain[:-1]) is NotImplemented
    for epsilon in (0, np.float64(0), np.float32(0)):
        assert same_bits(rmsnorm.rms_norm(X, GAMMA, epsilon), rmsnorm.rms_norm(X, GAMMA, 0.0))


def test_autocast_changes_nothing(norm):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = norm(X, GAMMA)
    assert same_bits(y, norm(X, GAMMA))


def gradients(norm):
    x, gamma = X.clone().requires_grad_(), GAMMA.clone().requires_grad_()
    return torch.autograd.grad(norm(x, gamma).square().sum(), (x, gamma))


def test_hooks_on_saved_tensors_carry_x_gamma_and_rstd(norm):
    packed = []

    def pack(tensor):
        packed.append(tensor.shape)
        return tensor.clone()

    x, gamma = X.clone().requires_grad_(), GAMMA.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept):
        y = norm(x, gamma)
    assert packed == [(4, 96), (96,), (4, 1)]
    actual = torch.autograd.grad(y.square().sum(), (x, gamma))
    assert all(same_bits(*pair) for pair in zip(actual, gradients(norm), strict=True))


def test_a_second_backward_through_freed_tensors_is_pytorchs_error(norm):
    y = norm(X.clone().requires_grad_(), GAMMA)
    y.backward(X)
    with pytest.raises(RuntimeError, match="second time"):
        y.backward(X)


@needs_pytorch("2.6", "compiled autograd by _enable")
def test_compiled_autograd_traces_backward_in_one_graph(norm):
    from torch._dynamo import compiled_autograd

    def compiler(graph):
        return torch.compile(graph, backend="aot_eager", fullgraph=True)

    with compiled_autograd._enable(compiler):
        compiled = gradients(norm)
    assert all(same_bits(*pair) for pair in zip(compiled, gradients(norm), strict=True))


def test_a_call_lets_other_threads_of_python_run():
    interval = sys.getswitchinterval()
    stop, turns = False, 0

    def other():
        nonlocal turns
        while not stop:
            turns += 1
            time.sleep(0)

    thread = threading.Thread(target=other)
    sys.setswitchinterval(1000)  # nobody has to let go of the interpreter
    thread.start()
    try:
        x, before, kept = torch.ones(1024, 1024), turns, []
        while turns == before and len(kept) < 200:
            kept.append(rmsnorm.rms_norm(x))  # to free a tensor would let go of it, too
        assert turns > before
    finally:
        stop = True
        sys.setswitchinterval(interval)
        thread.join()
