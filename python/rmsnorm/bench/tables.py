"""What `rmsnorm bench` prints of the calls from Python."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from rich.table import Table

from rmsnorm.bench.harness import readable
from rmsnorm.bench.measure import Row
from rmsnorm.bench.memory import Memory
from rmsnorm.bench.peers import JAX, ONNX
from rmsnorm.bench.ways import COMPILED, COPY, FUSED, INTO, SMALL, TORCH

_COLUMNS = {
    FUSED: "rmsnorm",
    INTO: "out=",
    COMPILED: "compile",
    TORCH: "F.rms_n.",
    SMALL: "class",
    ONNX: "ORT",
    JAX: "JAX",
}
SMALL_CALL = 2e-5  # seconds of the copy: below it, a call's time is its overhead


def calls(rows: Sequence[Row]) -> Table:
    """Every way in multiples of the copy; small calls in microseconds."""
    table = plain(
        "Multiples of the time to copy the bytes that the pass must move; small calls in "
        "microseconds. 'wrong': too far from float64 to be timed. –: not installed, or takes no "
        "such input, or has no such pass; bench.json says which. class: LLaMA's small operators; "
        "compile: torch.compile of it; F.rms_n.: F.rms_norm; ORT: ONNX Runtime.",
        ("PyTorch", "dtype"),
        (COPY, *_COLUMNS.values()),
    )
    for (part, threads), group in itertools.groupby(rows, lambda row: (row.part, row.threads)):
        table.add_row(f"[bold]{part.replace(' ', '')}[/]", f"{threads} thread{'s' * (threads > 1)}")
        for row in group:
            copy = row.seconds[COPY]
            cells = [_cell(row, name, copy) for name in _COLUMNS]
            table.add_row(str(row.shape), row.dtype, readable(copy), *cells)
    return table


def memory(found: Sequence[Memory]) -> Table:
    """What each way in PyTorch keeps for backward, and its peak."""
    table = plain(
        "Bytes over the bytes of x: kept for the backward pass beyond x, gamma and y; allocated "
        "at once in a forward pass with its backward pass, results included.",
        ("memory", "way"),
        ("kept", "peak"),
    )
    for each in found:
        table.add_row(each.dtype, each.way, f"{each.kept:.3f}", f"{each.peak:.2f}")
    return table


def _cell(row: Row, name: str, copy: float) -> str:
    if name not in row.seconds:
        return "wrong" if row.missing.get(name) == "wrong" else "–"
    seconds = row.seconds[name]
    return readable(seconds).replace(" ", "") if copy < SMALL_CALL else f"{seconds / copy:.1f}"


def plain(caption: str, left: Sequence[str], right: Sequence[str]) -> Table:
    """A table without lines, of columns aligned to either side."""
    table = Table(
        box=None,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        caption=caption,
        caption_justify="left",
    )
    for name in left:
        table.add_column(name, no_wrap=True)
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table
