"""Timing in turns, and how every program shows what it measures and on which machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import random
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import rmsnorm

Seconds = dict[str, float]  # by candidate

_SHORT = 0.01  # seconds
_VERSIONS_OF = (
    *("rmsnorm", "torch", "onnxruntime", "jax", "onednn"),
    *("triton", "liger-kernel", "quack-kernels"),
)


def wall(run_once: Callable[[], object]) -> float:
    """The seconds that a call takes."""
    start = time.perf_counter()
    run_once()
    return time.perf_counter() - start


def interleaved(
    candidates: dict[str, Callable[[], object]],
    repeats: int,
    seconds_of: Callable[[Callable[[], object]], float] = wall,
) -> Seconds:
    """The median time of each candidate, in seconds.

    All run once to warm up; then they take turns, so that what slows the machine slows them alike,
    in an order that changes. A short call runs once more before it is timed: it finds the caches as
    it leaves them itself, and no threads of another candidate that still wait for work.
    """
    for run_once in candidates.values():
        run_once()
    times: dict[str, list[float]] = {name: [] for name in candidates}
    order = list(candidates)
    shuffle = random.Random(0).shuffle
    for _ in range(repeats):
        shuffle(order)
        for name in order:
            run_once = candidates[name]
            if not times[name] or times[name][-1] < _SHORT:
                run_once()
            times[name].append(seconds_of(run_once))
    return {name: statistics.median(taken) for name, taken in times.items()}


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
        "cores": cores(),
        "caches": _caches(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "versions": _versions(),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def name_of(dtype: torch.dtype) -> str:
    """The dtype's name without its module."""
    return str(dtype).removeprefix("torch.")


def readable(seconds: float) -> str:
    """In milliseconds, or microseconds below one."""
    unit, scale = ("µs", 1e6) if seconds < 1e-3 else ("ms", 1e3)
    value = seconds * scale
    return f"{value:.{2 if value < 1 else 1 if value < 100 else 0}f} {unit}"


def _caches() -> dict[str, str]:
    """Sizes of the first core's caches, by level and kind, as Linux tells them."""
    found = {}
    for cache in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        if not (cache / "size").exists():  # firmware need not tell
            continue
        level, kind, size = (
            (cache / name).read_text().strip() for name in ("level", "type", "size")
        )
        found[f"L{level} {kind.lower()}"] = size
    return found


def _versions() -> dict[str, str]:
    """Of us and of the peers that are installed."""
    found = {}
    for name in _VERSIONS_OF:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
