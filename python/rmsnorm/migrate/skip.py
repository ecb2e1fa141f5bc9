"""`# rmsnorm: skip`: the norms that a comment leaves alone."""

from __future__ import annotations

import functools
import io
import re
import tokenize

from rmsnorm.migrate.source import Source, first_line
from rmsnorm.reading.file import Definition
from rmsnorm.reading.finding import Span

_MARK = re.compile(r"#\s*rmsnorm:\s*skip(?![\w-])")


def is_skipped(source: Source, span: Span) -> bool:
    """Whether a comment stands where it counts.

    That is on a line of what is replaced, or of the statement that it is in; on the lines of a
    definition around it, up to the colon, and of its decorators; or, alone on its line, above one
    of these.
    """
    marks = _marks(source.text)
    if not marks:
        return False
    lines, above = set(range(span.line, span.end_line + 1)), {span.line - 1}
    for node in source.around(span):
        end = node.end_lineno or 0
        if isinstance(node, Definition):
            above.add(first_line(node) - 1)
            lines.update(range(first_line(node), node.lineno + 1))
            # Between the colon and the body a comment behind code is none of the body's.
            header = range(node.lineno, first_line(node.body[0]))
            lines.update(line for line in header if marks.get(line) is False)
        elif not hasattr(node, "body") and not hasattr(node, "cases"):
            above.add(node.lineno - 1)
            lines.update(range(node.lineno, end + 1))
    return any(line in lines or (line in above and alone) for line, alone in marks.items())


@functools.lru_cache(maxsize=1)
def _marks(text: str) -> dict[int, bool]:
    """The lines that hold the comment, and whether nothing else is on them."""
    if not _MARK.search(text):
        return {}
    text = re.sub(r"\r\n?", "\n", text)
    try:
        return {
            token.start[0]: not token.line[: token.start[1]].strip()
            for token in tokenize.generate_tokens(io.StringIO(text).readline)
            if token.type == tokenize.COMMENT and _MARK.search(token.string)
        }
    except (tokenize.TokenError, SyntaxError):  # stricter than the parser, at a few odd places
        lines = enumerate(text.split("\n"), 1)
        return {line: True for line, written in lines if _MARK.search(written)}
