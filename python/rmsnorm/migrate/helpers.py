"""The methods that a class needs no more once its forward is one call."""

from __future__ import annotations

import ast
from collections.abc import Iterable

from rmsnorm.migrate.body import Function, first_line, has_check, leading_checks
from rmsnorm.migrate.call import CannotRewriteError
from rmsnorm.migrate.source import Edit, Source


def remove(source: Source, owner: ast.ClassDef, forward: Function) -> list[Edit]:
    """Edits that remove the helpers that only what is replaced in forward uses.

    Raises CannotRewriteError where a class in the file overrides one of them, since the forward
    that it inherits would not call it any more, and where one of them checks what it is given.
    """
    replaced: list[ast.AST] = list(forward.body[leading_checks(forward) :])
    methods = {each.name: each for each in owner.body if isinstance(each, ast.FunctionDef)}
    heirs = _heirs(source, owner)
    for heir in heirs:
        own = {each.name for each in heir.body if isinstance(each, ast.FunctionDef)}
        if "forward" not in own and (overridden := sorted(own & _of_self(replaced))):
            raise CannotRewriteError(f"{heir.name} overrides {overridden[0]}, which forward calls")
    for name in sorted(_called(replaced, methods)):
        if has_check(methods[name]):
            raise CannotRewriteError(f"{name}, which forward calls, checks what it is given")
    elsewhere = _of_other_objects(source, [owner, *heirs])
    removed: list[ast.FunctionDef] = []
    for _ in methods:  # a helper may have helpers
        for name in sorted(_of_self([*replaced, *removed])):
            method = methods.get(name)
            if method is None or method is forward or method in removed or _is_decorated(method):
                continue
            if name not in _used(source.tree, {*replaced, *removed, method} | elsewhere):
                removed.append(method)
    return [_lines(source, owner, method) for method in removed]


def _called(nodes: list[ast.AST], methods: dict[str, ast.FunctionDef]) -> set[str]:
    """The methods that are called from nodes, also by one another."""
    found: set[str] = set()
    while new := (_of_self([*nodes, *(methods[name] for name in found)]) & methods.keys()) - found:
        found |= new
    return found


def _heirs(source: Source, owner: ast.ClassDef) -> list[ast.ClassDef]:
    """The file's classes that inherit from owner."""
    names, found = {owner.name}, []
    for node in source.classes():
        bases = {ast.unparse(base).split(".")[-1] for base in node.bases}
        if node is not owner and bases & names:
            names.add(node.name)
            found.append(node)
    return found


def _of_other_objects(source: Source, related: list[ast.ClassDef]) -> set[ast.AST]:
    """Where other classes read attributes of their own self."""
    return {
        each
        for node in source.classes()
        if node not in related
        for each in ast.walk(node)
        if _is_of_self(each)
    }


def _of_self(nodes: Iterable[ast.AST]) -> set[str]:
    return {
        each.attr
        for node in nodes
        for each in ast.walk(node)
        if isinstance(each, ast.Attribute) and _is_of_self(each)
    }


def _is_of_self(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    )


def _used(tree: ast.AST, but: set[ast.AST]) -> set[str]:
    """The words of the tree that may name a method, outside of some nodes."""
    words = set()
    level = [tree]
    while level:
        for node in level:
            if isinstance(node, ast.Attribute):
                words.add(node.attr)
            elif isinstance(node, ast.Name):
                words.add(node.id)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                words.add(node.value)
        level = [each for node in level for each in ast.iter_child_nodes(node) if each not in but]
    return words


def _is_decorated(method: ast.FunctionDef) -> bool:
    names = {ast.unparse(each) for each in method.decorator_list}
    return not names <= {"staticmethod", "torch.no_grad()"}


def _lines(source: Source, owner: ast.ClassDef, method: ast.FunctionDef) -> Edit:
    """Its lines, with the comments and empty lines above it."""
    position = owner.body.index(method)
    start = first_line(method)
    if position:
        start = (owner.body[position - 1].end_lineno or 0) + 1
    end = (method.end_lineno or 0) + 1
    return Edit(source.line_start(start), source.line_start(end), "")
