"""A source text with its syntax tree, and the places in it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from rmsnorm.reading.finding import Span, first_line

_LINE_END = re.compile(r"\r\n|\r|\n")  # what Python takes for one; str.splitlines knows more


@dataclass(frozen=True)
class Edit:
    """text[start:end] becomes `text`."""

    start: int
    end: int
    text: str


class Source:
    """What the parts of a rewrite read.

    Raises:
        SyntaxError, ValueError, RecursionError, MemoryError: as ast.parse.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.tree = ast.parse(text)

    @cached_property
    def _starts(self) -> list[int]:
        return [0, *(match.end() for match in _LINE_END.finditer(self.text))]

    @cached_property
    def line_end(self) -> str:
        """That of the first line."""
        match = _LINE_END.search(self.text)
        return match.group() if match else "\n"

    def index(self, line: int, column: int) -> int:
        """Of a place as ast counts it: lines from 1, columns in UTF-8 bytes."""
        start = self._starts[line - 1]
        until = self.text[start : start + column]
        if until.isascii():
            return start + len(until)
        return start + len(until.encode()[:column].decode())

    def column(self, line: int, column: int) -> int:
        """From 1, in characters."""
        return self.index(line, column) - self._starts[line - 1] + 1

    def start(self, node: ast.stmt | ast.expr) -> int:
        return self.index(node.lineno, node.col_offset)

    def end(self, node: ast.stmt | ast.expr) -> int:
        return self.index(node.end_lineno or 0, node.end_col_offset or 0)

    def line_start(self, line: int) -> int:
        """Where a line begins; the end of the text for the line after the last."""
        return self._starts[line - 1] if line <= len(self._starts) else len(self.text)

    def line(self, number: int) -> str:
        """With its end."""
        return self.text[self.line_start(number) : self.line_start(number + 1)]

    def line_end_of(self, number: int) -> str:
        """That of a line, or of the first where it has none."""
        match = _LINE_END.search(self.line(number))
        return match.group() if match else self.line_end

    def around(self, span: Span) -> list[ast.stmt]:
        """The statements that begin on its first line or above and end on its last or below."""
        return [
            node
            for node in self._statements
            if first_line(node) <= span.line and span.end_line <= (node.end_lineno or 0)
        ]

    @cached_property
    def _statements(self) -> list[ast.stmt]:
        return [node for node in ast.walk(self.tree) if isinstance(node, ast.stmt)]

    def classes(self) -> Iterator[ast.ClassDef]:
        return (node for node in ast.walk(self.tree) if isinstance(node, ast.ClassDef))


def dotted(node: ast.AST) -> str:
    """A name with its attributes, as written; what isn't a name at the front counts as none."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    names.append(node.id if isinstance(node, ast.Name) else "")
    return ".".join(reversed(names))


def apply(text: str, edits: Sequence[Edit]) -> str:
    """The text with all edits made. They overlap nowhere."""
    parts, position = [], 0
    for edit in sorted(edits, key=lambda edit: (edit.start, edit.end)):
        if edit.start < position:
            raise ValueError(f"edits overlap at {edit.start}")
        parts += [text[position : edit.start], edit.text]
        position = edit.end
    return "".join([*parts, text[position:]])


def common_length(a: Sequence[str], b: Sequence[str]) -> int:
    """How many lines at the beginning are the same."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (left, right) in pairs if left != right), min(len(a), len(b)))
