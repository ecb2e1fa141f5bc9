"""What a text computes by small operators or on an NPU alone, and the text with the fused calls."""

from __future__ import annotations

import ast
from dataclasses import dataclass, replace

from rmsnorm.migrate import body, helpers, imports, jit, npu, skip
from rmsnorm.migrate.call import Call, CannotRewriteError, Target, call_of, in_words
from rmsnorm.migrate.codes import OF_CAUSE, OF_KIND, Code
from rmsnorm.migrate.source import Edit, Source, apply, first_line
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
        notes: where the call rounds otherwise than the source, or returns another dtype; methods
            that are removed or not called any more.
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
    for use in uses:
        rewriter.take_use(use)
    added = rewriter.imports()
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
        if not any(e.start < end and begin < e.end for item in self.items for e in item.edits):
            self.items.append(self._item_of(finding))

    def _item_of(self, finding: Finding) -> Item:
        span, norm = finding.span, finding.description
        if skip.is_skipped(self._source, span):
            return self._item(Code.RN201, finding.name, span, "as its comment asks")
        if norm is None:
            assert finding.cause is not None
            return self._item(OF_CAUSE[finding.cause], finding.name, span, finding.reason or "")
        try:
            if jit.compiles(self._source, self._source.around(span)):
                raise CannotRewriteError(jit.REASON)
            call = call_of(norm, self._target)
            names = {module: imports.name_of(self._source, module) for module in call.modules}
            known = {module: name for module, (name, _) in names.items()}
            edits, notes = self._edits(finding, call, known)
        except CannotRewriteError as error:
            return self._item(Code.RN107, finding.name, span, f"{in_words(norm)}: {error}")
        self._missing |= {module: name for module, (name, lacks) in names.items() if lacks}
        return replace(
            self._item(OF_KIND[finding.kind], finding.name, span, in_words(norm)),
            replacement=call.text(known),
            notes=(*notes, *call.notes),
            edits=tuple(edits),
        )

    def take_use(self, use: npu.Use) -> None:
        """A use of torch_npu becomes an item."""
        node = use.node
        span = Span.of(node)
        why_left = use.why_left
        if why_left is None and jit.compiles(self._source, self._source.around(span)):
            why_left = jit.REASON
        if skip.is_skipped(self._source, span):
            item = self._item(Code.RN201, use.function, span, "as its comment asks")
        elif why_left is not None:
            item = self._item(Code.RN107, use.function, span, why_left)
        else:
            name, is_missing = imports.name_of(self._source, "rmsnorm")
            if is_missing:
                self._missing["rmsnorm"] = name
            item = replace(
                self._item(Code.RN004, use.function, span, f"torch_npu's {use.function}"),
                replacement=f"{name}.{use.function}",
                notes=(npu.IMPORT_STAYS,),
                edits=tuple(use.edits(self._source, name)),
            )
        self.items.append(item)

    def _item(self, code: Code, name: str, span: Span, text: str) -> Item:
        """One that is left."""
        column = self._source.column(span.line, span.column)
        end_column = self._source.column(span.end_line, span.end_column)
        return Item(code, name, span.line, column, span.end_line, end_column, text)

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
        self, finding: Finding, call: Call, names: dict[str, str]
    ) -> tuple[list[Edit], list[str]]:
        """What makes the call of it, and notes on that."""
        owner, node = self._held(finding)
        if finding.kind is Kind.EXPRESSION:
            if not isinstance(node, ast.expr) or not _is_as_written(self._source, node):
                raise CannotRewriteError("its place inside of an f-string can't be told")
            around = self._source.around(finding.span)
            attributes = helpers.attributes_of(finding.description)
            for i, each in enumerate(around):
                if isinstance(each, ast.ClassDef) and i + 1 < len(around):
                    name = getattr(around[i + 1], "name", each.name)
                    helpers.refuse_heirs(self._source, each, [around[i + 1]], name, attributes)
            edit = Edit(self._source.start(node), self._source.end(node), call.text(names))
            return [edit], []
        assert isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        removed, notes = ([], []) if owner is None else helpers.remove(self._source, owner, node)
        return [body.replace_body(self._source, node, call, names), *removed], notes


def _by_place(tree: ast.AST) -> dict[tuple[int, ...], ast.AST]:
    """Expressions by where they begin and end; functions by the line of the first decorator and
    where they end."""
    found: dict[tuple[int, ...], ast.AST] = {}
    place: tuple[int, ...]
    for node in ast.walk(tree):
        if isinstance(node, ast.expr):
            place = (node.lineno, node.col_offset, node.end_lineno or 0, node.end_col_offset or 0)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            place = (first_line(node), node.end_lineno or 0, node.end_col_offset or 0)
        else:
            continue
        found.setdefault(place, node)
    return found


def _is_as_written(source: Source, node: ast.expr) -> bool:
    """Whether the text at the node's place is the node: before Python 3.12 an f-string's isn't."""
    try:
        written = ast.parse(f"({source.text[source.start(node) : source.end(node)]})", mode="eval")
    except (SyntaxError, ValueError):
        return False
    return ast.dump(written.body) == ast.dump(node)
