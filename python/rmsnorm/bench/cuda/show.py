"""What `rmsnorm bench --cuda` prints and draws."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from rmsnorm.bench import plot
from rmsnorm.bench.cuda.goals import Verdict, share
from rmsnorm.bench.cuda.rotation import CALL
from rmsnorm.bench.cuda.timing import COPIES, CudaRow
from rmsnorm.bench.harness import readable
from rmsnorm.bench.peers import LIGER, QUACK
from rmsnorm.bench.tables import SMALL_CALL, plain
from rmsnorm.bench.ways import COMPILED, FUSED, OPERATOR, TORCH

_COLUMNS = {
    FUSED: "rmsnorm",
    OPERATOR: "operator",
    TORCH: "F.rms_n.",
    COMPILED: "compile",
    LIGER: "Liger",
    QUACK: "Quack",
}


def kind(row: CudaRow) -> str:
    """The dtypes of a row, as one heading."""
    return row.dtype if row.gamma == row.dtype else f"{row.dtype}, gamma {row.gamma}"


def times(rows: Sequence[CudaRow]) -> Table:
    """Every way's bandwidth as a percentage of the copy's; small calls in microseconds."""
    table = plain(
        "Time of a copy of the bytes that the pass must move, its GB/s, and each way's bandwidth "
        "as a percentage of it; small calls in microseconds. operator: our backward call with "
        "dgamma in float32; the others go through autograd. compile: torch.compile of the formula; "
        "F.rms_n.: F.rms_norm. –: see below. *: fewer copies of the operands than exceed the cache "
        "twice.",
        ("CUDA",),
        ("copy", "GB/s", *_COLUMNS.values()),
    )
    for heading, group in itertools.groupby(_measured(rows), lambda row: (row.part, kind(row))):
        table.add_row(f"[bold]{', '.join(heading)}[/]")
        for row in group:
            cells = [_cell(row, name) for name in _COLUMNS]
            star = "*" * (row.copies < row.wanted)
            if row.part == CALL:
                table.add_row(str(row.shape), "", "", *cells)
                continue
            rate = f"{row.moved / row.copy / 1e9:.0f}"
            table.add_row(f"{row.shape}{star}", readable(row.copy), rate, *cells)
    return table


def missing(rows: Sequence[CudaRow]) -> Table:
    """The ways and shapes without a time, and why."""
    table = plain("", ("without a time", "where", "why"), ())
    reasons: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in rows:
        where = f"{row.part} {row.shape} {kind(row)}"
        for name, reason in row.missing.items():
            reasons[name, reason].append(where)
        if row.left_out:
            reasons["all", row.left_out].append(where)
    for (name, reason), wheres in reasons.items():
        more = f" and {len(wheres) - 1} more" if len(wheres) > 1 else ""
        table.add_row(name, wheres[0] + more, reason)
    return table


def goals(verdicts: Sequence[Verdict]) -> Table:
    """Each goal beside the measured row that is furthest from it."""
    table = plain("", ("goal", "limit", "measured", "where", "rows", ""), ())
    for column in table.columns:
        column.no_wrap = False
    for each in verdicts:
        met = {True: "met", False: "MISSED", None: ""}[each.met]
        measured = each.measured or "not measured"
        table.add_row(each.goal, each.limit, measured, each.where, each.rows, met)
    return table


def draw(path: Path, rows: Sequence[CudaRow], about: dict[str, Any]) -> bool:
    """Write the plot as PNG: for each n, the shape with the most rows; False without matplotlib."""
    largest: dict[tuple[str, str, int], CudaRow] = {}
    for row in _measured(rows):
        key = (row.part, kind(row), row.shape.n)
        if row.part != CALL and (key not in largest or largest[key].shape.rows < row.shape.rows):
            largest[key] = row
    points: plot.Points = defaultdict(lambda: defaultdict(list))
    for (part, dtypes, n), row in largest.items():
        for name in row.seconds:
            if name not in COPIES:
                points[part, dtypes][name].append((n, share(row, name)))
    labels = ("n", "bandwidth, of the copy's")
    title = f"{about['gpu']} · torch {about['torch']}"
    return bool(points) and plot.save(path, points, _panel, labels, title)


def _panel(axes: Any, ways: dict[str, list[tuple[int, float]]]) -> None:
    for name, points in ways.items():
        ns, shares = zip(*sorted(points), strict=True)
        plot.line(axes, name, ns, shares)
    axes.axhline(1, color="#b4480a", lw=1, ls="--")
    axes.set_xscale("log", base=2)
    axes.set_ylim(bottom=0)


def _measured(rows: Sequence[CudaRow]) -> list[CudaRow]:
    return [row for row in rows if row.seconds]


def _cell(row: CudaRow, name: str) -> str:
    if name not in row.seconds:
        return "wrong" if row.missing.get(name) == "wrong" else "–"
    if row.part == CALL or row.copy < SMALL_CALL:
        return readable(row.seconds[name]).replace(" ", "")
    return f"{100 * share(row, name):.0f}"
