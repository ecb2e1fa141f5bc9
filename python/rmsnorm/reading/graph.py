"""Reads a graph of torch.compile: what its nodes compute of an x, by the same operations."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Graph, Node

from rmsnorm.reading import operations
from rmsnorm.reading.describe import Meaning, meaning
from rmsnorm.reading.finding import Cause
from rmsnorm.reading.operations import OPERATIONS, Operation
from rmsnorm.reading.values import (
    FLOATS,
    Columns,
    Constant,
    Dtype,
    Number,
    Powers,
    Product,
    Symbol,
    Unknown,
    Value,
    dtype_name,
    scale,
    tensor_x,
)

_IN_PLACE = (
    *(operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv),
    *(operator.imod, operator.ipow, operator.iand, operator.ior, operator.ixor),
    *(operator.ilshift, operator.irshift, operator.imatmul, operator.setitem, operator.delitem),
)
_LIBRARIES = (torch, torch.nn.functional, torch.linalg, operator)
_MEANS = (operations.mean, operations.total, operations.norm)
_NESTED_SCALES = 4  # casts and sums between a parameter and the scale


@dataclass(frozen=True)
class Norm:
    """A node that holds x * rstd * (gamma_offset + gamma): the arguments of rms_norm, as nodes.

    Attributes:
        end: the node.
        epsilon: a number, or the node of one.
        steps: the nodes that lead from x and gamma to the end, in the order of the graph.
    """

    end: Node
    x: Node
    gamma: Node | None
    epsilon: float | Node
    meaning: Meaning
    steps: tuple[Node, ...]


def example(node: object) -> Any:
    """What the tracer computed for a node: a FakeTensor, a number; None where there is nothing."""
    return node.meta.get("example_value") if isinstance(node, Node) else None


def squared(graph: Graph) -> Iterator[Node]:
    """Each node that may be the x of a norm: squared, and not merely another one in more bits."""
    found = set()
    for node in list(graph.nodes):
        if not node.users or not _squares(node):
            continue
        x = _source(node.args[0])
        if isinstance(x, Node) and isinstance(example(x), FakeTensor) and x not in found:
            found.add(x)
            yield x


class Reader:
    """Follows x through the graph.

    Attributes:
        values: of the nodes that x goes into, as far as they are followed.
    """

    def __init__(self, x: Node) -> None:
        self.x = x
        self.like = example(x)
        self.dtype = dtype_name(self.like.dtype)
        self.values: dict[Node, Value] = {x: tensor_x(self.dtype)}
        self._scales: dict[Node, Product] = {}
        self._named: dict[str, Node] = {}  # scales and epsilons, by their text in a value
        waiting, node = set(x.users), x
        while waiting and node.op != "output":
            node = node.next
            if node in waiting:
                waiting.remove(node)
                value = self.values[node] = self._result(node)
                if isinstance(value, Product):
                    waiting.update(node.users)

    def norms(self) -> list[Norm]:
        """Every node that is a norm of x, in the order of the graph."""
        found = []
        for node, value in self.values.items():
            arguments = [self.values.get(arg) for arg in node.all_input_nodes]
            if any(value is argument for argument in arguments):
                continue  # the same tensor once more
            means = meaning(value, self.dtype)
            if isinstance(means, Meaning) and (norm := self._norm(node, means)) is not None:
                found.append(norm)
        return found

    def why_none(self) -> str | None:
        """Where x stops to be a norm; None: no mean square of it was seen."""
        reason = None
        for node, value in self.values.items():
            if isinstance(value, Product) and value.root is not None:
                means = meaning(value, self.dtype)
                reason = means.reason if isinstance(means, Unknown) else "spans other axes"
            elif isinstance(value, Unknown) and value.cause is not Cause.UNREADABLE:
                inputs = [self.values.get(each) for each in node.all_input_nodes]
                products = [each for each in inputs if isinstance(each, Product)]
                if _operation(node) in _MEANS or any(each.root for each in products):
                    return value.reason
        return reason

    def _norm(self, end: Node, means: Meaning) -> Norm | None:
        gamma = None if means.gamma is None else self._named[means.gamma]
        if means.axes != (1 if gamma is None else example(gamma).dim()):
            return None
        epsilon: float | Node | None = means.epsilon.value
        if means.epsilon.text is not None:
            epsilon = self._named[means.epsilon.text]
        elif epsilon is None:  # of F.rms_norm
            epsilon = torch.finfo(torch.float32).eps
        if not isinstance(epsilon, Node) and not 0 <= epsilon < float("inf"):
            return None
        ends = {self.x, *self._named.values()}
        steps, waiting = {end}, [end]
        while waiting:
            for node in waiting.pop().all_input_nodes:
                followed = isinstance(self.values.get(node), Product) or node in self._scales
                if followed and node not in ends and node not in steps:
                    steps.add(node)
                    waiting.append(node)
        return Norm(end, self.x, gamma, epsilon, means, tuple(sorted(steps)))

    def _result(self, node: Node) -> Value:
        """What a node computes, where the tracer saw the same dtype and shape."""
        operation = _operation(node)
        if operation is None:
            return Unknown(Cause.UNREADABLE, f"goes into {name_of(node)}, which isn't followed")
        args = [self._value(arg, operation) for arg in node.args]
        kwargs = {key: self._value(arg, operation) for key, arg in node.kwargs.items()}
        try:
            given = inspect.signature(operation).bind(*args, **_renamed(kwargs))
        except TypeError:
            return Unknown(Cause.UNREADABLE, f"gives {name_of(node)} unusual arguments")
        if "dim" in given.arguments and node.args:
            rank = getattr(example(node.args[0]), "ndim", 0) + (operation is operations.unsqueeze)
            given.arguments["dim"] = _from_the_end(given.arguments["dim"], rank)
        value = operation(*given.args, **given.kwargs)
        if isinstance(value, Product) and not self._agrees(node, value):
            return Unknown(Cause.OTHER_FORMULA, f"has an unusual dtype or shape in {name_of(node)}")
        return value

    def _agrees(self, node: Node, value: Product) -> bool:
        seen = example(node)
        if not isinstance(seen, FakeTensor) or dtype_name(seen.dtype) != value.dtype:
            return False
        if seen.device != self.like.device:
            return False
        shape = list(self.like.shape)
        if not value.powers.x and not value.powers.scale and value.root is not None:
            axes = value.root.axes or 0
            shape[-axes:] = [1] * axes if value.per_row else []
        elif not value.powers.x and value.root is None:
            return True
        return same_shape(seen.shape, shape)

    def _value(self, arg: object, operation: Operation) -> Value:
        match arg:
            case Node():
                return self._value_of_node(arg, operation)
            case torch.dtype():
                return Dtype(dtype_name(arg))
            case bool():
                return Constant(arg)
            case int() | float() if operation in (operations.times, operations.over):
                return self._factor(arg)
            case int() | float():
                return Number(float(arg))
            case slice() | None:
                return Constant(arg)
            case list() | tuple() if operation is operations.rms_norm:
                return Constant(tuple(Columns() for _ in arg))  # the tracer has compared sizes
        return Constant(tuple(arg) if isinstance(arg, (list, tuple)) else arg)

    def _value_of_node(self, node: Node, operation: Operation) -> Value:
        value = self.values.get(node)
        if isinstance(value, Product):
            return value
        seen = example(node)
        if isinstance(seen, FakeTensor) and operation is operations.to:
            return self._scale(node) or Dtype(dtype_name(seen.dtype))
        if isinstance(seen, FakeTensor):
            other = Unknown(Cause.GATED, f"computes with {node.name}, another tensor")
            return self._scale(node) or value or other
        if isinstance(seen, (int, torch.SymInt)) and same_shape([seen], self.like.shape[-1:]):
            return Columns()
        if isinstance(seen, torch.SymFloat):
            self._named[node.name] = node
            return Symbol(node.name, None, is_number=True, is_given=True)
        return Unknown(Cause.UNREADABLE, f"computes with {node.name}, which isn't followed")

    def _factor(self, number: float) -> Value:
        """A factor, where n may stand as the number that it is."""
        n = self.like.shape[-1]
        if isinstance(n, int) and n > 1:
            for power in (1.0, -1.0, 0.5, -0.5):
                if number == n**power:
                    return Columns(power)
        return Number(float(number))

    def _scale(self, node: Node, depth: int = 0) -> Product | None:
        """What a tensor is as a scale; None: it has another shape than the tail of x's."""
        if node in self._scales:
            return self._scales[node]
        seen = example(node)
        rank = seen.dim()
        fits = 1 <= rank <= self.like.dim() and same_shape(seen.shape, self.like.shape[-rank:])
        if not fits or dtype_name(seen.dtype) not in FLOATS or seen.device != self.like.device:
            return None
        found = None
        if depth < _NESTED_SCALES and node.all_input_nodes[:1] and node not in self.values:
            inner = node.all_input_nodes[0]
            if isinstance(example(inner), FakeTensor) and self._scale(inner, depth + 1):
                found = self._result(node)
        if not isinstance(found, Product) or not _is_plain_scale(found):
            found = scale(node.name, dtype_name(seen.dtype))
            self._named[node.name] = node
        self._scales[node] = found
        return found


def is_pure(node: Node) -> bool:
    """Whether a node surely leaves every tensor and every mode of PyTorch as they were."""
    if node.op in ("placeholder", "get_attr"):
        return True
    if _operation(node) is None or {"out", "inplace"} & node.kwargs.keys():
        return False
    return not any(arg is True for arg in node.args)  # may be inplace


def changes(node: Node) -> bool:
    """Whether a node changes one of its inputs in place, as far as names and schemas tell."""
    if {"out", "inplace"} & node.kwargs.keys() or node.target in _IN_PLACE:
        return True
    schema = getattr(node.target, "_schema", None)
    if schema is not None and schema.is_mutable:
        return True
    name = name_of(node)
    return node.op != "placeholder" and name.endswith("_") and not name.endswith("__")


def name_of(node: Node) -> str:
    """Of a method or function, without its module."""
    return getattr(node.target, "__name__", str(node.target)).removeprefix("linalg_")


def same_shape(a: Any, b: Any) -> bool:
    """Whether two shapes are surely equal; adds no guard."""
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return len(a) == len(b) and all(
        statically_known_true(one == other) for one, other in zip(a, b, strict=True)
    )


def _operation(node: Node) -> Operation | None:
    name = name_of(node)
    if node.op == "call_method":
        return OPERATIONS.get(name)
    if node.op != "call_function":
        return None
    if node.target is operator.getitem:
        return _part
    if any(getattr(library, name, None) is node.target for library in _LIBRARIES):
        return OPERATIONS.get(name)
    return None


def _part(input: Value, index: Value) -> Value:
    if index == Constant((..., None)):
        return operations.unsqueeze(input, Number(-1.0))
    return operations.other_formula("takes a part of a tensor")


def _squares(node: Node) -> bool:
    operation, args = _operation(node), node.args
    if operation is operations.power:
        return len(args) == 2 and bool(args[1] == 2)
    if operation is operations.times:
        return len(args) == 2 and _source(args[0]) is _source(args[1])
    return operation in (operations.square, operations.norm, operations.rms_norm) and bool(args)


def _source(node: object) -> object:
    """The node whose values another one holds."""
    while isinstance(node, Node) and _widens(node):
        node = node.args[0]
    return node


def _widens(node: Node) -> bool:
    """Whether a node holds exactly the values of its first argument, a tensor of no more bits."""
    if not node.args:
        return False
    before, after = example(node.args[0]), example(node)
    if not (isinstance(before, FakeTensor) and isinstance(after, FakeTensor)):
        return False
    casts = [OPERATIONS[name] for name in ("to", "type_as", "float")]
    if _operation(node) not in casts or before.device != after.device:
        return False
    wider = dtype_name(before.dtype) in FLOATS and after.dtype == torch.float32
    return wider or before.dtype == after.dtype


def _is_plain_scale(value: Product) -> bool:
    plain = value.powers == Powers(scale=1) and value.constant == 1 and not value.columns
    return plain and not value.roundings


def _renamed(kwargs: dict[str, Value]) -> dict[str, Value]:
    names = {"axis": "dim", "ord": "p"}
    return {names.get(name, name): value for name, value in kwargs.items()}


def _from_the_end(dim: Value, rank: int) -> Value:
    """Axes counted from the last one, which is -1."""
    if isinstance(dim, Number):
        return Number(dim.value - rank if dim.value >= 0 else dim.value)
    if isinstance(dim, Constant) and isinstance(dim.value, tuple):
        if not all(isinstance(axis, int) for axis in dim.value):
            return dim
        axes = [axis - rank if axis >= 0 else axis for axis in dim.value]
        return Constant(tuple(axes))
    return dim
