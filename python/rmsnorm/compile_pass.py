"""A pass of torch.compile that moves the norms of any model to the fused operator."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Graph, Node

from rmsnorm.functional import rms_norm
from rmsnorm.library import build, why_no_cuda
from rmsnorm.reading.graph import (
    Norm,
    Reader,
    changes,
    example,
    is_pure,
    name_of,
    squared,
)
from rmsnorm.reading.values import dtype_name
from rmsnorm.replacement import packed_order, put_operator

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def compile_pass() -> CompilePass:
    """A pass for torch.compile: the norms in a traced graph become rms_norm, the model stays.

    Each x * rsqrt(mean(x^2) + epsilon) in a graph is replaced, with its scale and its roundings,
    wherever it stands: in a module of any name, in a function, inline; and so is F.rms_norm. It is
    judged by what the graph computes in the dtypes that were traced. What can't be followed, or
    isn't one of the operator's forms, stays: other formulas and roundings, float64, what is changed
    in place between the operations of the norm or after them, a block of torch.autocast inside of
    the compiled code, the inside of torch.func's transforms. One difference in values is meant: a
    finite row whose squares overflow or vanish in float32 comes out right.

    Returns:
        For `torch.compile(model, options={"pre_grad_custom_pass": rmsnorm.compile_pass()})`, or for
        `torch._inductor.config.pre_grad_custom_pass`. Only the default backend, inductor, runs
        passes; in a backend of your own, call it on the graph of the fx.GraphModule that it gets,
        then recompile() that. `print` it to see what was replaced and what was left.

    Raises:
        ImportError: PyTorch is older than 2.6, whose caches of compiled graphs know no passes.

    Caches: graphs compiled with the pass, without it and by another version of it are kept apart.
        A graph that comes from inductor's cache holds the operator already: the pass doesn't run
        then, and so reports nothing. With dynamic=True, epsilon is traced as a variable first, and
        then anew as a constant, because the operator takes a number: the report counts both.
    Cost: some ms for each norm, as the graph is compiled.

    >>> seen = compile_pass()
    >>> norm = torch.nn.RMSNorm(8, eps=1e-6)
    >>> def backend(module, inputs):
    ...     seen(module.graph)
    ...     module.recompile()
    ...     return module
    >>> _ = torch.compile(norm, backend=backend)(torch.ones(2, 8))
    >>> print(seen)
    replaced 1 norm
      1 × float32 -> float32, epsilon 1e-06, gamma_offset 0, rounding once
    """
    from torch._inductor.custom_graph_pass import CustomGraphPass  # seconds: not for every import

    CustomGraphPass.register(CompilePass)
    return CompilePass()


class CompilePass:
    """What compile_pass returns.

    Attributes:
        replaced: how many norms of each form were replaced, in all graphs so far.
        left: how many mean squares were seen and left, for each reason.
    """

    def __init__(self) -> None:
        self.replaced: Counter[str] = Counter()
        self.left: Counter[str] = Counter()
        self._torch_is_ours = _torch_is_ours()

    def __call__(self, graph: Graph) -> None:
        """Replaces the norms of a graph of torch.compile, in place."""
        autocast = _autocast(graph)
        changing = [node for node in graph.nodes if changes(node)]
        for x in squared(graph):
            reader = Reader(x)
            replaced, reason = 0, reader.why_none()
            for norm in reversed(reader.norms()):  # the largest first: few others are used then
                if not norm.end.users:
                    continue
                why_not = self._why_not(norm, autocast.get(norm.end, {}), changing)
                if why_not is None:
                    self.replaced[_form(norm)] += 1
                    replaced += 1
                    put_operator(graph, norm)
                else:
                    reason = why_not
            if not replaced and reason is not None:
                self.left[reason] += 1

    def uuid(self) -> str:
        """What inductor's caches know the pass by."""
        return _uuid()

    def __str__(self) -> str:
        lines = []
        for word, counts in (("replaced", self.replaced), ("left", self.left)):
            total = counts.total()
            if total or counts is self.replaced:
                lines.append(f"{word} {total} norm{'' if total == 1 else 's'}")
                lines += [f"  {count} × {text}" for text, count in counts.most_common()]
        return "\n".join(lines)

    def _why_not(self, norm: Norm, autocast: dict[str, bool], changing: list[Node]) -> str | None:
        """Why a norm is to stay, though the operator has its form.

        Args:
            autocast: whether it is on around the norm, by the type of device.
            changing: the nodes of the graph that change something in place.
        """
        x = example(norm.x)
        if x.dtype not in _DTYPES:
            return f"x is {dtype_name(x.dtype)}"
        if x.layout != torch.strided or x.device.type not in ("cpu", "cuda"):
            where = f"{dtype_name(x.layout)} on {x.device.type}"
            return f"x is {where}; the kernels run on CPUs and on CUDA"
        if x.device.type == "cuda" and (lack := why_no_cuda()):
            return f"is on {lack}"  # cuda: …
        if autocast.get(x.device.type):
            return "is in a block of torch.autocast"
        node = norm.end
        while node is not norm.steps[0]:
            node = node.prev
            if node not in norm.steps and not is_pure(node):
                return f"has {name_of(node)} between its operations"
        if any("hook" in name_of(user) for step in norm.steps[:-1] for user in step.users):
            return "has a hook on a part of it"
        if any(_keeps(norm, node) for node in changing):
            return "x or gamma is changed in place later, and the gradient needs it"
        by_torch = any(name_of(step) == "rms_norm" for step in norm.steps)
        if by_torch and x.dtype != torch.float32 and not self._torch_is_ours:
            return "this PyTorch's rms_norm rounds otherwise"
        if packed_order(norm) is None:
            return "its rows are not packed"
        return None


def _autocast(graph: Graph) -> dict[Node, dict[str, bool]]:
    """For each node in a block of torch.autocast: whether that is on, by the type of device."""
    found: dict[Node, dict[str, bool]] = {}
    open_blocks: dict[Node, tuple[str, bool]] = {}
    for node in graph.nodes:
        if name_of(node) == "_enter_autocast":
            device, enabled = node.args[0], node.args[2]
            open_blocks[node] = str(device), bool(enabled)
        elif name_of(node) == "_exit_autocast":
            open_blocks.pop(node.args[0], None)
        elif open_blocks:
            found[node] = dict(open_blocks.values())  # of blocks inside of another, the inner one
    return found


def _keeps(norm: Norm, changing: Node) -> bool:
    """Whether a node changes what the operator keeps for the gradient, in place."""
    kept = {_storage(norm.x), _storage(norm.gamma)}
    return norm.end < changing and any(_storage(arg) in kept for arg in changing.all_input_nodes)


def _storage(node: Node | None) -> object:
    """What tensors share that are views of one another; nothing else has it."""
    seen = example(node)
    strided = isinstance(seen, FakeTensor) and seen.layout == torch.strided
    return seen.untyped_storage()._cdata if strided else object()


def _form(norm: Norm) -> str:
    means = norm.meaning
    epsilon = "a variable" if isinstance(norm.epsilon, Node) else f"{norm.epsilon:g}"
    return (
        f"{dtype_name(example(norm.x).dtype)} -> {means.out_dtype}, epsilon {epsilon}, "
        f"gamma_offset {means.gamma_offset:g}, rounding {means.rounding}"
    )


def _torch_is_ours() -> bool:
    """Whether F.rms_norm rounds 16 bits once, and has the epsilon of float32 where none is given.

    Older versions do otherwise.
    """
    with torch.no_grad(), torch.autocast("cpu", enabled=False), torch.device("cpu"):
        x = torch.linspace(-1e-3, 2e-3, 64).bfloat16()
        gamma = torch.linspace(0.5, 1.5, 64).bfloat16()
        theirs = torch.nn.functional.rms_norm(x, [64], gamma)
        return theirs.equal(rms_norm(x, gamma, torch.finfo(torch.float32).eps))


@functools.cache
def _uuid() -> str:
    sources = sorted([Path(__file__), *(Path(__file__).parent / "reading").glob("*.py")])
    digest = hashlib.sha256(repr(build()).encode())
    for source in sources:
        digest.update(source.read_bytes())
    return f"rmsnorm {digest.hexdigest()}"
