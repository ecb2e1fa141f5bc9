"""Where the names of a source text lead, as far as the text itself says."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from rmsnorm.reading.finding import Cause
from rmsnorm.reading.interpreter import Function, Scope
from rmsnorm.reading.values import (
    Named,
    Number,
    Symbol,
    Unknown,
    Value,
    other_formula,
    scale,
)


class File:
    """A parsed file, indexed once: its names, its classes and what they assign to self."""

    def __init__(self, tree: ast.Module) -> None:
        self.tree = tree
        self.imported: dict[str, str] = {}
        self.functions: dict[str, ast.FunctionDef] = {}
        self.constants: dict[str, ast.expr] = {}
        for node in _statements(tree.body):
            self._index(node)
        self.classes = {
            each.name: each for each in ast.walk(tree) if isinstance(each, ast.ClassDef)
        }
        self._held: dict[ast.ClassDef, dict[str, list[ast.expr]]] = {}

    def _index(self, node: ast.stmt) -> None:
        match node:
            case ast.Import(names):
                for alias in names:
                    first = alias.name.partition(".")[0]
                    self.imported[alias.asname or first] = alias.name if alias.asname else first
            case ast.ImportFrom(module, names, level) if not level:
                for alias in names:
                    self.imported[alias.asname or alias.name] = f"{module}.{alias.name}"
            case ast.FunctionDef(name):
                self.functions[name] = node
            case ast.Assign([ast.Name(name)], value):
                self.constants[name] = value

    def held(self, node: ast.ClassDef) -> dict[str, list[ast.expr]]:
        """Every value that a class gives to an attribute, by its name."""
        if node not in self._held:
            self._held[node] = {}
            for name, value in _assignments(node):
                self._held[node].setdefault(name, []).append(value)
        return self._held[node]


@dataclass(frozen=True)
class SourceScope:
    """The names of a file: what it imports, its functions, its constants."""

    file: File
    gamma_dtype: str

    def name(self, name: str) -> Value:
        if name in self.file.imported:
            return Named(self.file.imported[name])
        if name in self.file.functions:
            return Function(self.file.functions[name], SourceScope(self.file, self.gamma_dtype))
        held = self.file.constants.get(name)
        if isinstance(held, ast.Constant) and isinstance(held.value, (int, float)):
            return Number(float(held.value), name)
        if name in ("staticmethod", "classmethod"):
            return Named(name)
        return Unknown(Cause.UNREADABLE, f"reads {name}, which isn't followed")

    def attribute(self, name: str) -> Value:
        return Unknown(Cause.UNREADABLE, f"reads self.{name}, which isn't followed")

    def inherited(self, name: str, after: Scope) -> Value:
        return Unknown(Cause.UNREADABLE, f"calls super().{name}, which isn't followed")


@dataclass(frozen=True)
class ClassScope(SourceScope):
    """The names that a method sees. `node` is the class, `owner` the one that the method is of."""

    node: ast.ClassDef
    owner: ast.ClassDef | None = None

    def attribute(self, name: str) -> Value:
        text = f"self.{name}"
        if name == "training":
            return Symbol(text, None)
        if (method := self._method(name, self._classes())) is not None:
            return method
        held = [value for each in self._classes() for value in self.file.held(each).get(name, ())]
        if not held:
            base = name == "weight" and not self._is_plain_module()
            return Symbol(text, self.gamma_dtype if base else None)
        if any(_is_buffer(value) for value in held):
            return Unknown(Cause.GATED, f"reads {text}, a buffer")
        parameters = [value for value in held if _is_parameter(value)]
        others = [value for value in held if value not in parameters and not _is_none(value)]
        if parameters and not others:
            if (wrong := _wrong_shape(parameters[0], text)) is not None:
                return wrong
            whole = len(parameters) == len(held) and not isinstance(held[0], ast.IfExp)
            return scale(text, self.gamma_dtype) if whole else Symbol(text, self.gamma_dtype)
        if len(held) == 1 and isinstance(held[0], ast.Constant):
            return _literal(held[0].value, text)
        return Symbol(text, None)

    def inherited(self, name: str, after: Scope) -> Value:
        owner = after.owner if isinstance(after, ClassScope) and after.owner else self.node
        classes = list(self._classes())
        later = classes[classes.index(owner) + 1 :]
        found = self._method(name, later)
        return found or Unknown(Cause.UNREADABLE, f"calls super().{name}, which isn't followed")

    def _method(
        self, name: str, classes: Iterator[ast.ClassDef] | list[ast.ClassDef]
    ) -> Value | None:
        for owner in classes:
            for node in reversed(owner.body):
                if isinstance(node, ast.FunctionDef) and node.name == name:
                    decorators = {ast.unparse(each) for each in node.decorator_list}
                    if "property" in decorators:
                        return Unknown(Cause.UNREADABLE, f"reads the property self.{name}")
                    scope = ClassScope(self.file, self.gamma_dtype, self.node, owner)
                    return Function(node, scope, bound="staticmethod" not in decorators)
        return None

    def _classes(self) -> Iterator[ast.ClassDef]:
        """The class and those of its bases that stand in the file, nearest first."""
        known = self.file.classes
        waiting, seen = [self.node], set()
        while waiting:
            node = waiting.pop(0)
            if node in seen:
                continue
            seen.add(node)
            yield node
            waiting += [
                known[base.id]
                for base in node.bases
                if isinstance(base, ast.Name) and base.id in known
            ]

    def _is_plain_module(self) -> bool:
        """Whether the file shows all that the class inherits but torch.nn.Module."""
        known = self.file.classes
        bases = [ast.unparse(base) for each in self._classes() for base in each.bases]
        return all(base.rpartition(".")[2] == "Module" or base in known for base in bases)


def _assignments(node: ast.ClassDef) -> Iterator[tuple[str, ast.expr]]:
    for each in ast.walk(node):
        match each:
            case ast.Assign(targets, value):
                for target in targets:
                    if (name := _attribute(target)) is not None:
                        yield name, value
            case ast.AnnAssign(target, _, value) | ast.AugAssign(target, _, value):
                if value is not None and (name := _attribute(target)) is not None:
                    yield name, value
            case ast.Call(ast.Attribute(_, "register_parameter"), [ast.Constant(str(name)), value]):
                yield name, value
            case ast.Call(ast.Attribute(_, "register_buffer"), [ast.Constant(str(name)), *_]):
                yield name, each
    for statement in node.body:
        match statement:
            case ast.Assign([ast.Name(name)], value):
                yield name, value


def _attribute(target: ast.expr) -> str | None:
    """The name in self.name."""
    match target:
        case ast.Attribute(ast.Name("self"), name):
            return name
    return None


def _is_none(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is None


def _is_buffer(value: ast.expr) -> bool:
    return isinstance(value, ast.Call) and ast.unparse(value.func) == "self.register_buffer"


def _is_parameter(value: ast.expr) -> bool:
    """nn.Parameter(…), or that or None."""
    if isinstance(value, ast.IfExp):
        return all(_is_none(each) or _is_parameter(each) for each in (value.body, value.orelse))
    return isinstance(value, ast.Call) and ast.unparse(value.func).rpartition(".")[2] == "Parameter"


def _wrong_shape(value: ast.expr, text: str) -> Unknown | None:
    """Why a parameter can't scale the last axis, by the torch.ones(…) that it is made of."""
    if not isinstance(value, ast.Call) or not value.args or not isinstance(value.args[0], ast.Call):
        return None
    sizes = value.args[0].args
    if len(sizes) == 1 and isinstance(sizes[0], (ast.Tuple, ast.List)):
        sizes = sizes[0].elts
    if not sizes or all(isinstance(size, ast.Constant) for size in sizes):
        numbers = [size.value for size in sizes if isinstance(size, ast.Constant)]
        if all(number == 1 for number in numbers):
            return other_formula(f"scales by {text}, which has one element")
    if len(sizes) > 1:
        return Unknown(Cause.GROUPED, f"scales by {text}, which has several axes")
    return None


def _literal(value: object, text: str) -> Value:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return Number(float(value), text)
    return Symbol(text, None)


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Those of a file, and of its if and try blocks."""
    for node in body:
        yield node
        for field in ("body", "orelse", "handlers", "finalbody"):
            if isinstance(node, (ast.If, ast.Try, ast.ExceptHandler)):
                yield from _statements(getattr(node, field, []))
