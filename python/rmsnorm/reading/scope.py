"""Where the names of a source text lead, as far as the text itself says."""

from __future__ import annotations

import ast
from collections.abc import Container
from dataclasses import dataclass

from rmsnorm.reading.file import File, in_body
from rmsnorm.reading.finding import Cause, Description
from rmsnorm.reading.interpreter import Function, Scope
from rmsnorm.reading.parameters import is_buffer, is_none, is_parameter, wrong_shape
from rmsnorm.reading.syntax import literal
from rmsnorm.reading.values import (
    Named,
    Number,
    Symbol,
    Unknown,
    Value,
    scale,
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
        if isinstance(first, ast.expr) and is_number(first):
            return Symbol(name, None, is_number=True, is_given=True)
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
        inside = [value for each in classes for value in in_body(each, name)]
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
        given = {name for each in classes for name in _given_to_init(each)}
        return self._held(text, held, given)

    def inherited(self, name: str, after: Scope) -> Value:
        classes, _ = self._classes()
        defined = after.defined if isinstance(after, ClassScope) else self.owner
        return self._method(name, classes[classes.index(defined) + 1 :])

    def _held(self, text: str, held: list[ast.expr], given: set[str]) -> Value:
        """What an attribute is that is set to these values; given: arguments that are numbers."""
        if any(is_buffer(value) for value in held):
            return Unknown(Cause.UNREADABLE, f"reads {text}, a buffer")
        parameters = [value for value in held if is_parameter(value)]
        again = [value for value in held if ast.unparse(value) == text]  # registered by its name
        known = [*parameters, *again]
        others = [value for value in held if value not in known and not is_none(value)]
        if parameters and not others:
            for value in parameters:
                if (wrong := wrong_shape(value, text)) is not None:
                    return wrong
            whole = len(known) == len(held) and not any(
                isinstance(value, ast.IfExp) for value in held
            )
            return scale(text, self.gamma_dtype) if whole else Symbol(text, self.gamma_dtype)
        is_given = all(
            is_number(value) or (isinstance(value, ast.Name) and value.id in given)
            for value in held
        )
        return Symbol(text, None, is_number=not parameters, is_given=is_given)

    def _method(self, name: str, classes: list[ast.ClassDef]) -> Value:
        """The method of the first class that has one; nothing where it isn't sure."""
        unread = Unknown(Cause.UNREADABLE, f"calls self.{name}, which isn't followed")
        for defined in classes:
            inside = list(in_body(defined, name))
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
            names = [ast.unparse(base) for base in found[-1].bases]
            if all(name.rpartition(".")[2] in ("Module", "object") for name in names):
                return found, True
            base = self.file.classes.get(names[0]) if len(names) == 1 else None
            if not isinstance(base, ast.ClassDef) or base in found:
                return found, False
            found.append(base)


def _given_to_init(node: ast.ClassDef) -> set[str]:
    inits = [each for each in node.body if getattr(each, "name", "") == "__init__"]
    return {name for each in inits if isinstance(each, ast.FunctionDef) for name in numbers(each)}


def arguments(node: ast.FunctionDef) -> list[str]:
    spec = node.args
    return [arg.arg for arg in (*spec.posonlyargs, *spec.args, *spec.kwonlyargs)]


def numbers(node: ast.FunctionDef) -> set[str]:
    """The arguments that are numbers: by their default, or by a name such as eps without one."""
    spec = node.args
    positional = [*spec.posonlyargs, *spec.args]
    given = [
        *zip(positional[::-1], spec.defaults[::-1], strict=False),
        *zip(spec.kwonlyargs, spec.kw_defaults, strict=True),
    ]
    defaults = {arg.arg: value for arg, value in given if value is not None}
    named = {name for name in arguments(node) if "eps" in name.lower() and name not in defaults}
    return named | {name for name, value in defaults.items() if is_number(value)}


def is_number(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and isinstance(literal(value.value), Number)


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
