"""The body of a function replaced by a statement, its docstring and its checks kept."""

from __future__ import annotations

import ast
import re

import libcst as cst

from rmsnorm.migrate.call import Call, CannotRewriteError
from rmsnorm.migrate.source import Edit, Source, common_length, first_line

Function = ast.FunctionDef | ast.AsyncFunctionDef

# LibCST's parser recurses in native code, where too deep a source ends the process; so it is given
# one function, or one import, and never more than this.
_DEEPEST = 100
_WIDTH = 88  # of a line, for black and ruff as they come


def replace_body(source: Source, function: Function, call: Call, names: dict[str, str]) -> Edit:
    """All statements after the docstring and the checks become the call, returned.

    Raises CannotRewriteError where checks stand between other statements, or the function is not
    ordinary Python.
    """
    kept = leading_checks(function)
    if any(map(has_check, function.body[kept:])):
        raise CannotRewriteError("checks stand between the statements that compute the norm")
    if _depth(function) > _DEEPEST:
        raise CannotRewriteError(f"{function.name} is nested more than {_DEEPEST} deep")
    first = first_line(function)
    start = source.line_start(first)
    text = source.text[start : source.line_start((function.end_lineno or 0) + 1)].rstrip("\r\n")
    old = re.sub(r"\r\n?", "\n", text)  # LibCST knows no lone \r
    new = _replaced(old, kept, call, names)
    same = common_length(old.split("\n"), new.split("\n"))
    tail = source.line_end.join(new.split("\n")[same:])
    return Edit(source.line_start(first + same), start + len(text), tail)


def leading_checks(function: Function) -> int:
    """How many statements stay: the docstring, then asserts and `if …: raise`."""
    has_docstring = ast.get_docstring(function, clean=False) is not None
    kept = int(has_docstring)
    while kept < len(function.body) and _is_check(function.body[kept]):
        kept += 1
    return kept


def _is_check(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.If):
        return not statement.orelse and all(isinstance(s, ast.Raise) for s in statement.body)
    return isinstance(statement, ast.Assert)


def has_check(node: ast.AST) -> bool:
    """Whether something in it can raise on purpose."""
    return any(isinstance(each, (ast.Raise, ast.Assert)) for each in ast.walk(node))


def _depth(node: ast.AST) -> int:
    depth, level = 0, [node]
    while level:
        depth += 1
        level = [child for each in level for child in ast.iter_child_nodes(each)]
    return depth


def _replaced(text: str, kept: int, call: Call, names: dict[str, str]) -> str:
    indent = text[: len(text) - len(text.lstrip(" \t\f"))]
    head = "if True:\n" if indent else ""
    module = _parsed(head + text)
    if module.code != head + text:
        raise CannotRewriteError("LibCST doesn't give the function back as it is")
    function = module.body[0]
    if isinstance(function, cst.If):
        function = function.body.body[0]  # type: ignore[assignment]
    assert isinstance(function, cst.FunctionDef)
    unit = module.default_indent
    if isinstance(function.body, cst.IndentedBlock) and function.body.indent is not None:
        unit = function.body.indent
    statement = call.statement(names, unit, _WIDTH - len(indent) - len(unit))
    changed = module.deep_replace(function, _with_body(module, function, kept, statement))
    assert isinstance(changed, cst.Module)
    return changed.code[len(head) :]


def _parsed(text: str) -> cst.Module:
    try:
        return cst.parse_module(text)
    except cst.ParserSyntaxError as error:
        raise CannotRewriteError(f"LibCST can't parse it: {error.message}") from None


def _with_body(
    module: cst.Module, function: cst.FunctionDef, kept: int, statement: str
) -> cst.FunctionDef:
    new = cst.parse_statement(statement, config=module.config_for_parsing)
    assert isinstance(new, cst.SimpleStatementLine)
    if isinstance(function.body, cst.SimpleStatementSuite):
        small = [*function.body.body[:kept], *new.body]
        return function.with_changes(body=function.body.with_changes(body=small))
    lines: list[cst.BaseStatement] = []
    for line in function.body.body:
        assert isinstance(line, cst.BaseStatement)
        count = len(line.body) if isinstance(line, cst.SimpleStatementLine) else 1
        if count > kept:
            lines_above = line.leading_lines  # type: ignore[attr-defined]
            blank = [each for each in lines_above if each.comment is None]
            if kept:  # a docstring and a statement on one line
                assert isinstance(line, cst.SimpleStatementLine)
                new = line.with_changes(body=[*line.body[:kept], *new.body])
            else:
                new = new.with_changes(leading_lines=blank)
            break
        lines.append(line)
        kept -= count
    return function.with_changes(body=function.body.with_changes(body=[*lines, new]))
