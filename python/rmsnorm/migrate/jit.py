"""What torch.jit compiles or traces, as far as a file shows: a call of ours would break it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from rmsnorm.migrate.source import Source, dotted
from rmsnorm.reading.file import Definition

_COMPILER = re.compile(r"(^|\.)_?script(_\w+)?$|(^|\.)jit\.trace(_module)?$")
_MODULE = re.compile(r"(^|\.)ScriptModule$")

REASON = "torch.jit compiles what it is in, and can't compile a call of another library"


def compiles(source: Source, around: list[ast.stmt]) -> bool:
    """Whether one of the definitions around is given to torch.jit, or used by one that is.

    All are where what torch.jit is given can't be followed, such as an argument.
    """
    if "jit" not in source.text and "script" not in source.text:
        return False
    given = list(_given(source.tree))
    if not given:
        return False
    values = _values(source.tree)
    unknown = {each.arg for each in ast.walk(source.tree) if isinstance(each, ast.arg)}
    found: set[str] = set()
    while given:
        node = given.pop()
        is_definition = isinstance(node, Definition)
        for name in {each.id for each in ast.walk(node) if isinstance(each, ast.Name)} | (
            {node.name} if isinstance(node, Definition) else set()
        ):
            if not is_definition and (name in unknown or name not in values):
                return True
            if name not in found:
                found.add(name)
                given += values.get(name, ())
    return any(isinstance(each, Definition) and each.name in found for each in around)


def _given(tree: ast.Module) -> Iterator[ast.AST]:
    """The definitions that are decorated, and the arguments of calls."""
    names = _names_of_compilers(tree)

    def is_compiler(node: ast.expr) -> bool:
        text = dotted(node.func if isinstance(node, ast.Call) else node)
        return text in names or _COMPILER.search(text) is not None

    for node in ast.walk(tree):
        if isinstance(node, Definition):
            bases = node.bases if isinstance(node, ast.ClassDef) else []
            is_module = any(_MODULE.search(dotted(base)) for base in bases)
            if is_module or any(map(is_compiler, node.decorator_list)):
                yield node
        elif isinstance(node, ast.Call) and _is_path(node.func) and is_compiler(node.func):
            yield from node.args[:1] or (each.value for each in node.keywords)


def _names_of_compilers(tree: ast.Module) -> set[str]:
    """What the file calls torch.jit.script and the like by names of its own."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "torch.jit":
            for alias in node.names:
                if _COMPILER.search(f"jit.{alias.name}"):
                    found.add(alias.asname or alias.name)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name == "torch.jit" and alias.asname:
                    found |= {f"{alias.asname}.trace", f"{alias.asname}.trace_module"}
        elif isinstance(node, ast.Assign) and not isinstance(node.value, ast.Call):
            parts = (dotted(each) for each in ast.walk(node.value) if _is_path(each))
            if any(map(_COMPILER.search, parts)):
                found |= {each.id for each in node.targets if isinstance(each, ast.Name)}
    return found


def _is_path(node: ast.AST) -> bool:
    return isinstance(node, (ast.Name, ast.Attribute))


def _values(tree: ast.Module) -> dict[str, list[ast.AST]]:
    """What the file's names stand for, in any scope: definitions and expressions."""
    found: dict[str, list[ast.AST]] = {}
    for node in ast.walk(tree):
        targets: list[ast.expr] = []
        if isinstance(node, Definition):
            found.setdefault(node.name, []).append(node)
        elif isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, (ast.AnnAssign, ast.For, ast.NamedExpr)):
            targets = [node.target]
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                found.setdefault((alias.asname or alias.name).split(".")[0], [])
        value = node.iter if isinstance(node, ast.For) else getattr(node, "value", None)
        for target in targets:
            for each in ast.walk(target):
                if isinstance(each, ast.Name) and value is not None:
                    found.setdefault(each.id, []).append(value)
    return found
