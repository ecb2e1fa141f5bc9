"""What would change as a patch that `git apply` takes."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from pathlib import Path

from rmsnorm.migrate.source import common_length

_NO_END = "\n\\ No newline at end of file\n"


def unified(path: Path, old: bytes, new: bytes) -> bytes:
    """The patch, with paths relative to the current folder; the lines in the file's own encoding.

    Cost: difflib's, on the lines from the first that differs to the last.
    """
    # Latin-1 gives every byte a character of its own, so that no encoding matters.
    before, after = _lines(old), _lines(new)
    name = os.path.relpath(path)
    text = f"--- {_quoted('a/' + name)}\n+++ {_quoted('b/' + name)}\n"
    matcher = difflib.SequenceMatcher()  # which only groups
    matcher.opcodes = _opcodes(before, after)  # type: ignore[attr-defined]
    for group in matcher.get_grouped_opcodes():
        (_, i, _, j, _), (_, _, i_end, _, j_end) = group[0], group[-1]
        text += f"@@ -{_range(i, i_end)} +{_range(j, j_end)} @@\n"
        for tag, i, i_end, j, j_end in group:
            if tag == "equal":
                text += "".join(map(_ended, (f" {line}" for line in before[i:i_end])))
            else:
                text += "".join(map(_ended, (f"-{line}" for line in before[i:i_end])))
                text += "".join(map(_ended, (f"+{line}" for line in after[j:j_end])))
    return text.encode("latin-1")


def _opcodes(before: list[str], after: list[str]) -> list[tuple[str, int, int, int, int]]:
    """As difflib's, with all lines equal that are before the first change and after the last.

    git takes a hunk with little context at its end only at the end of the file, and difflib alone
    finds no context in lines that are there hundreds of times.
    """
    head = common_length(before, after)
    tail = common_length(before[head:][::-1], after[head:][::-1])
    i_end, j_end = len(before) - tail, len(after) - tail
    middle = difflib.SequenceMatcher(None, before[head:i_end], after[head:j_end]).get_opcodes()
    codes = [("equal", 0, head, 0, head)] if head else []
    codes += [(tag, *_shifted(head, i, ie), *_shifted(head, j, je)) for tag, i, ie, j, je in middle]
    if tail:
        codes.append(("equal", i_end, len(before), j_end, len(after)))
    return codes


def _shifted(by: int, start: int, end: int) -> tuple[int, int]:
    return start + by, end + by


def _range(start: int, end: int) -> str:
    """Lines count from 1; an empty range names the line before it."""
    count = end - start
    first = start + 1 if count else start
    return str(first) if count == 1 else f"{first},{count}"


def _lines(data: bytes) -> list[str]:
    """As git counts them: only a line feed ends one."""
    lines = data.decode("latin-1").split("\n")
    last = lines.pop()
    return [*(line + "\n" for line in lines), *([last] if last else [])]


def _ended(line: str) -> str:
    return line if line.endswith("\n") else line + _NO_END


def _quoted(name: str) -> str:
    """A path as git writes it: in quotes where it holds more than plain characters."""
    data = os.fsencode(name)
    text = "".join(_escaped(data))
    return f'"{text}"' if text != data.decode("latin-1") else text


def _escaped(data: bytes) -> Iterator[str]:
    named = {ord("\t"): r"\t", ord("\n"): r"\n", ord('"'): r"\"", ord("\\"): r"\\"}
    for byte in data:
        plain = chr(byte) if 32 <= byte < 127 else f"\\{byte:03o}"
        yield named.get(byte, plain)
