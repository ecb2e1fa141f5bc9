"""What was found as SARIF 2.1.0, the format that code review takes from tools."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rmsnorm.migrate.codes import Code
from rmsnorm.migrate.report import action
from rmsnorm.migrate.rewrite import Item
from rmsnorm.migrate.run import Result

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_LEVELS = {"rewrite": "warning", "leave": "note", "skip": "note", "error": "error"}


def as_sarif(results: Sequence[Result]) -> dict[str, Any]:
    """One run, with paths relative to the current folder and the edits as fixes."""
    rules = [
        {"id": code.name, "shortDescription": {"text": code.value}, "helpUri": _page(code)}
        for code in Code
    ]
    return {
        "$schema": _SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": {"name": "rmsnorm migrate", "rules": rules}},
                "columnKind": "unicodeCodePoints",
                "results": [_result(each, item) for each in results for item in each.items],
            }
        ],
    }


def _page(code: Code) -> str:
    return f"docs/codes.md#{code.name.lower()}"


def _result(result: Result, item: Item) -> dict[str, Any]:
    region = {
        "startLine": item.line,
        "startColumn": item.column,
        "endLine": item.end_line,
        "endColumn": item.end_column,
    }
    artifact = {"uri": _uri(result.path)}
    becomes = f"; becomes {item.replacement}" if item.replacement else ""
    text = ". ".join([f"{item.code.value}: {item.name} {item.text}{becomes}", *item.notes])
    found: dict[str, Any] = {
        "ruleId": item.code.name,
        "ruleIndex": list(Code).index(item.code),
        "level": _LEVELS[action(result, item)],
        "message": {"text": text},
        "locations": [{"physicalLocation": {"artifactLocation": artifact, "region": region}}],
    }
    if item.edits and result.file is not None:
        replacements = [
            {
                "deletedRegion": {"charOffset": edit.start, "charLength": edit.end - edit.start},
                "insertedContent": {"text": edit.text},
            }
            for edit in (*item.edits, *result.imports)
        ]
        changes = [{"artifactLocation": artifact, "replacements": replacements}]
        found["fixes"] = [{"artifactChanges": changes}]
    return found


def _uri(path: Path) -> str:
    return quote(os.fsencode(os.path.relpath(path)))
