"""Calls that only an NPU can run, and the same by rmsnorm: torch_npu.npu_rms_norm."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from rmsnorm.migrate import body
from rmsnorm.migrate.imports import bound
from rmsnorm.migrate.source import Edit, Source

_FUNCTIONS = ("npu_rms_norm", "npu_rms_norm_backward")


@dataclass(frozen=True)
class Use:
    """A place that names one of the functions, called or not.

    keywords: the first argument where it is given by a name that rmsnorm doesn't take.
    is_shadowed: its name may stand for something else, too.
    """

    node: ast.Attribute | ast.Name
    function: str
    keywords: tuple[ast.keyword, ...]
    is_shadowed: bool

    def edits(self, source: Source, module: str) -> list[Edit]:
        """module: what the file calls rmsnorm."""
        new = f"{module}.{self.function}"
        edits = [Edit(source.start(self.node), source.end(self.node), new)]
        for keyword in self.keywords:
            start = source.index(keyword.lineno, keyword.col_offset)
            edits.append(Edit(start, start + len(keyword.arg or ""), "self"))
        return edits


def uses(tree: ast.Module) -> list[Use]:
    """In order of position."""
    modules, torch, functions = _imported(tree)
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    shadowed = set(bound(tree, "torch_npu")) if functions else set()
    found: list[Use] = []
    inside: set[int] = set()
    for node in ast.walk(tree):
        if id(node) in inside or not isinstance(node, (ast.Attribute, ast.Name)):
            continue
        function = _function(node, modules, torch, functions)
        if function is None or not isinstance(node.ctx, ast.Load):
            continue
        inside.update(map(id, ast.walk(node)))
        call = calls.get(id(node))
        keywords = [each for each in call.keywords if each.arg in ("input", "x")] if call else []
        is_shadowed = isinstance(node, ast.Name) and node.id in shadowed
        found.append(Use(node, function, tuple(keywords), is_shadowed))
    return sorted(found, key=lambda use: (use.node.lineno, use.node.col_offset))


def _imported(tree: ast.Module) -> tuple[set[str], set[str], dict[str, str]]:
    """The file's names for torch_npu, for torch, and for the functions."""
    modules, torch, functions = set(), set(), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                root = alias.name.split(".")[0]
                if root == "torch_npu" and (alias.asname is None or alias.name == root):
                    modules.add(alias.asname or root)
                elif root == "torch" and (alias.asname is None or alias.name == root):
                    torch.add(alias.asname or root)
        elif isinstance(node, ast.ImportFrom) and node.module == "torch_npu" and not node.level:
            for alias in node.names:
                if alias.name in _FUNCTIONS:
                    functions[alias.asname or alias.name] = alias.name
    return modules, torch, functions


def _function(
    node: ast.expr, modules: set[str], torch: set[str], functions: dict[str, str]
) -> str | None:
    """Which of the functions the expression names."""
    if isinstance(node, ast.Name):
        return functions.get(node.id)
    if not isinstance(node, ast.Attribute) or node.attr not in (*_FUNCTIONS, "default"):
        return None
    path = ast.unparse(node).split(".")
    if path[-1] == "default":
        path.pop()
    is_ours = path[-1] in _FUNCTIONS and (
        (len(path) == 2 and path[0] in modules)
        or (len(path) == 4 and path[0] in torch and path[1:3] == ["ops", "npu"])
    )
    return path[-1] if is_ours else None


def unneeded_imports(source: Source, rewritten: list[Use]) -> list[Edit]:
    """Without the imports of torch_npu that nothing uses once these uses are rewritten.

    torch_npu also makes the device "npu" known, so a file that says npu anywhere else keeps it.
    """
    gone = {id(node) for use in rewritten for node in ast.walk(use.node)}
    gone |= {id(node.value) for node in ast.walk(source.tree) if isinstance(node, ast.Expr)}
    words = {
        word for node in ast.walk(source.tree) if id(node) not in gone for word in _words(node)
    }
    says_npu = any("npu" in word.lower() for word in words)
    edits = []
    for block in _blocks(source.tree):
        for statement in block:
            names = _removable(statement, words, says_npu)
            if not names or not isinstance(statement, (ast.Import, ast.ImportFrom)):
                continue
            start, end = source.start(statement), source.end(statement)
            if len(names) < len(statement.names):
                edits.append(Edit(start, end, body.without_names(source, statement, names)))
            elif len(block) > 1 and (whole := _whole_lines(source, statement)):
                edits.append(Edit(*whole, ""))
    return edits


def _words(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Name):
        yield node.id
    elif isinstance(node, ast.Attribute):
        yield node.attr
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, (ast.Import, ast.ImportFrom)):
        module = getattr(node, "module", None) or ""
        yield from (
            name
            for alias in node.names
            if (name := f"{module}.{alias.name}".strip("."))
            not in ("torch_npu", *(f"torch_npu.{function}" for function in _FUNCTIONS))
        )


def _removable(statement: ast.stmt, words: set[str], says_npu: bool) -> set[str]:
    """Which of the names that it imports are of torch_npu and not needed any more."""
    if isinstance(statement, ast.Import):
        return {
            alias.name
            for alias in statement.names
            if alias.name == "torch_npu" and not says_npu and alias.asname not in words
        }
    if isinstance(statement, ast.ImportFrom) and statement.module == "torch_npu":
        unused = {
            alias.name
            for alias in statement.names
            if alias.name in _FUNCTIONS and (alias.asname or alias.name) not in words
        }
        is_last = len(unused) == len(statement.names)
        return set() if is_last and says_npu else unused
    return set()


def _blocks(tree: ast.Module) -> Iterator[list[ast.stmt]]:
    """The module's and each function's statements. A condition's or a try's import is left."""
    yield tree.body
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node.body


def _whole_lines(source: Source, statement: ast.stmt) -> tuple[int, int] | None:
    """From where to where its lines go; None where they hold something else, too."""
    start = source.line_start(statement.lineno)
    end = source.line_start((statement.end_lineno or 0) + 1)
    before = source.text[start : source.start(statement)]
    after = source.text[source.end(statement) : end]
    return None if before.strip() or after.strip() else (start, end)
