"""Where the names of a source text lead, as far as the text itself says."""

from __future__ import annotations

import ast
import functools
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass

from rmsnorm.reading.finding import Cause, Description
from rmsnorm.reading.interpreter import Function, Scope, imported, literal
from rmsnorm.reading.values import (
    Named,
    Number,
    Symbol,
    Unknown,
    Value,
    other_formula,
    scale,
)

_MAKERS = ("ones", "zeros", "empty", "full", "rand", "randn", "Tensor")  # of tensors, by sizes
_BINDERS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


class File:
    """A parsed file, indexed once.

    Attributes:
        classes: those of the top level, by name.
        bound: what each name of the file is bound to: a value, a definition, an expression; None
            for what isn't followed.
        enclosing: for each definition, the functions around it.
        replaced: attributes of classes that the file sets from outside of them.
    """

    def __init__(self, tree: ast.Module) -> None:
        self.bound: dict[str, list[Value | ast.AST | None]] = {}
        for node in _statements(tree.body):
            for name, value in _bindings(node):
                self.bound.setdefault(name, []).append(value)
        self.classes = {
            name: values[0]
            for name, values in self.bound.items()
            if len(values) == 1 and isinstance(values[0], ast.ClassDef)
        }
        self.enclosing: dict[ast.AST, list[ast.AST]] = {}
        self.replaced: set[tuple[str, str]] = set()
        self._index(tree, [])
        self._held: dict[ast.ClassDef, dict[str, list[ast.expr]]] = {}

    def _index(self, tree: ast.AST, around: list[ast.AST]) -> None:
        waiting = [(tree, around)]
        while waiting:
            node, around = waiting.pop()
            if isinstance(node, _BINDERS):
                self.enclosing[node] = around
                around = [*around, node]
            match node:
                case ast.Global(names):
                    for name in names:
                        self.bound.setdefault(name, []).append(None)
                case ast.Assign(targets):
                    for target in targets:
                        if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name):
                            self.replaced.add((target.value.id, target.attr))
                case ast.Call(ast.Name("setattr"), [ast.Name(owner), ast.Constant(str(name)), _]):
                    self.replaced.add((owner, name))
            waiting += [(child, around) for child in ast.iter_child_nodes(node)]

    def held(self, node: ast.ClassDef) -> dict[str, list[ast.expr]]:
        """Every value that a class gives to an attribute, by its name."""
        if node not in self._held:
            self._held[node] = {}
            for name, value in _assignments(node):
                self._held[node].setdefault(name, []).append(value)
        return self._held[node]

    def is_shadowed(self, name: str, node: ast.AST) -> bool:
        """Whether a function around a definition has a name of its own."""
        return any(
            name in local_names(each)
            for each in self.enclosing.get(node, ())
            if isinstance(each, ast.FunctionDef)
        )


@dataclass(frozen=True)
class SourceScope:
    """The names that a definition sees: what the file imports, its functions, its constants."""

    file: File
    gamma_dtype: str
    node: ast.AST

    def name(self, name: str) -> Value:
        unread = Unknown(Cause.UNREADABLE, f"reads {name}, which isn't followed")
        if self.file.is_shadowed(name, self.node):
            return unread
        values = self.file.bound.get(name, [])
        if not values:
            return Named(name) if name in ("staticmethod", "classmethod") else unread
        first = values[0]
        if any(each != first for each in values):
            return unread
        if isinstance(first, ast.FunctionDef):
            return Function(first, SourceScope(self.file, self.gamma_dtype, first))
        if isinstance(first, ast.Constant) and isinstance(literal(first.value), Number):
            return Symbol(name, None, is_number=True)
        return first if isinstance(first, Value) else unread

    def attribute(self, name: str) -> Value:
        return Unknown(Cause.UNREADABLE, f"reads self.{name}, which isn't followed")

    def inherited(self, name: str, after: Scope) -> Value:
        return Unknown(Cause.UNREADABLE, f"calls super().{name}, which isn't followed")


@dataclass(frozen=True)
class ClassScope(SourceScope):
    """The names that a method sees. `owner` is the class, `defined` the one that has the method."""

    owner: ast.ClassDef
    defined: ast.ClassDef

    def attribute(self, name: str) -> Value:
        text = f"self.{name}"
        unread = Unknown(Cause.UNREADABLE, f"reads {text}, which isn't followed")
        classes, known = self._classes()
        held = [value for each in classes for value in self.file.held(each).get(name, ())]
        inside = [value for each in classes for value in _in_body(each, name)]
        if name == "training":
            return Symbol(text, None)
        if any((each.name, name) in self.file.replaced for each in classes):
            return unread
        if any(isinstance(value, ast.FunctionDef) for value in inside):
            return unread if held else self._method(name, classes)
        if any(value is None for value in inside):
            return unread
        held += [value for value in inside if isinstance(value, ast.expr)]
        if not held and not known:
            # The weight of torch's own norms, which the file doesn't show.
            return Symbol(text, self.gamma_dtype if name == "weight" else None, name != "weight")
        return self._held(text, held)

    def inherited(self, name: str, after: Scope) -> Value:
        classes, _ = self._classes()
        defined = after.defined if isinstance(after, ClassScope) else self.owner
        return self._method(name, classes[classes.index(defined) + 1 :])

    def _held(self, text: str, held: list[ast.expr]) -> Value:
        """What an attribute is that is given these values."""
        if any(_is_buffer(value) for value in held):
            return Unknown(Cause.GATED, f"reads {text}, a buffer")
        parameters = [value for value in held if _is_parameter(value)]
        again = [value for value in held if ast.unparse(value) == text]  # registered by its name
        known = [*parameters, *again]
        others = [value for value in held if value not in known and not _is_none(value)]
        if parameters and not others:
            for value in parameters:
                if (wrong := _wrong_shape(value, text)) is not None:
                    return wrong
            whole = len(known) == len(held) and not any(
                isinstance(value, ast.IfExp) for value in held
            )
            return scale(text, self.gamma_dtype) if whole else Symbol(text, self.gamma_dtype)
        return Symbol(text, None, is_number=not parameters)

    def _method(self, name: str, classes: list[ast.ClassDef]) -> Value:
        """The method of the first class that has one; nothing where it isn't sure."""
        unread = Unknown(Cause.UNREADABLE, f"calls self.{name}, which isn't followed")
        for defined in classes:
            inside = list(_in_body(defined, name))
            if not inside:
                continue
            node = inside[0]
            if len(inside) > 1 or not isinstance(node, ast.FunctionDef) or node not in defined.body:
                return unread
            decorators = {ast.unparse(each) for each in node.decorator_list}
            if "property" in decorators:
                return Unknown(Cause.UNREADABLE, f"reads the property self.{name}")
            scope = ClassScope(self.file, self.gamma_dtype, node, self.owner, defined)
            return Function(node, scope, bound="staticmethod" not in decorators)
        return unread

    def _classes(self) -> tuple[list[ast.ClassDef], bool]:
        """The class and its bases as far as the file shows them, and whether it shows all.

        torch.nn.Module counts as shown. A class of several bases isn't followed further.
        """
        found = [self.owner]
        while True:
            bases = [base for base in found[-1].bases]
            names = [ast.unparse(base) for base in bases]
            if all(name.rpartition(".")[2] in ("Module", "object") for name in names):
                return found, True
            base = self.file.classes.get(names[0]) if len(names) == 1 else None
            if not isinstance(base, ast.ClassDef) or base in found:
                return found, False
            found.append(base)


def in_scope(
    found: Description | Unknown, file: File, local: Container[str]
) -> Description | Unknown:
    """Refuses an epsilon that means something else where the call is put than where it was read.

    Args:
        local: the names of the function that is rewritten.
    """
    if isinstance(found, Description):
        epsilon = found.epsilon
        if (epsilon in local and epsilon in file.bound) or epsilon.startswith("self.__"):
            return Unknown(Cause.UNREADABLE, f"adds {epsilon}, a name of two things")
    return found


@functools.lru_cache(maxsize=4096)
def local_names(function: ast.FunctionDef) -> frozenset[str]:
    """The arguments of a function, and what it assigns."""
    spec = function.args
    named = [*spec.posonlyargs, *spec.args, *spec.kwonlyargs, spec.vararg, spec.kwarg]
    names = {arg.arg for arg in named if arg is not None}
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, _BINDERS) and node is not function:
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names.update(imported(node))
    return frozenset(names)


def _bindings(node: ast.AST) -> Iterator[tuple[str, Value | ast.AST | None]]:
    """The names that a statement of a file binds."""
    match node:
        case ast.Import() | ast.ImportFrom():
            yield from imported(node).items()
        case ast.FunctionDef(name) | ast.ClassDef(name):
            yield name, node
        case ast.AsyncFunctionDef(name):
            yield name, None
        case ast.Assign([ast.Name(name)], value):
            yield name, value
        case _:
            for each in _own_names(node):
                yield each, None


def _own_names(node: ast.AST) -> Iterator[str]:
    """Names that are stored by a statement, not by the statements in it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Name) and isinstance(child.ctx, (ast.Store, ast.Del)):
            yield child.id
        if isinstance(child, (ast.expr, ast.withitem, ast.comprehension)):
            yield from _own_names(child)


def _in_body(node: ast.ClassDef, name: str) -> Iterator[ast.FunctionDef | ast.expr | None]:
    """What the body of a class binds a name to."""
    for statement in _statements(node.body):
        for bound, value in _bindings(statement):
            if bound == name:
                plain = isinstance(value, (ast.FunctionDef, ast.expr))
                yield value if plain else None  # type: ignore[misc]


def _statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Those of a block, and of the blocks in it that are run with it."""
    for node in body:
        yield node
        if not isinstance(node, _BINDERS):
            for field in ("body", "orelse", "finalbody", "handlers", "cases"):
                yield from _statements(getattr(node, field, []))


def _assignments(node: ast.ClassDef) -> Iterator[tuple[str, ast.expr]]:
    """Names of self's attributes in a class, with what they are set to."""
    for each in ast.walk(node):
        match each:
            case ast.Assign(targets, value):
                for target in targets:
                    yield from _attributes(target, value)
            case ast.AnnAssign(target, _, value) | ast.AugAssign(target, _, value):
                if value is not None:
                    yield from _attributes(target, value)
            case ast.Call(ast.Attribute(_, "register_parameter" | "register_buffer"), args):
                given = [*args, *(keyword.value for keyword in each.keywords)]
                if given and isinstance(given[0], ast.Constant) and isinstance(given[0].value, str):
                    name = given[0].value
                    buffer = _is_buffer(each) or len(given) < 2
                    yield from [(name, each if buffer else given[1])]
            case ast.Call(ast.Name("setattr"), [ast.Name("self"), ast.Constant(str(name)), value]):
                yield name, value


def _attributes(target: ast.expr, value: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    match target:
        case ast.Attribute(ast.Name("self"), name):
            yield name, value
        case ast.Tuple(targets) | ast.List(targets):
            values = value.elts if isinstance(value, (ast.Tuple, ast.List)) else []
            if len(values) != len(targets):
                values = [value] * len(targets)
            for each, inner in zip(targets, values, strict=True):
                yield from _attributes(each, inner)


def _is_none(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is None


def _is_buffer(value: ast.expr) -> bool:
    return (
        isinstance(value, ast.Call)
        and isinstance(value.func, ast.Attribute)
        and value.func.attr == "register_buffer"
    )


def _is_parameter(value: ast.expr) -> bool:
    """nn.Parameter(…), or that or None."""
    if isinstance(value, ast.IfExp):
        return all(_is_none(each) or _is_parameter(each) for each in (value.body, value.orelse))
    return isinstance(value, ast.Call) and ast.unparse(value.func).rpartition(".")[2] == "Parameter"


def _wrong_shape(value: ast.expr, text: str) -> Unknown | None:
    """Why a parameter can't scale the last axis, by the tensor that it is made of."""
    if isinstance(value, ast.IfExp):
        arms = [each for each in (value.body, value.orelse) if not _is_none(each)]
        return next(filter(None, (_wrong_shape(each, text) for each in arms)), None)
    unknown = Unknown(Cause.UNREADABLE, f"scales by {text}, whose shape isn't known")
    if not isinstance(value, ast.Call) or not (value.args or value.keywords):
        return unknown
    sizes = _sizes(value.args[0] if value.args else value.keywords[0].value)
    if sizes is None:
        return unknown
    if len(sizes) != 1:
        return Unknown(Cause.GROUPED, f"scales by {text}, which has several axes")
    if isinstance(sizes[0], ast.Constant) and sizes[0].value == 1:
        return other_formula(f"scales by {text}, which has one element")
    return None


def _sizes(tensor: ast.expr) -> list[ast.expr] | None:
    """The sizes of torch.ones(…) and the like, in one dtype or another; None: not known."""
    match tensor:
        case ast.IfExp(_, body, orelse):
            first, second = _sizes(body), _sizes(orelse)
            same = first and second and list(map(ast.dump, first)) == list(map(ast.dump, second))
            return first if same else None
        case ast.Call(ast.Attribute(base, "float" | "to" | "half" | "bfloat16"), _):
            return _sizes(base)
        case ast.Call(ast.Attribute(_, maker), args, keywords) if maker in _MAKERS:
            sizes = args[:1] if maker == "full" else args
            named = [each.value for each in keywords if each.arg == "size"]
            sizes = sizes or named
            if len(sizes) == 1 and isinstance(sizes[0], (ast.Tuple, ast.List)):
                sizes = sizes[0].elts
            unclear = any(
                isinstance(each, ast.Starred) or "shape" in ast.unparse(each) for each in sizes
            )
            return None if unclear else list(sizes)
    return None
