"""Finds norms that are written out in one expression, in the middle of a function."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from rmsnorm.reading.describe import Meaning, by_path
from rmsnorm.reading.finding import Description, Finding, Kind
from rmsnorm.reading.interpreter import Frame, Interpreter, Scope, Self, Undecided
from rmsnorm.reading.merge import Found, described, finding
from rmsnorm.reading.scope import ClassScope, File, SourceScope
from rmsnorm.reading.values import Refused, Symbol, Unknown, Value, tensor_x

_ROOTS = ("rsqrt", "sqrt", "reciprocal", "pow", "rms_norm")


def norms_in(file: File, function: ast.FunctionDef, owner: ast.ClassDef | None) -> list[Finding]:
    """The norms of a function's expressions, outermost first.

    A scale counts where it is a parameter of `owner`, the class that the function is a method of;
    any other factor may be of any shape, and stays where it is.
    """
    expressions = list(_own_expressions(function))
    if not may_be_norm(function):
        return []
    found: list[Finding] = []
    names = _Names(function, expressions)
    for expression in filter(names.reach_a_root, expressions):
        for x in names.squared:
            inside = _norms_of(expression, x, file, owner, names)
            found += [finding(Kind.EXPRESSION, function.name, *each) for each in inside]
            if inside:
                break
    return found


def _norms_of(
    expression: ast.expr, x: str, file: File, owner: ast.ClassDef | None, names: _Names
) -> list[tuple[ast.expr, Description | Unknown]]:
    def run(node: ast.expr, x_dtype: str, gamma_dtype: str) -> Found:
        outer: SourceScope = (
            ClassScope(file, gamma_dtype, owner) if owner else SourceScope(file, gamma_dtype)
        )
        scope = _LocalScope(outer, names, x, x_dtype, node.lineno)
        return by_path(lambda run: Frame(run, scope, {}).value(node), x_dtype)

    found: list[tuple[ast.expr, Description | Unknown]] = []
    waiting = [expression]
    while waiting:
        node = waiting.pop(0)
        if not names.reach_a_root(node):
            continue
        if isinstance(node, (ast.BinOp, ast.Call)):
            first = run(node, "float32", "float32")
            if list(first) == [()] and isinstance(first[()], Meaning):
                found.append((node, _about(x, described(functools.partial(run, node), x))))
                continue
        waiting += [each for each in ast.iter_child_nodes(node) if isinstance(each, ast.expr)]
    return found


def _about(x: str, found: Description | Unknown) -> Description | Unknown:
    """x is of any dtype here, so that a reason says in which it holds."""
    if isinstance(found, Description):
        return found
    return replace(found, reason=f"where {x} is of 16 bits, {found.reason}")


@dataclass
class _Names:
    """The local names of a function.

    Attributes:
        once: what a name stands for that is assigned once.
        squared: names that are squared somewhere, and what they are casts of.
    """

    function: ast.FunctionDef
    expressions: list[ast.expr]
    once: dict[str, ast.expr] = field(init=False)
    local: set[str] = field(init=False)
    squared: list[str] = field(init=False)

    def __post_init__(self) -> None:
        spec = self.function.args
        stored = [arg.arg for arg in (*spec.posonlyargs, *spec.args, *spec.kwonlyargs)]
        values: dict[str, ast.expr] = {}
        for node in _own_nodes(self.function):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                stored.append(node.id)
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                values[node.targets[0].id] = node.value
        self.local = set(stored)
        self.once = {name: value for name, value in values.items() if stored.count(name) == 1}
        self.squared = []
        for expression in self.expressions:
            for node in ast.walk(expression):
                for name in self._origins(_squared(node)):
                    if name not in self.squared and name != "self":
                        self.squared.append(name)

    def reach_a_root(self, expression: ast.expr) -> bool:
        """Whether a root is taken in an expression, or in what a name of it stands for."""
        return has_root(expression) or any(
            isinstance(node, ast.Name) and node.id in self.once and has_root(self.once[node.id])
            for node in ast.walk(expression)
        )

    def _origins(self, node: ast.expr | None) -> Iterator[str]:
        """The name at the bottom of x.float().to(…), first the one that it is a cast of."""
        for _ in range(8):
            while isinstance(node, (ast.Attribute, ast.Call)):
                node = node.value if isinstance(node, ast.Attribute) else node.func
            if not isinstance(node, ast.Name):
                return
            inner = self.once.get(node.id)
            if isinstance(inner, ast.Call) and isinstance(inner.func, ast.Attribute):
                yield from self._origins(inner)
            yield node.id
            return


@dataclass(frozen=True)
class _LocalScope:
    """What names mean in an expression: x is the tensor, names assigned once are their values."""

    outer: SourceScope
    names: _Names
    x: str
    x_dtype: str
    line: int

    def name(self, name: str) -> Value:
        if name == self.x:
            return tensor_x(self.x_dtype)
        if name == "self":
            return Self()
        if name not in self.names.local:
            return self.outer.name(name)
        held = self.names.once.get(name)
        x_is_fixed = self.x in self.names.once or not self._assigned(self.x)
        if held is not None and held.lineno < self.line and x_is_fixed:
            scope = _LocalScope(self.outer, self.names, self.x, self.x_dtype, held.lineno)
            try:
                value = Frame(Interpreter({}), scope, {}).value(held)
            except (Refused, Undecided, RecursionError):
                return Symbol(name, None)
            if not isinstance(value, Unknown):
                return value
        return Symbol(name, None)

    def _assigned(self, name: str) -> bool:
        return any(
            isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Store)
            for node in _own_nodes(self.names.function)
        )

    def attribute(self, name: str) -> Value:
        return self.outer.attribute(name)

    def inherited(self, name: str, after: Scope) -> Value:
        return self.outer.inherited(name, after)


def _own_nodes(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """The nodes of a function's body, without those of functions and classes inside."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop(0)
        yield node
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            waiting += ast.iter_child_nodes(node)


def _own_expressions(function: ast.FunctionDef) -> Iterator[ast.expr]:
    """The whole expressions of its statements."""
    for node in _own_nodes(function):
        if isinstance(node, ast.stmt):
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.expr):
                    yield child


def may_be_norm(node: ast.AST) -> bool:
    """Whether a root is taken and a mean somewhere."""
    means = ("mean", "sum", "norm", "vector_norm", "rms_norm")
    return has_root(node) and any(
        getattr(each, "attr", getattr(each, "id", None)) in means for each in ast.walk(node)
    )


def has_root(expression: ast.AST) -> bool:
    """Whether a square root is taken, or F.rms_norm called."""
    for node in ast.walk(expression):
        if isinstance(node, ast.Attribute) and node.attr in _ROOTS:
            return True
        if isinstance(node, ast.Name) and node.id in _ROOTS:
            return True
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow) and _is_half(node.right):
            return True
    return False


def _is_half(exponent: ast.expr) -> bool:
    return ast.unparse(exponent) in ("-0.5", "0.5", "-1 / 2", "1 / 2")


def _squared(node: ast.AST) -> ast.expr | None:
    """What an expression squares."""
    match node:
        case ast.Call(ast.Attribute(base, "pow" | "square"), args) if len(args) < 2:
            named = isinstance(base, ast.Name) and base.id == "torch"
            return args[0] if named and args else base
        case ast.Call(ast.Attribute(_, "pow" | "square" | "rms_norm"), [first, *_]):
            return first
        case ast.Call(ast.Attribute(base, "norm"), _):
            return base
        case ast.BinOp(left, ast.Pow(), ast.Constant(2)):
            return left
        case ast.BinOp(left, ast.Mult(), right) if ast.dump(left) == ast.dump(right):
            return left
    return None
