"""The imports that a rewrite adds, and the names under which a file knows a module."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator

from rmsnorm.migrate.source import Edit, Source, dotted, first_line
from rmsnorm.reading.file import Definition

_TORCH = ("torch", "torch_npu")
_NOT_ALWAYS = ("TYPE_CHECKING", "__name__")
_FIRST = re.compile(r"#!|[ \t\f]*#.*coding[:=]")  # only the first two lines count


def name_of(source: Source, module: str) -> tuple[str, bool]:
    """What to call a module in the file, and whether an import must be added for it.

    A file that gives the module's name to something else, such as `def rmsnorm(x)`, gets another.
    """
    taken = set(bound(source.tree, module))
    # A file that imports torch under a condition uses it only then; of others that isn't known.
    block: Iterable[ast.stmt] = source.tree.body
    for statement in _run_with_the_file(block) if module == "torch" else block:
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
    instead = {id(each) for node in ast.walk(tree) for each in _instead_of_import(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            if id(node) not in instead:
                yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, Definition):
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
    """Imports of modules under names, as one edit.

    It follows the file's import of torch, since code such as `os.environ[…] = …` may have to run
    before that; in a file that imports no torch, the imports that the file begins with.
    """
    lines = [
        f"import {module}" + ("" if name == module else f" as {name}")
        for module, name in sorted(modules.items())
    ]
    after = next(filter(_imports_torch, source.tree.body), None)
    if after is None:
        after = next(reversed(_leading_imports(source.tree)), None)
    return _before_the_code(source, lines) if after is None else _after(source, after, lines)


def _imports_torch(statement: ast.stmt) -> bool:
    """Whether it imports torch, or what imports that, also in a try or under a condition."""
    for each in _run_with_the_file([statement]):
        names: list[str] = []
        if isinstance(each, ast.Import):
            names = [alias.name for alias in each.names]
        elif isinstance(each, ast.ImportFrom) and not each.level:
            names = [each.module or ""]
        if any(name.split(".")[0] in _TORCH for name in names):
            return True
    return False


def _run_with_the_file(block: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements, and those in them that aren't put off to a call or to another use."""
    for statement in block:
        yield statement
        if isinstance(statement, Definition):
            continue
        if isinstance(statement, ast.If) and any(
            dotted(each).rpartition(".")[2] in _NOT_ALWAYS for each in ast.walk(statement.test)
        ):
            continue
        for each in ast.iter_child_nodes(statement):
            inner = [each] if isinstance(each, ast.stmt) else getattr(each, "body", ())
            if not isinstance(each, ast.expr):
                yield from _run_with_the_file(inner)


def _instead_of_import(node: ast.AST) -> list[ast.expr]:
    """What is set to None, or the like, where an import fails."""
    if not isinstance(node, ast.ExceptHandler):
        return []
    return [
        target
        for each in node.body
        if isinstance(each, ast.Assign) and isinstance(each.value, ast.Constant)
        for target in each.targets
    ]


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


def _after(source: Source, statement: ast.stmt, new: list[str], between: str = "") -> Edit:
    """On the lines after the statement's, and after those that share its last one."""
    line = statement.end_lineno or 0
    for other in source.tree.body:
        if other.lineno <= line:
            line = max(line, other.end_lineno or 0)
    at = source.line_start(line + 1)
    end = source.line_end_of(line)
    text = between + "".join(each + end for each in new)
    if at == len(source.text) and not source.text.endswith(("\n", "\r")):
        text = end + text.removesuffix(end)
    return Edit(at, at, text)


def _before_the_code(source: Source, new: list[str]) -> Edit:
    """Above the first statement and the comment on it, but below what the file begins with."""
    head = _head(source.tree)
    if head:
        return _after(source, source.tree.body[head - 1], new, between=source.line_end)
    line = first_line(source.tree.body[0])
    lowest = next((i for i in (2, 1) if _FIRST.match(source.line(i))), 0) + 1
    while line > lowest and source.line(line - 1).lstrip(" \t\f").startswith("#"):
        line -= 1
    at = source.line_start(line)
    return Edit(at, at, "".join(each + source.line_end for each in [*new, "", ""]))
