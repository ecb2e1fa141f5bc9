"""`rmsnorm migrate`: reads all, writes what is asked for, then reports."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from rmsnorm.migrate import diff, report, run, sarif
from rmsnorm.migrate.call import Target
from rmsnorm.migrate.run import Result


class Shape(Enum):
    """How the report looks."""

    TEXT = "text"
    DIFF = "diff"
    JSON = "json"
    SARIF = "sarif"


@dataclass(frozen=True)
class Outcome:
    would_change: bool
    has_errors: bool


def run_command(
    paths: Sequence[Path], target: Target, shape: Shape, *, write: bool, allow_uncommitted: bool
) -> Outcome:
    """Prints the report; with `write`, the files that can be rewritten are.

    A file that can't be read or written is in the report, and the others go on.
    """
    results = list(run.run(paths, target))
    if write:
        results = [run.save(result, allow_uncommitted=allow_uncommitted) for result in results]
    _print(results, target, shape)
    items = [item for result in results for item in result.items]
    return Outcome(
        would_change=any(result.new is not None for result in results),
        has_errors=any(item.code.is_error for item in items),
    )


def _print(results: Sequence[Result], target: Target, shape: Shape) -> None:
    if shape is Shape.TEXT:
        report.show(results)
    elif shape is Shape.JSON:
        print(json.dumps(report.as_json(results, target), indent=2))
    elif shape is Shape.SARIF:
        print(json.dumps(sarif.as_sarif(results), indent=2))
    else:
        for result in results:
            if result.file is not None and result.new is not None:
                sys.stdout.buffer.write(diff.unified(result.path, result.file.data, result.new))
        sys.stdout.buffer.flush()
        for line in report.errors(results):
            print(line, file=sys.stderr)
