"""What a text computes by small operators or on an NPU alone, and the text with the fused calls."""

from __future__ import annotations

import ast
from dataclasses import dataclass, replace

from rmsnorm.migrate import body, helpers, imports, npu
from rmsnorm.migrate.call import Call, CannotRewriteError, Target, call_of, in_words
from rmsnorm.migrate.codes import OF_CAUSE, OF_KIND, Code
from rmsnorm.migrate.source import Edit, Source, apply
from rmsnorm.reading.finding import Finding, Kind, Span
from rmsnorm.reading.source import find

_ROUNDS = 4
_LATE = "found once the others are rewritten; its line is that of the new text"


@dataclass(frozen=True)
class Item:
    """A line of the report.

    Attributes:
        name: of the class or function; "" for what concerns a whole file.
        line, column, end_line, end_column: from 1, in characters; 1, 1, 1, 1 for a whole file.
        text: what is computed; for what is left, why.
        replacement: the call; None for what is left.
        notes: where the call rounds otherwise than the source, or returns another dtype.
        edits: those that concern this item alone.
    """

    code: Code
    name: str
    line: int
    column: int
    end_line: int
    end_column: int
    text: str
    replacement: str | None = None
    notes: tuple[str, ...] = ()
    edits: tuple[Edit, ...] = ()


@dataclass(frozen=True)
class Rewriting:
    """items in order of position; imports: the edits that serve all of them."""

    items: tuple[Item, ...]
    imports: tuple[Edit, ...]
    text: str


def whole_file(code: Code, text: str) -> Item:
    return Item(code, "", 1, 1, 1, 1, text)


def rewrite(text: str, target: Target) -> Rewriting:
    """What is found in the text, and the text with every norm that can be rewritten.

    A helper that stays since others call it is a norm of its own once its class doesn't, so what is
    rewritten is read again until nothing changes.

    Raises:
        SyntaxError, ValueError, RecursionError, MemoryError: as ast.parse.
    """
    found = _once(text, target)
    before, after = text, found.text
    for _ in range(_ROUNDS):
        if after == before:
            break
        again = _once(after, target)
        late = (item for item in again.items if item.replacement is not None)
        items = (replace(item, notes=(*item.notes, _LATE), edits=()) for item in late)
        found = replace(found, items=(*found.items, *items), text=again.text)
        before, after = after, again.text
    return found


def _once(text: str, target: Target) -> Rewriting:
    source = Source(text)
    findings = find(text)
    uses = npu.uses(source.tree) if target is Target.RMSNORM else []
    rewriter = _Rewriter(source, target)
    for finding in sorted(findings, key=lambda finding: list(Kind).index(finding.kind)):
        if not any(_holds(finding.span, use.node) for use in uses):
            rewriter.take(finding)
    moved = [use for use in uses if rewriter.take_use(use)]
    added = rewriter.imports()
    if moved:
        added += npu.unneeded_imports(source, moved)
    edits = [edit for item in rewriter.items for edit in item.edits]
    items = sorted(rewriter.items, key=lambda item: (item.line, item.column))
    return Rewriting(tuple(items), tuple(added), apply(text, [*edits, *added]))


def _holds(span: Span, node: ast.expr) -> bool:
    return (span.line, span.column) <= (node.lineno, node.col_offset) and (
        node.end_lineno or 0,
        node.end_col_offset or 0,
    ) <= (span.end_line, span.end_column)


class _Rewriter:
    """Collects the items of one text."""

    def __init__(self, source: Source, target: Target) -> None:
        self.items: list[Item] = []
        self._source = source
        self._target = target
        self._nodes = _by_place(source.tree)
        self._missing: dict[str, str] = {}

    def imports(self) -> list[Edit]:
        """What the calls need and the file lacks, as one edit or none."""
        return [imports.add(self._source, self._missing)] if self._missing else []

    def take(self, finding: Finding) -> None:
        """A finding becomes an item, unless it is in what an earlier one replaces."""
        span = finding.span
        begin = self._source.index(span.line, span.column)
        end = self._source.index(span.end_line, span.end_column)
        if any(e.start < end and begin < e.end for item in self.items for e in item.edits):
            return
        owner, node = self._held(finding)
        if self._source.skips(_skip_lines(span, owner, node)):
            self._add(Code.RN201, finding.name, span, "as its comment asks")
            return
        norm = finding.description
        if norm is None:
            assert finding.cause is not None
            self._add(OF_CAUSE[finding.cause], finding.name, span, finding.reason or "")
            return
        try:
            call = call_of(norm, self._target)
            names = {module: imports.name_of(self._source, module) for module in call.modules}
            known = {module: name for module, (name, _) in names.items()}
            edits = self._edits(finding, owner, node, call, known)
        except CannotRewriteError as error:
            self._add(Code.RN107, finding.name, span, f"{in_words(norm)}: {error}")
            return
        self._missing |= {module: name for module, (name, lacks) in names.items() if lacks}
        self._add(
            OF_KIND[finding.kind],
            finding.name,
            span,
            in_words(norm),
            replacement=call.text(known),
            notes=call.notes,
            edits=tuple(edits),
        )

    def take_use(self, use: npu.Use) -> bool:
        """Whether the use of torch_npu is rewritten."""
        node = use.node
        span = Span(node.lineno, node.col_offset, node.end_lineno or 0, node.end_col_offset or 0)
        if self._source.skips(_skip_lines(span, None, None)):
            self._add(Code.RN201, use.function, span, "as its comment asks")
        elif use.is_shadowed:
            self._add(Code.RN107, use.function, span, "the file gives its name to something else")
        else:
            name, is_missing = imports.name_of(self._source, "rmsnorm")
            if is_missing:
                self._missing["rmsnorm"] = name
            edits = tuple(use.edits(self._source, name))
            words = f"torch_npu's {use.function}"
            self._add(Code.RN004, use.function, span, words, f"{name}.{use.function}", (), edits)
            return True
        return False

    def _held(self, finding: Finding) -> tuple[ast.ClassDef | None, ast.AST | None]:
        """The node of a finding, and the class that it stands in if it is a class's forward."""
        span = finding.span
        end = (span.end_line, span.end_column)
        if finding.kind is Kind.EXPRESSION:
            return None, self._nodes.get((span.line, span.column, *end))
        node = self._nodes.get((span.line, *end))
        if finding.kind is Kind.CLASS:
            for owner in self._source.classes():
                if node in owner.body:
                    return owner, node
        return None, node

    def _edits(
        self,
        finding: Finding,
        owner: ast.ClassDef | None,
        node: ast.AST | None,
        call: Call,
        names: dict[str, str],
    ) -> list[Edit]:
        if finding.kind is Kind.EXPRESSION:
            if not isinstance(node, ast.expr) or not _is_as_written(self._source, node):
                raise CannotRewriteError("its place inside of an f-string can't be told")
            edit = Edit(self._source.start(node), self._source.end(node), call.text(names))
            return [edit]
        assert isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        removed = [] if owner is None else helpers.remove(self._source, owner, node)
        return [body.replace_body(self._source, node, call, names), *removed]

    def _add(
        self,
        code: Code,
        name: str,
        span: Span,
        text: str,
        replacement: str | None = None,
        notes: tuple[str, ...] = (),
        edits: tuple[Edit, ...] = (),
    ) -> None:
        line, column = span.line, self._source.column(span.line, span.column)
        end_column = self._source.column(span.end_line, span.end_column)
        place = (line, column, span.end_line, end_column)
        self.items.append(Item(code, name, *place, text, replacement, notes, edits))


def _by_place(tree: ast.AST) -> dict[tuple[int, ...], ast.AST]:
    """Expressions by where they begin and end; functions by the line of the first decorator and
    where they end."""
    found: dict[tuple[int, ...], ast.AST] = {}
    place: tuple[int, ...]
    for node in ast.walk(tree):
        if isinstance(node, ast.expr):
            place = (node.lineno, node.col_offset, node.end_lineno or 0, node.end_col_offset or 0)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            place = (body.first_line(node), node.end_lineno or 0, node.end_col_offset or 0)
        else:
            continue
        found.setdefault(place, node)
    return found


def _skip_lines(span: Span, owner: ast.ClassDef | None, node: ast.AST | None) -> list[int]:
    """The lines where `# rmsnorm: skip` counts, and those above them."""
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return list(range(span.line - 1, span.end_line + 1))
    lines = list(range(span.line - 1, node.lineno + 1))
    if owner is not None:
        lines += range(body.first_line(owner) - 1, owner.lineno + 1)
    return lines


def _is_as_written(source: Source, node: ast.expr) -> bool:
    """Whether the text at the node's place is the node: before Python 3.12 an f-string's isn't."""
    try:
        written = ast.parse(f"({source.text[source.start(node) : source.end(node)]})", mode="eval")
    except (SyntaxError, ValueError):
        return False
    return ast.dump(written.body) == ast.dump(node)
