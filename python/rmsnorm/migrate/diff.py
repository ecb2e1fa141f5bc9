"""What would change as a patch that `git apply` takes."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from pathlib import Path

_NO_END = "\n\\ No newline at end of file\n"


def unified(path: Path, old: bytes, new: bytes) -> bytes:
    """The patch, with paths relative to the current folder; the lines in the file's own encoding.

    Cost: difflib's, on the lines from the first that differs to the last.
    """
    # Latin-1 gives every byte a character of its own, so that no encoding matters.
    before, after = _lines(old), _lines(new)
    skipped = len(os.path.commonprefix([before, after])) - 3
    skipped = max(skipped, 0)
    same = len(os.path.commonprefix([before[:skipped:-1], after[:skipped:-1]])) - 3
    cut = slice(skipped, -same if same > 0 else None)
    hunks = difflib.unified_diff(before[cut], after[cut], lineterm="\n")
    name = os.path.relpath(path)
    head = f"--- {_quoted('a/' + name)}\n+++ {_quoted('b/' + name)}\n"
    lines = [_shifted(line, skipped) for line in list(hunks)[2:]]
    return (head + "".join(map(_ended, lines))).encode("latin-1")


def _lines(data: bytes) -> list[str]:
    """As git counts them: only a line feed ends one."""
    lines = data.decode("latin-1").split("\n")
    last = lines.pop()
    return [*(line + "\n" for line in lines), *([last] if last else [])]


def _ended(line: str) -> str:
    return line if line.endswith("\n") else line + _NO_END


def _shifted(line: str, skipped: int) -> str:
    """A hunk's head counts from the file's first line."""
    if not line.startswith("@@"):
        return line
    ranges = (_shifted_range(each, skipped) for each in line.split()[1:3])
    return f"@@ {' '.join(ranges)} @@\n"


def _shifted_range(text: str, skipped: int) -> str:
    first, comma, count = text[1:].partition(",")
    return f"{text[0]}{int(first) + skipped}{comma}{count}"


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
