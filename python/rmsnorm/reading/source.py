"""Finds the norms in a source text: classes, functions and expressions that compute one."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import replace

from rmsnorm.reading.describe import by_path
from rmsnorm.reading.expressions import may_be_norm, norms_in
from rmsnorm.reading.file import File
from rmsnorm.reading.finding import Cause, Description, Finding, Kind
from rmsnorm.reading.interpreter import Function
from rmsnorm.reading.merge import Found, described, finding
from rmsnorm.reading.operations import unfollowed
from rmsnorm.reading.scope import ClassScope, SourceScope, in_scope, numbers
from rmsnorm.reading.scope import arguments as arguments_of
from rmsnorm.reading.values import Symbol, Unknown, Value, tensor_x

# What a function calls its scale; any other factor may be of any shape.
_SCALES = ("weight", "gamma", "w", "g")
_HINTS = ("rsqrt", "sqrt", "pow", "square", "mean", "rms_norm")


def find(text: str) -> list[Finding]:
    """The norms of a source text, and what looks like one, by position.

    A class is one by its forward, a function by what it returns; inside of other functions, single
    expressions are. Nothing is imported or run. What calls a fused RMSNorm already isn't listed.

    Raises:
        SyntaxError, ValueError, RecursionError, MemoryError: as ast.parse does; the latter two
            also where expressions are nested too deep.
    """
    tree = ast.parse(text)
    file = File(tree)
    findings: list[Finding] = []
    done: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and (forward := _method(node, "forward")):
            found = _class(file, node, forward)
            if found is not None:
                findings.append(found)
                done.update((forward, *_helpers(node, forward)))
    for node, owner in _functions(tree):
        if node in done:
            continue
        whole = _function(file, node) if owner is None else None
        if whole is not None and whole.description is not None:
            findings.append(whole)
        else:
            findings += norms_in(file, node, owner)
    return sorted(findings, key=lambda finding: (finding.span.line, finding.span.column))


def _class(file: File, node: ast.ClassDef, forward: ast.FunctionDef) -> Finding | None:
    arguments = arguments_of(forward)[1:]
    if not arguments or not _may_be_one(node):
        return None

    def run(x_dtype: str, gamma_dtype: str) -> Found:
        scope = ClassScope(file, gamma_dtype, forward, node, node)
        others: dict[str, Value] = {name: _argument(name, None, given) for name in arguments[1:]}
        function = scope.attribute("forward")
        if not isinstance(function, Function):
            return {(): function if isinstance(function, Unknown) else unfollowed(function)}
        return by_path(lambda run: run.call(function, [tensor_x(x_dtype)], others), x_dtype)

    given = numbers(forward)
    description = in_scope(described(run, arguments[0]), file, arguments)
    if isinstance(description, Unknown) and not _looks_like_one(node, forward, description):
        return None
    return finding(Kind.CLASS, node.name, forward, description)


def _function(file: File, node: ast.FunctionDef) -> Finding | None:
    arguments = arguments_of(node)
    if not arguments or node.args.vararg or node.args.kwarg or not may_be_norm(node):
        return None

    def run(x_dtype: str, gamma_dtype: str) -> Found:
        others: dict[str, Value] = {
            name: _argument(name, gamma_dtype if name in _SCALES else None, given)
            for name in arguments[1:]
        }
        function = Function(node, SourceScope(file, gamma_dtype, node))
        return by_path(lambda run: run.call(function, [tensor_x(x_dtype)], others), x_dtype)

    given = numbers(node)
    description = in_scope(described(run, arguments[0]), file, arguments)
    if isinstance(description, Description) and description.gamma is not None:
        note = f"{description.gamma} must have one axis: the call spans as many as it has"
        description = replace(description, notes=(*description.notes, note))
    return finding(Kind.FUNCTION, node.name, node, description)


def _argument(name: str, scale_dtype: str | None, given: set[str]) -> Symbol:
    """An argument beside x: a number by its default, or by a name such as eps."""
    is_number = name in given or "eps" in name.lower()
    return Symbol(name, scale_dtype, is_number, is_given=name in given)


def _looks_like_one(node: ast.ClassDef, forward: ast.FunctionDef, unknown: Unknown) -> bool:
    """Whether a reader would take it for a norm: by its name and arithmetic."""
    called = {
        each.func.attr
        for method in (forward, *_helpers(node, forward))
        for each in ast.walk(method)
        if isinstance(each, ast.Call)
        and isinstance(each.func, ast.Attribute)
        and ast.unparse(each.func.value) != "rmsnorm"
    }
    if "norm" in node.name.lower():
        return unknown.cause != Cause.UNREADABLE or any(hint in called for hint in _HINTS)
    return unknown.cause != Cause.UNREADABLE and {"rsqrt", "mean"} <= called


def _may_be_one(node: ast.ClassDef) -> bool:
    return "norm" in node.name.lower() or may_be_norm(node)


def _method(node: ast.ClassDef, name: str) -> ast.FunctionDef | None:
    found = [each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == name]
    return found[-1] if found else None


def _helpers(node: ast.ClassDef, forward: ast.FunctionDef) -> Iterator[ast.FunctionDef]:
    """The methods of the class that forward calls."""
    for each in ast.walk(forward):
        if (
            isinstance(each, ast.Attribute)
            and isinstance(each.value, ast.Name)
            and each.attr != "forward"
            and (method := _method(node, each.attr))
        ):
            yield method


def _functions(tree: ast.Module) -> Iterator[tuple[ast.FunctionDef, ast.ClassDef | None]]:
    """Every function, with the class that it is a method of."""
    methods = {
        function: node
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for function in node.body
        if isinstance(function, ast.FunctionDef)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            yield node, methods.get(node)
