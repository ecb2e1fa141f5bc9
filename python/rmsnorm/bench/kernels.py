"""What rmsnorm_bench measured; `python -m rmsnorm.bench.kernels out/kernels.json` prints it."""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from rmsnorm.bench.harness import Seconds, console, readable
from rmsnorm.bench.shapes import Shape

OURS, ONEDNN = "rmsnorm", "oneDNN"
LIMITS = {
    "forward": ("memcpy", "copy past cache"),
    "backward": ("read two, write one", "read two, write one past cache"),
}
STREAMS = {"forward": 2, "backward": 3}  # of the bytes of x


@dataclass
class Kernel:
    """One pass on one shape: median seconds by way, and what is wrong with a way's results."""

    part: str
    dtype: str
    shape: Shape
    threads: int
    seconds: Seconds
    wrong: dict[str, str]

    @property
    def bytes(self) -> int:
        """That the pass has to move."""
        return STREAMS[self.part] * self.shape.bytes(self.dtype)


def read(path: Path) -> list[Kernel]:
    """From the JSON of Google Benchmark, single repetitions included."""
    times: dict[tuple[str, ...], list[float]] = defaultdict(list)
    wrong: dict[tuple[str, ...], str] = {}
    for run in json.loads(path.read_text())["benchmarks"]:
        # forward/oneDNN/bfloat16/4096x4096/2/real_time
        way = tuple(run["run_name"].split("/"))
        if len(way) != 6 or run["run_type"] != "iteration":
            continue
        if run.get("error_occurred"):
            wrong[way] = run["error_message"]
        else:
            times[way].append(run["real_time"] * 1e-9)
            if run.get("label"):
                wrong[way] = run["label"]
    cells: dict[tuple[str, ...], Kernel] = {}
    for way in (*times, *wrong):
        part, name, dtype, shape, threads, _ = way
        cell = cells.setdefault(
            (part, dtype, shape, threads),
            Kernel(part, dtype, Shape.parse(shape), int(threads), {}, {}),
        )
        if way in times:
            cell.seconds[name] = statistics.median(times[way])
        if way in wrong:
            cell.wrong[name] = wrong[way]
    return sorted(
        cells.values(),
        key=lambda cell: (cell.part != "forward", cell.threads, cell.shape, cell.dtype),
    )


def limit(cell: Kernel, cells: list[Kernel]) -> float:
    """The shortest time of a plain stream of the same bytes, on as many threads or fewer."""
    return min(
        other.seconds[name]
        for other in cells
        for name in LIMITS[cell.part]
        if (other.part, other.dtype, other.shape) == (cell.part, cell.dtype, cell.shape)
        and other.threads <= cell.threads
        and name in other.seconds
    )


def table(cells: list[Kernel]) -> Table:
    """Ours and oneDNN in multiples of the limit."""
    shown = Table(
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        caption="Multiples of the best plain stream of the same bytes: forward, a copy; backward, "
        "read two and write one. 'wrong': the results are off from float64. A call of oneDNN goes "
        "through a SYCL queue, as PyPI ships it: tens of microseconds.",
        caption_justify="left",
    )
    for name in ("kernels", "dtype"):
        shown.add_column(name)
    for name in ("stream", OURS, ONEDNN, "ours / oneDNN"):
        shown.add_column(name, justify="right")
    title = ""
    for cell in cells:
        if cell.seconds.keys().isdisjoint({OURS, ONEDNN}):
            continue
        heading = f"{cell.part}, {cell.threads} thread{'s' * (cell.threads > 1)}"
        if heading != title:
            title = heading
            shown.add_row(f"[bold]{title}[/]")
        stream, seconds = limit(cell, cells), cell.seconds
        times = {name: f"{seconds[name] / stream:.2f}" for name in seconds}
        note = " wrong" if ONEDNN in seconds and ONEDNN in cell.wrong else ""
        both = OURS in seconds and ONEDNN in seconds
        shown.add_row(
            str(cell.shape),
            cell.dtype,
            readable(stream),
            times.get(OURS, "") + (" wrong" if OURS in cell.wrong else ""),
            times.get(ONEDNN, cell.wrong.get(ONEDNN, "")) + note,
            f"{seconds[OURS] / seconds[ONEDNN]:.2f}" if both else "",
        )
    return shown


if __name__ == "__main__":
    console().print(table(read(Path(sys.argv[1]))))
