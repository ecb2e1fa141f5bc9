"""What was found, for people and as JSON."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rmsnorm.migrate.call import Target
from rmsnorm.migrate.codes import Code
from rmsnorm.migrate.rewrite import Item
from rmsnorm.migrate.run import Result

_JSON_VERSION = 1  # grows when a name goes or changes its meaning


def shown(path: Path) -> str:
    """The path on one line, whatever bytes its name holds."""
    text = os.fsencode(path).decode(errors="backslashreplace")
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def action(result: Result, item: Item) -> str:
    """What becomes of an item: rewrite, leave, skip or error."""
    if item.code.is_error:
        return "error"
    if item.code is Code.RN201:
        return "skip"
    return "leave" if item.replacement is None else "rewrite"


def show(results: Sequence[Result]) -> None:
    """For people: a line or two for each item, then how many there are."""
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True, highlight=False)
    colors = {"rewrite": "green", "leave": "yellow", "skip": "yellow", "error": "bold red"}
    for result in results:
        for item in result.items:
            text = Text(f"{shown(result.path)}:{item.line}:{item.column}: ")
            text.append(item.code.name, colors[action(result, item)])
            text.append(f" {_headline(item)}")
            for line in _details(item):
                text.append(f"\n    {line}")
            console.print(text)
    console.print(Text(summary(results)))


def errors(results: Sequence[Result]) -> list[str]:
    """A line for each error."""
    return [
        f"{shown(result.path)}:{item.line}: {item.code.name} {_headline(item)}"
        for result in results
        for item in result.items
        if item.code.is_error
    ]


def _headline(item: Item) -> str:
    subject = f"{item.name}: " if item.name else ""
    return f"{subject}{item.text if item.replacement else _why(item)}"


def _why(item: Item) -> str:
    return f"{item.code.value}: {item.text}" if item.text else item.code.value


def _details(item: Item) -> list[str]:
    becomes = [f"becomes {item.replacement}"] if item.replacement else []
    return [*becomes, *(f"note: {note}" for note in item.notes)]


def summary(results: Sequence[Result]) -> str:
    """How many norms and files, and what to do next."""
    changed = [result for result in results if result.new is not None]
    written = [result for result in changed if result.is_written]
    could_be = [result for result in changed if not result.is_written]
    read = sum(result.is_read for result in results)
    counts = []
    if written:
        counts.append(f"{_count(written, 'rewrite')} rewritten in {len(written)} of {_files(read)}")
    if could_be or not written:
        counts.append(
            f"{_count(could_be, 'rewrite')} can be rewritten in {len(could_be)} of {_files(read)}"
        )
    counts.append(f"{_count(results, 'leave', 'skip')} left")
    if errors := _count(results, "error"):
        counts.append(f"{errors} error" + "s" * (errors > 1))
    hint = ""
    if could_be and not written and not any(result.is_refused for result in could_be):
        hint = " Nothing was written: --diff shows the changes, --write makes them."
    return "; ".join(counts) + "." + hint


def _count(results: Sequence[Result], *actions: str) -> int:
    return sum(action(result, item) in actions for result in results for item in result.items)


def _files(count: int) -> str:
    return f"{count} file" + "s" * (count != 1)


def as_json(results: Sequence[Result], target: Target) -> dict[str, Any]:
    """Fit for JSON; docs/codes.md says what it holds."""
    changed = [result for result in results if result.new is not None]
    return {
        "version": _JSON_VERSION,
        "target": target.value,
        "files_read": sum(result.is_read for result in results),
        "would_change": [shown(each.path) for each in changed if not each.is_written],
        "written": [shown(each.path) for each in changed if each.is_written],
        "findings": [_finding(result, item) for result in results for item in result.items],
    }


def _finding(result: Result, item: Item) -> dict[str, Any]:
    return {
        "code": item.code.name,
        "title": item.code.value,
        "path": shown(result.path),
        "line": item.line,
        "column": item.column,
        "end_line": item.end_line,
        "end_column": item.end_column,
        "name": item.name,
        "action": action(result, item),
        "text": item.text,
        "replacement": item.replacement,
        "notes": list(item.notes),
    }
