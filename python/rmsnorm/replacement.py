"""Puts the fused operator in the place of a norm in a graph of torch.compile."""

from __future__ import annotations

import operator

import torch
from torch.fx import Graph, Node

from rmsnorm import fake  # noqa: F401  (the operator, with its shapes)
from rmsnorm.reading.graph import Norm, example, same_shape

_OPERATOR = torch.ops.rmsnorm.rms_norm.default


def put_operator(graph: Graph, norm: Norm) -> None:
    """Puts the operator in the place of a norm, and takes the nodes away that nothing uses then."""
    means = norm.meaning
    order = packed_order(norm) or []
    moved = order != sorted(order)
    with graph.inserting_before(norm.end):
        # y keeps the strides that it had: views of it may rely on them.
        x = _call_method(graph, "permute", norm.x, order) if moved else norm.x
        options = (means.gamma_offset, means.rounding, getattr(torch, means.out_dtype))
        call = graph.call_function(_OPERATOR, (x, norm.gamma, norm.epsilon, *options))
        y = graph.call_function(operator.getitem, (call, 0))
        fake_x, gamma = example(x), example(norm.gamma)
        with fake_x.fake_mode, torch.no_grad():
            call.meta = {**norm.end.meta, "example_value": _OPERATOR(fake_x, gamma, 0.0, *options)}
        y.meta = {**norm.end.meta, "example_value": call.meta["example_value"][0]}
        if moved:
            y = _call_method(graph, "permute", y, [order.index(axis) for axis in range(len(order))])
    y.meta = dict(norm.end.meta)
    norm.end.replace_all_uses_with(y)
    for step in reversed(norm.steps):
        if not step.users:
            graph.erase_node(step)


def _call_method(graph: Graph, name: str, tensor: Node, axes: list[int]) -> Node:
    node = graph.call_method(name, (tensor, *axes))
    seen = example(tensor)
    with seen.fake_mode, torch.no_grad():
        node.meta = {**tensor.meta, "example_value": getattr(seen, name)(*axes)}
    return node


def packed_order(norm: Norm) -> list[int] | None:
    """The order of y's axes in which it is contiguous, rows last; None: there is none."""
    y, axes = example(norm.end), norm.meaning.axes or 1
    rank = y.dim()
    strides = [_hint(stride) for stride in y.stride()]
    leading = sorted(range(rank - axes), key=lambda axis: -strides[axis])
    order = [*leading, *range(rank - axes, rank)]
    packed: int | torch.SymInt = 1
    for axis in reversed(order):
        size = y.shape[axis]
        if not same_shape([size], [1]) and not same_shape([y.stride(axis)], [packed]):
            return None
        packed = packed * size
    return order


def _hint(size: int | torch.SymInt) -> int:
    """A size that the tracer saw, where sizes may change."""
    return int(size if isinstance(size, int) else size.node.hint or 0)
