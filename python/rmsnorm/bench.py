"""Times of the operator and its peers, as multiples of a copy of the same bytes in the same run."""

import itertools
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor

import rmsnorm

Shape = tuple[int, int]  # rows, n
Seconds = dict[str, float]  # by candidate

EPSILON = 1e-6
FUSED, INTO, TORCH, SMALL, COPY = (
    "rmsnorm",
    "rmsnorm, out=",
    "F.rms_norm",
    "small operators",
    "copy",
)
FORWARD, BOTH = "forward", "forward + backward"

_SHAPES: tuple[Shape, ...] = ((512, 4096), (4096, 4096), (1024, 12288))
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_BOUND = 4.0  # of errors(): a way above it is wrong and isn't timed


@dataclass(frozen=True)
class Row:
    """One line of the table; `errors` are of errors(), `seconds` of measure()."""

    part: str
    threads: int
    shape: Shape
    dtype: str
    seconds: Seconds
    errors: dict[str, float]


def small_operators(x: Tensor, gamma: Tensor) -> Tensor:
    """What the operator replaces: the class of LLaMA and of Hugging Face, step by step."""
    wide = x.float()
    xhat = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPSILON)
    return xhat.type_as(x) * gamma


WAYS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    FUSED: lambda x, gamma: rmsnorm.rms_norm(x, gamma, EPSILON),
    TORCH: lambda x, gamma: torch.nn.functional.rms_norm(x, gamma.shape, gamma, EPSILON),
    SMALL: small_operators,
}


def interleaved(candidates: dict[str, Callable[[], object]], repeats: int) -> Seconds:
    """The median time of each candidate, in seconds.

    All run once to warm up; then they take turns, so that what slows the machine slows them alike.
    """
    for run_once in candidates.values():
        run_once()
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, run_once in candidates.items():
            start = time.perf_counter()
            run_once()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken) for name, taken in times.items()}


def errors(shape: Shape, dtype: torch.dtype) -> dict[str, float]:
    """How far each of WAYS is from the formula in float64, at most over y, dx and dgamma.

    Returns:
        Norm of the difference over norm of the result, in units of the dtype's eps. Rounding the
        result gives half a unit at most; the sums of float32 and a second rounding give the rest.
    """
    x, gamma, dy = _inputs(shape, dtype)
    wide_x, wide_gamma, wide_dy = (tensor.detach().double() for tensor in (x, gamma, dy))
    rstd = torch.rsqrt(wide_x.square().mean(-1, keepdim=True) + EPSILON)
    xhat, w = wide_x.mul_(rstd), wide_dy * wide_gamma
    dx = (w - xhat * (w * xhat).mean(-1, keepdim=True)) * rstd
    expected = (xhat * wide_gamma, dx, (wide_dy * xhat).sum(0))
    found = {}
    for name, way in WAYS.items():
        y = way(x, gamma)
        results = (y.detach(), *torch.autograd.grad(y, (x, gamma), dy))
        found[name] = max(
            float((got.double() - wanted).norm() / wanted.norm()) / torch.finfo(dtype).eps
            for got, wanted in zip(results, expected, strict=True)
        )
    return found


def measure(
    shape: Shape, dtype: torch.dtype, repeats: int, wrong: frozenset[str] = frozenset()
) -> dict[str, Seconds]:
    """Times of a forward pass without gradient, and of a forward pass with its backward pass.

    `copy` moves the bytes that the pass has to move into memory that was written before. Forward
    reads x and writes y, as much as copying x. Backward reads dy and x and writes dx; both passes
    together are as much as copying two and a half times x. `rmsnorm, out=` writes to such memory
    too; the others allocate their results, as a model does.
    """
    x, gamma, dy = _inputs(shape, dtype)
    y = torch.zeros_like(x)
    more_x, more_y = (torch.zeros(x.numel() * 5 // 2, dtype=dtype) for _ in range(2))
    ways = {name: way for name, way in WAYS.items() if name not in wrong}

    def forward(way: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], object]:
        return lambda: way(x, gamma)

    def both(way: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(way(x, gamma), (x, gamma), dy)

    with torch.no_grad():
        forward_seconds = interleaved(
            {
                COPY: lambda: y.copy_(x),
                INTO: lambda: rmsnorm.rms_norm(x, gamma, EPSILON, out=y),
                **{name: forward(way) for name, way in ways.items()},
            },
            repeats,
        )
    both_seconds = interleaved(
        {
            COPY: lambda: more_y.copy_(more_x),
            **{name: both(way) for name, way in ways.items()},
        },
        repeats,
    )
    return {FORWARD: forward_seconds, BOTH: both_seconds}


def run(out: Path) -> None:
    """Measure every shape, dtype and number of threads; print a table, write out/bench.json."""
    screen = console()
    about = machine()
    screen.print(f"{about['cpu']}, {about['cores']} cores; torch {about['torch']}; median times")
    with progress(screen) as bar:
        rows = _measure_all(bar)
    screen.print(_table(rows))
    for row in rows:
        if row.part == FORWARD and row.shape == (4096, 4096) and TORCH in row.seconds:
            ratio = row.seconds[TORCH] / row.seconds[FUSED]
            screen.print(
                f"forward of [4096, 4096], {row.dtype}, threads {row.threads}: "
                f"{ratio:.1f} times as fast as F.rms_norm; 4 times is "
                f"{'reached' if ratio >= 4 else 'NOT reached'}",
                markup=False,
            )
    out.mkdir(parents=True, exist_ok=True)
    figures = {"machine": about, "rows": [asdict(row) for row in rows]}
    (out / "bench.json").write_text(json.dumps(figures, indent=1) + "\n")
    screen.print(f"figures: {out / 'bench.json'}")


def console() -> Console:
    """Where results are printed: 100 columns at most, and plain in a log."""
    width = Console().width if sys.stdout.isatty() else 100
    return Console(width=min(width, 100), highlight=False)


def progress(screen: Console) -> Progress:
    """A bar that vanishes when it is done; nothing where there is no terminal."""
    columns = (
        TextColumn("{task.description:28}"),
        BarColumn(bar_width=36),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal)


def machine() -> dict[str, Any]:
    """Where figures come from, and the command that gave them."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cpu_targets": rmsnorm.cpu_targets(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def name_of(dtype: torch.dtype) -> str:
    """The dtype's name without its module."""
    return str(dtype).removeprefix("torch.")


def readable(seconds: float) -> str:
    """In milliseconds, or microseconds below one."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1e3:.{0 if seconds >= 0.1 else 1}f} ms"


def _inputs(shape: Shape, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """x, gamma, dy; the first two with gradients."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(dtype).requires_grad_()
    gamma = torch.empty(shape[1]).uniform_(0.5, 1.5, generator=generator).to(dtype)
    dy = torch.randn(shape, generator=generator).to(dtype)
    return x, gamma.requires_grad_(), dy


def _measure_all(bar: Progress) -> list[Row]:
    all_threads = torch.get_num_threads()
    thread_counts = sorted({1, all_threads})
    cells = [(shape, dtype) for shape in _SHAPES for dtype in _DTYPES]
    task = bar.add_task("", total=len(cells) * len(thread_counts))
    rows = []
    try:
        for shape, dtype in cells:
            bar.update(task, description=f"{name_of(dtype)} \\[{shape[0]}, {shape[1]}]")
            torch.set_num_threads(all_threads)
            found = errors(shape, dtype)
            wrong = frozenset(name for name in found if not found[name] <= _BOUND)
            repeats = 7 if shape[0] * shape[1] > 2**22 else 21
            for threads in thread_counts:
                torch.set_num_threads(threads)
                for part, seconds in measure(shape, dtype, repeats, wrong).items():
                    rows.append(Row(part, threads, shape, name_of(dtype), seconds, found))
                bar.advance(task)
    finally:
        torch.set_num_threads(all_threads)
    return sorted(rows, key=lambda row: (row.part == BOTH, row.threads))


def _table(rows: list[Row]) -> Table:
    table = Table(
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        caption="Multiples of the time to copy the bytes that the pass must move. 'wrong': too far "
        "from float64 to be timed.",
        caption_justify="left",
    )
    table.add_column("shape")
    table.add_column("dtype")
    for name in ("copy, ms", FUSED, "out=", TORCH, SMALL):
        table.add_column(name, justify="right")
    for (part, threads), group in itertools.groupby(rows, lambda row: (row.part, row.threads)):
        table.add_row(f"[bold]{part}, {threads} thread{'s' * (threads > 1)}[/]")
        for row in group:
            copy = row.seconds[COPY]
            times = {name: f"{seconds / copy:.1f}" for name, seconds in row.seconds.items()}
            table.add_row(
                f"\\[{row.shape[0]}, {row.shape[1]}]",
                row.dtype,
                f"{copy * 1e3:.2f}",
                times.get(FUSED, "wrong"),
                times.get(INTO, ""),
                times.get(TORCH, "wrong"),
                times.get(SMALL, "wrong"),
            )
    return table
