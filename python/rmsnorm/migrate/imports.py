"""The imports that a rewrite adds, and the names under which a file knows a module."""

from __future__ import annotations

import ast
from collections.abc import Iterable

from rmsnorm.migrate.source import Edit, Source


def name_of(source: Source, module: str) -> tuple[str, bool]:
    """What to call a module in the file, and whether an import must be added for it.

    A file that gives the module's name to something else, such as `def rmsnorm(x)`, gets another.
    """
    taken = set(bound(source.tree, module))
    for statement in source.tree.body:
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                name = alias.asname or alias.name
                if alias.name == module and name not in taken:
                    return name, False
    name = module
    while name in taken:
        name = f"fused_{name}"
    return name, True


def bound(tree: ast.AST, module: str) -> Iterable[str]:
    """Names that the file binds, in any scope, other than by importing the module or from it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                origin = alias.name if isinstance(node, ast.Import) else node.module or ""
                is_relative = isinstance(node, ast.ImportFrom) and node.level > 0
                if is_relative or origin.split(".")[0] != module:
                    yield alias.asname or alias.name.split(".")[0]
        elif isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) and node.name:
            yield node.name


def add(source: Source, modules: dict[str, str]) -> Edit:
    """Imports of modules under names, as one edit with the file's other imports."""
    lines = [
        f"import {module}" + ("" if name == module else f" as {name}")
        for module, name in sorted(modules.items())
    ]
    text = "".join(line + source.line_end for line in lines)
    leading = _leading_imports(source.tree)
    for statement in leading:  # as isort sorts: before the plain imports of later names
        is_later = isinstance(statement, ast.Import) and statement.names[0].name > max(modules)
        if is_later and source.start(statement) == source.line_start(statement.lineno):
            return Edit(source.start(statement), source.start(statement), text)
    after_torch = [each for each in leading if ast.unparse(each) == "import torch"]
    if leading:
        return _after(source, [*leading, *after_torch][-1], text)
    return _before_the_code(source, text)


def _leading_imports(tree: ast.Module) -> list[ast.stmt]:
    """The imports that the file begins with, those from __future__ left out."""
    found: list[ast.stmt] = []
    for statement in tree.body[_head(tree) :]:
        if not isinstance(statement, (ast.Import, ast.ImportFrom)):
            break
        found.append(statement)
    return found


def _head(tree: ast.Module) -> int:
    """How many statements must stay first: the docstring, imports from __future__."""
    count = int(ast.get_docstring(tree, clean=False) is not None)
    while count < len(tree.body):
        statement = tree.body[count]
        if not (isinstance(statement, ast.ImportFrom) and statement.module == "__future__"):
            break
        count += 1
    return count


def _after(source: Source, statement: ast.stmt, text: str) -> Edit:
    """On the lines after the statement's, and after those that share its last one."""
    line = statement.end_lineno or 0
    for other in source.tree.body:
        if other.lineno <= line:
            line = max(line, other.end_lineno or 0)
    at = source.line_start(line + 1)
    if at == len(source.text) and not source.text.endswith(("\n", "\r")):
        text = source.line_end + text.removesuffix(source.line_end)
    return Edit(at, at, text)


def _before_the_code(source: Source, text: str) -> Edit:
    head = _head(source.tree)
    if head:
        edit = _after(source, source.tree.body[head - 1], text)
        return Edit(edit.start, edit.end, source.line_end + edit.text)
    first = source.tree.body[0]
    lines = [first.lineno, *(each.lineno for each in getattr(first, "decorator_list", ()))]
    at = source.line_start(min(lines))
    return Edit(at, at, text + 2 * source.line_end)
