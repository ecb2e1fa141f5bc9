"""`rmsnorm bench --cuda`: the operator and its peers on a GPU, beside a copy of the same bytes."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.progress import Progress

from rmsnorm.bench.cuda import show
from rmsnorm.bench.cuda.budget import Budget
from rmsnorm.bench.cuda.device import Device, NoGpu, gpu
from rmsnorm.bench.cuda.goals import judge
from rmsnorm.bench.cuda.rotation import BACKWARD, CALL, Cell
from rmsnorm.bench.cuda.timing import CudaRow, measure, measure_calls
from rmsnorm.bench.harness import console, machine, progress
from rmsnorm.bench.measure import FORWARD
from rmsnorm.bench.shapes import Shape

__all__ = ["NoGpu", "gpu", "run"]

DATA = Path(__file__).parent.parent / "cuda_shapes.json"
# x's and gamma's, the most wanted first: the ways that compile may run out of time.
_DTYPES = (
    (torch.bfloat16, torch.bfloat16),
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float16),
)


def run(
    device: Device,
    out: Path,
    only_shapes: Sequence[Shape] = (),
    only_dtypes: Sequence[str] = (),
    seconds: float = 240,
) -> None:
    """Measure; print tables, write cuda.json and cuda.png into the folder `out`.

    Args:
        only_shapes: none: all of cuda_shapes.json.
        only_dtypes: of x, by name; none: all.
        seconds: about how long it may take; a lower number takes fewer repeats.
    """
    screen = console()
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    about = {**machine(), **device.about(), "date": now}
    screen.print(f"{about['gpu']}; torch {about['torch']}; median times")
    rows: list[CudaRow] = []
    try:
        with progress(screen) as bar:
            measure_all(rows, cells_of(only_shapes, only_dtypes), device, Budget(seconds), bar)
    finally:  # what was measured before an error is kept, too
        verdicts = judge(rows)
        figures = {
            "machine": about,
            "seconds": seconds,
            "rows": [asdict(row) for row in rows],
            "goals": [asdict(each) for each in verdicts],
        }
        out.mkdir(parents=True, exist_ok=True)
        (out / "cuda.json").write_text(json.dumps(figures, indent=1) + "\n")
    screen.print(show.times(rows))
    screen.print(show.missing(rows))
    screen.print(show.goals(verdicts))
    screen.print(f"figures: {out / 'cuda.json'}")
    if show.draw(out / "cuda.png", rows, about):
        screen.print(f"plot: {out / 'cuda.png'}")


def cells_of(only_shapes: Sequence[Shape] = (), only_dtypes: Sequence[str] = ()) -> list[Cell]:
    """What is measured, in this order; shapes that are asked for: both passes and the call."""
    passes = {
        Shape(each["rows"], each["n"]): each["passes"] for each in json.loads(DATA.read_text())
    }
    if only_shapes:
        passes = {shape: [FORWARD, BACKWARD, CALL] for shape in only_shapes}
    dtypes = [
        pair
        for pair in _DTYPES
        if not only_dtypes or str(pair[0]).removeprefix("torch.") in only_dtypes
    ]
    return [
        Cell(part, shape, *pair)
        for pair in dtypes
        for part in (FORWARD, BACKWARD, CALL)
        for shape, parts in passes.items()
        if part in parts
    ]


def measure_all(
    rows: list[CudaRow], cells: Sequence[Cell], device: Device, budget: Budget, bar: Progress
) -> None:
    """Adds a row for each cell."""
    task = bar.add_task("", total=len(cells))
    with device.here():
        for i, cell in enumerate(cells):
            bar.update(task, description=f"{cell.part} {cell.shape}")
            if cell.part == CALL:
                rows.append(measure_calls(cell, device))
            else:
                rows.append(measure(cell, device, budget, len(cells) - i))
            bar.advance(task)
