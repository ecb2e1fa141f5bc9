"""Finds norms that are written out in one expression, in the middle of a function."""

from __future__ import annotations

import ast
import contextlib
import functools
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from rmsnorm.reading.describe import Meaning, by_path
from rmsnorm.reading.file import File, local_names
from rmsnorm.reading.finding import Description, Finding, Kind
from rmsnorm.reading.interpreter import Frame, Interpreter, Scope, Undecided
from rmsnorm.reading.merge import Found, described, finding
from rmsnorm.reading.scope import ClassScope, SourceScope, arguments, in_scope
from rmsnorm.reading.values import Refused, Self, Symbol, Unknown, Value, tensor_x

_WORK = 200_000  # nodes of one function that are run, again and again where they are nested
_SCOPES = (
    *(ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda),
    *(ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp),
)
_ROOTS = ("rsqrt", "sqrt", "reciprocal", "pow", "rms_norm")


def norms_in(file: File, function: ast.FunctionDef, owner: ast.ClassDef | None) -> list[Finding]:
    """The norms of a function's expressions, outermost first.

    A scale counts where it is a parameter of `owner`, the class that the function is a method of;
    any other factor may be of any shape, and stays where it is.
    """
    if not may_be_norm(function):
        return []
    expressions = list(_own_expressions(function))
    found: list[Finding] = []
    names = _Names(function, expressions)
    for expression in filter(names.reach_a_root, expressions):
        for x in names.candidates(expression):
            inside = _norms_of(expression, x, file, owner, names)
            found += [finding(Kind.EXPRESSION, function.name, *each) for each in inside]
            if inside:
                break
    return found


def _norms_of(
    expression: ast.expr, x: str, file: File, owner: ast.ClassDef | None, names: _Names
) -> list[tuple[ast.expr, Description | Unknown]]:
    def run(node: ast.expr, x_dtype: str, gamma_dtype: str) -> Found:
        outer = SourceScope(file, gamma_dtype, names.function)
        if owner is not None:
            outer = ClassScope(file, gamma_dtype, names.function, owner, owner)
        scope = _LocalScope(outer, names, x, x_dtype, node.lineno, {})
        return by_path(lambda run: Frame(run, scope, {}).value(node), x_dtype)

    found: list[tuple[ast.expr, Description | Unknown]] = []
    waiting = [expression]
    while waiting and names.work < _WORK:
        node = waiting.pop(0)
        if isinstance(node, _SCOPES) or not names.reach_a_root(node):
            continue
        if isinstance(node, (ast.BinOp, ast.Call)):
            names.work += sum(1 for _ in ast.walk(node))
            first = run(node, "float32", "float32")
            if list(first) == [()] and isinstance(first[()], Meaning):
                what = described(functools.partial(run, node), x)
                found.append((node, _about(x, in_scope(what, file, names.local))))
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
        stored: how often a name is assigned, or changed in place.
        once: what a name stands for that is assigned once.
        squared: names that are squared somewhere, and what they are casts of.
    """

    function: ast.FunctionDef
    expressions: list[ast.expr]
    stored: Counter[str] = field(init=False)
    once: dict[str, ast.expr] = field(init=False)
    local: frozenset[str] = field(init=False)
    squared: list[str] = field(init=False)
    work: int = 0

    def __post_init__(self) -> None:
        self.stored = Counter(arguments(self.function))
        values: dict[str, ast.expr] = {}
        for node in ast.walk(self.function):
            self.stored.update(_changed(node))
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                values[node.targets[0].id] = node.value
        self.local = local_names(self.function)
        self.once = {name: value for name, value in values.items() if self.stored[name] == 1}
        self._rooted = {name for name, value in self.once.items() if has_root(value)}
        self.squared = []
        for expression in self.expressions:
            for node in ast.walk(expression):
                for name in self._origins(_squared(node)):
                    if name not in self.squared and name != "self":
                        self.squared.append(name)

    def reach_a_root(self, expression: ast.expr) -> bool:
        """Whether a root is taken in an expression, or in what a name of it stands for."""
        return has_root(expression) or not self._rooted.isdisjoint(_read(expression))

    def candidates(self, expression: ast.expr) -> list[str]:
        """What may be x in an expression, first what stands in it."""
        read = _read(expression)
        return sorted(self.squared, key=lambda name: name not in read)

    def _origins(self, node: ast.expr | None) -> Iterator[str]:
        """The name at the bottom of x.float().to(…), first the one that it is a cast of."""
        while isinstance(node, (ast.Attribute, ast.Call)):
            node = node.value if isinstance(node, ast.Attribute) else node.func
        if not isinstance(node, ast.Name):
            return
        match self.once.get(node.id):
            case ast.Call(ast.Attribute()) as inner if inner.lineno < node.lineno:
                yield from self._origins(inner)
        yield node.id


@dataclass(frozen=True)
class _LocalScope:
    """What names mean in an expression: x is the tensor, names assigned once are their values."""

    outer: SourceScope
    names: _Names
    x: str
    x_dtype: str
    line: int
    known: dict[tuple[str, int], Value]  # by name and line

    def name(self, name: str) -> Value:
        if name == self.x:
            return tensor_x(self.x_dtype)
        if name == "self":
            return Self()
        if name not in self.names.local:
            return self.outer.name(name)
        held = self.names.once.get(name)
        symbol = Symbol(name, None, is_number="eps" in name.lower())
        if held is None or held.lineno >= self.line or self.names.stored[self.x] > 1:
            return symbol
        key = name, held.lineno
        if key not in self.known:
            self.known[key] = symbol
            scope = replace(self, line=held.lineno)
            with contextlib.suppress(Refused, Undecided, RecursionError):
                value = Frame(Interpreter({}), scope, {}).value(held)
                self.known[key] = symbol if isinstance(value, Unknown) else value
        return self.known[key]

    def attribute(self, name: str) -> Value:
        return self.outer.attribute(name)

    def inherited(self, name: str, after: Scope) -> Value:
        return self.outer.inherited(name, after)


def _own_nodes(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """The nodes of a function's body, without those of functions and classes inside."""
    waiting: deque[ast.AST] = deque(function.body)
    while waiting:
        node = waiting.popleft()
        yield node
        if not isinstance(node, _SCOPES):
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
    match exponent:
        case ast.UnaryOp(ast.USub(), inner):
            return _is_half(inner)
        case ast.Constant(0.5) | ast.BinOp(ast.Constant(1), ast.Div(), ast.Constant(2)):
            return True
    return False


def _read(expression: ast.expr) -> set[str]:
    return {node.id for node in ast.walk(expression) if isinstance(node, ast.Name)}


def _changed(node: ast.AST) -> Iterator[str]:
    """The names that a node assigns, or whose tensors it changes in place."""
    match node:
        case ast.Name(name, ast.Store() | ast.Del()):
            yield name
        case ast.Subscript(ast.Name(name), _, ast.Store()):
            yield name
        case ast.Attribute(ast.Name(name), _, ast.Store()) if name != "self":
            yield name
        case ast.Call(func, args, keywords):
            called = getattr(func, "attr", getattr(func, "id", ""))
            changed = [each.value for each in keywords if each.arg == "out"]
            if called.endswith("_"):
                changed += args
                if isinstance(func, ast.Attribute):
                    changed.append(func.value)
            for each in changed:
                if isinstance(each, ast.Name):
                    yield each.id


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
        case ast.BinOp(ast.Name(left), ast.Mult(), ast.Name(right)) if left == right:
            return node.left
        case ast.BinOp(ast.Call() as left, ast.Mult(), ast.Call() as right):
            return left if ast.dump(left) == ast.dump(right) else None
    return None
