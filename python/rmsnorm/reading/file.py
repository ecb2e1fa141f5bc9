"""A source file, indexed: what its names and its classes' attributes are bound to."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable, Iterator

from rmsnorm.reading.parameters import is_buffer
from rmsnorm.reading.syntax import imported
from rmsnorm.reading.values import Value

Definition = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


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
        self._index(tree)
        self._held: dict[ast.ClassDef, dict[str, list[ast.expr]]] = {}

    def _index(self, tree: ast.AST) -> None:
        waiting: list[tuple[ast.AST, list[ast.AST]]] = [(tree, [])]
        while waiting:
            node, around = waiting.pop()
            if isinstance(node, Definition):
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


@functools.lru_cache(maxsize=4096)
def local_names(function: ast.FunctionDef) -> frozenset[str]:
    """The arguments of a function, and what it assigns."""
    spec = function.args
    named = [*spec.posonlyargs, *spec.args, *spec.kwonlyargs, spec.vararg, spec.kwarg]
    names = {arg.arg for arg in named if arg is not None}
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, Definition) and node is not function:
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


def in_body(node: ast.ClassDef, name: str) -> Iterator[ast.FunctionDef | ast.expr | None]:
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
        if not isinstance(node, Definition):
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
                    whole = is_buffer(each) or len(given) < 2
                    yield given[0].value, each if whole else given[1]
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
