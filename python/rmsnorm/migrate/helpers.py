"""The methods that a class needs no more once its forward is one call."""

from __future__ import annotations

import ast
from collections.abc import Iterable

from rmsnorm.migrate.body import Function, has_check, leading_checks
from rmsnorm.migrate.call import CannotRewriteError
from rmsnorm.migrate.heirs import Heirs
from rmsnorm.migrate.skip import is_skipped
from rmsnorm.migrate.source import Edit, Source, dotted, first_line
from rmsnorm.reading.finding import Description, Span


def remove(source: Source, owner: ast.ClassDef, forward: Function) -> tuple[list[Edit], list[str]]:
    """Edits that remove the helpers that only what is replaced in forward uses, and notes on it.

    A helper's name begins with one underscore: another file may use any other.

    Raises CannotRewriteError where a class in the file may give what forward reads another meaning,
    since the forward that it inherits would not ask for it any more, and where a helper checks what
    it is given or asks to be left.
    """
    replaced: list[ast.AST] = list(forward.body[leading_checks(forward) :])
    methods = {each.name: each for each in owner.body if isinstance(each, ast.FunctionDef)}
    heirs, called = refuse_heirs(source, owner, replaced, forward.name)
    for name in sorted(called & methods.keys()):
        if has_check(methods[name]):
            raise CannotRewriteError(f"{name}, which forward calls, checks what it is given")
        if is_skipped(source, Span.of(methods[name])):
            raise CannotRewriteError(f"{name}, which forward calls, is to be skipped")
    elsewhere = _of_other_objects(source, [owner, *heirs.classes])
    removed: list[ast.FunctionDef] = []
    for _ in methods:  # a helper may have helpers
        for name in sorted(_of_self([*replaced, *removed])):
            method = methods.get(name)
            if method is None or method is forward or method in removed or _must_stay(method):
                continue
            if name not in _used(source.tree, {*replaced, *removed, method} | elsewhere):
                removed.append(method)
    gone = [method.name for method in removed]
    notes = [f"the method {name} is removed: nothing else in the file uses it" for name in gone]
    notes += [
        f"forward doesn't call {name} any more, which another file might override"
        for name in sorted(called - set(gone))
    ]
    return [_lines(source, owner, method) for method in removed], notes


def refuse_heirs(
    source: Source,
    owner: ast.ClassDef,
    replaced: list[ast.AST],
    method: str,
    attributes: set[str] | None = None,
) -> tuple[Heirs, set[str]]:
    """The heirs of a class, and the methods that what is replaced in a method of it calls.

    attributes: those of self that count beside the methods; None: all that are read.

    Raises CannotRewriteError where an heir may give one of them another meaning.
    """
    methods = {each.name: each for each in owner.body if isinstance(each, ast.FunctionDef)}
    methods = _inherited(source, owner) | methods
    called = _called(replaced, methods)
    heirs = Heirs(source, owner)
    read = _of_self([*replaced, *(methods[name] for name in called)])
    heirs.refuse_changes(method, called, read if attributes is None else called | attributes)
    return heirs, called


def attributes_of(norm: Description | None) -> set[str]:
    """Those of self that the norm is described by."""
    if norm is None:
        return set()
    texts = (norm.x, norm.gamma, norm.gamma_if, norm.epsilon)
    return _of_self([ast.parse(text, mode="eval") for text in texts if text])


def _inherited(source: Source, owner: ast.ClassDef) -> dict[str, ast.FunctionDef]:
    """The methods of the class's bases, as far as the file has them."""
    found: dict[str, ast.FunctionDef] = {}
    classes, bases = {each.name: each for each in source.classes()}, list(owner.bases)
    seen: set[str] = set()
    while bases:
        base = classes.get(name := dotted(bases.pop()))
        if base is not None and name not in seen:
            seen.add(name)
            found |= {each.name: each for each in base.body if isinstance(each, ast.FunctionDef)}
            bases += base.bases
    return found


def _called(nodes: list[ast.AST], methods: dict[str, ast.FunctionDef]) -> set[str]:
    """The methods that are called from nodes, also by one another."""
    found: set[str] = set()
    while new := (_of_self([*nodes, *(methods[name] for name in found)]) & methods.keys()) - found:
        found |= new
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


def _must_stay(method: ast.FunctionDef) -> bool:
    if not method.name.startswith("_") or method.name.startswith("__"):
        return True
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
