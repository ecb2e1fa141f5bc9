"""Times and memory of the operator and its peers, beside a copy of the same bytes in one run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.progress import Progress

from rmsnorm.bench import kernels, memory, plot, shapes, tables
from rmsnorm.bench.harness import console, cores, machine, name_of, progress
from rmsnorm.bench.measure import BOTH, Row, every_way, expected, measure
from rmsnorm.bench.memory import Memory
from rmsnorm.bench.shapes import Shape
from rmsnorm.bench.ways import Case

_DTYPES = ("float32", "bfloat16")
_MEMORY_OF = Shape(512, 4096)


def run(
    out: Path,
    kernels_json: Path | None = None,
    only_shapes: Sequence[Shape] = (),
    only_dtypes: Sequence[str] = (),
) -> None:
    """Measure; print tables, write bench.json and bench.png into the folder `out`.

    Args:
        kernels_json: what rmsnorm_bench wrote; shown and kept beside the rest.
        only_shapes: none: all of shapes.json.
        only_dtypes: by name; none: float32 and bfloat16.
    """
    screen = console()
    about = machine()
    screen.print(f"{about['cpu']}, {about['cores']} cores; torch {about['torch']}; median times")
    found = kernels.read(kernels_json) if kernels_json else []
    if found:
        screen.print(kernels.table(found))
    chosen = only_shapes or shapes.read()
    dtypes = [getattr(torch, name) for name in only_dtypes or _DTYPES]
    with progress(screen) as bar:
        rows, kept = measure_all(chosen, dtypes, bar)
    screen.print(tables.calls(rows))
    screen.print(tables.memory(kept))
    out.mkdir(parents=True, exist_ok=True)
    figures = {
        "machine": about,
        "kernels": [asdict(cell) for cell in found],
        "kernels_context": json.loads(kernels_json.read_text())["context"] if kernels_json else {},
        "calls": [asdict(row) for row in rows],
        "memory": [asdict(each) for each in kept],
    }
    (out / "bench.json").write_text(json.dumps(figures, indent=1) + "\n")
    screen.print(f"figures: {out / 'bench.json'}")
    if plot.draw(out / "bench.png", rows, found, about):
        screen.print(f"plot: {out / 'bench.png'}")


def measure_all(
    chosen: Sequence[Shape], dtypes: Sequence[torch.dtype], bar: Progress
) -> tuple[list[Row], list[Memory]]:
    """Every cell with one thread and with all, and the memory of each dtype."""
    thread_counts = sorted({1, cores()})
    cells = [(shape, dtype) for shape in chosen for dtype in dtypes]
    task = bar.add_task("", total=len(cells) * len(thread_counts))
    before = torch.get_num_threads()
    rows = []
    try:
        for shape, dtype in cells:
            bar.update(task, description=f"{name_of(dtype)} {shape}")
            torch.set_num_threads(thread_counts[-1])
            case = Case.of(shape, dtype)
            right = expected(case)
            repeats = min(301, max(7, 2**25 // (shape.rows * shape.n)))
            for threads in thread_counts:
                torch.set_num_threads(threads)
                rows += measure(case, every_way(case, threads), right, repeats)
                bar.advance(task)
        kept = [each for dtype in dtypes for each in memory.measure(Case.of(_MEMORY_OF, dtype))]
    finally:
        torch.set_num_threads(before)
    return sorted(rows, key=lambda row: (row.part == BOTH, row.threads)), kept
