"""What parts of Python's syntax come to, apart from arithmetic."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping

from rmsnorm.reading.finding import Cause
from rmsnorm.reading.operations import NONE
from rmsnorm.reading.values import (
    Constant,
    Dtype,
    Named,
    Number,
    Product,
    Refused,
    Self,
    Symbol,
    Unknown,
    Value,
)

# Calls without an effect, whatever they return.
_QUERIES = ("isinstance", "len", "hasattr", "type", "dim", "numel", "size", "get", "lower")
_ORDER: dict[type[ast.cmpop], Callable[[float, float], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


def literal(value: object) -> Value:
    """What is written out in the source."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300:
        return Number(float(value))
    return Constant(value)


def imported(statement: ast.Import | ast.ImportFrom) -> dict[str, Value]:
    """The names that an import binds; what isn't from here, by its place, isn't followed."""
    names: dict[str, Value] = {}
    for alias in statement.names:
        if isinstance(statement, ast.ImportFrom):
            name = alias.asname or alias.name
            here = f"imports {name} from another file, which isn't followed"
            path = f"{statement.module}.{alias.name}"
            names[name] = Unknown(Cause.UNREADABLE, here) if statement.level else Named(path)
        elif alias.asname:
            names[alias.asname] = Named(alias.name)
        else:
            first = alias.name.partition(".")[0]
            names[first] = Named(first)
    return names


class Spelled(ast.NodeTransformer):
    """Writes what local names stand for in their place, so that equal texts mean the same."""

    def __init__(self, names: Mapping[str, Value]) -> None:
        self._names = names

    def visit_Name(self, node: ast.Name) -> ast.expr:
        held = self._names.get(node.id)
        match held:
            case None | Self():
                return node
            case Symbol(text):
                return ast.Name(text)
            case Constant(value) | Number(value):
                return ast.Name(repr(value))
            case Named(path) | Dtype(path):
                return ast.Name(path)
        raise Refused(Cause.UNREADABLE, f"branches on {node.id}")


def check_effects(node: ast.expr) -> None:
    """Refuses an expression that is not followed and may do more than return a value."""
    for each in ast.walk(node):
        effect = isinstance(each, (ast.NamedExpr, ast.Yield, ast.YieldFrom, ast.Await))
        if effect or (isinstance(each, ast.Call) and not is_query(each)):
            raise Refused(Cause.UNREADABLE, f"computes `{short(node)}`, which isn't followed")


def is_query(node: ast.Call) -> bool:
    """Whether a call only asks, such as isinstance(…), x.is_cuda() or torch.is_grad_enabled()."""
    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
    return name in _QUERIES or name.startswith("is_")


def compared(op: ast.cmpop, left: Value, right: Value) -> bool | None:
    """How two values compare, where that is known."""
    if isinstance(op, (ast.In, ast.NotIn)):
        listed = right.value if isinstance(right, Constant) else None
        if not isinstance(left, Dtype) or not isinstance(listed, tuple):
            return None
        known = all(isinstance(each, Dtype) for each in listed)
        return (left in listed) is isinstance(op, ast.In) if known else None
    if isinstance(left, Number) and isinstance(right, Number) and type(op) in _ORDER:
        return _ORDER[type(op)](left.value, right.value)
    if not isinstance(op, (ast.Eq, ast.NotEq, ast.Is, ast.IsNot)):
        return None
    same = isinstance(op, (ast.Eq, ast.Is))
    if isinstance(left, Dtype) and isinstance(right, Dtype):
        return (left == right) is same
    if isinstance(left, Number) and isinstance(right, Number):
        return (left.value == right.value) is same
    if isinstance(left, Constant) and isinstance(right, Constant):
        return (left == right) is same
    if NONE in (left, right) and any(isinstance(one, (Product, Number)) for one in (left, right)):
        return not same
    return None


def short(node: ast.expr) -> str:
    text = ast.unparse(node)
    return text if len(text) <= 60 else f"{text[:57]}…"
