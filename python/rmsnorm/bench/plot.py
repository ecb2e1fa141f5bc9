"""The plots: `rmsnorm bench`'s is a roofline, bytes moved per second over the bytes of a call."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rmsnorm.bench.kernels import LIMITS, ONEDNN, Kernel, limit
from rmsnorm.bench.measure import FORWARD, Row
from rmsnorm.bench.peers import JAX, LIGER, ONNX, QUACK
from rmsnorm.bench.ways import COMPILED, COPY, FUSED, INTO, OPERATOR, SMALL, TORCH

_COLORS = {
    COPY: "#b4480a",
    FUSED: "#12507f",
    INTO: "#5b9bd5",
    ONEDNN: "#5a7d2b",
    COMPILED: "#8a5fb0",
    TORCH: "#8c97a3",
    SMALL: "#c3b08f",
    ONNX: "#d08aa8",
    JAX: "#3ba59a",
    OPERATOR: "#5b9bd5",
    LIGER: "#d08aa8",
    QUACK: "#3ba59a",
}
_HIDDEN = {name for names in LIMITS.values() for name in names}  # their best is drawn as the copy

_WRONG = ", wrong"

# Bytes and seconds, by way, by panel: what runs and the dtype.
Points = dict[tuple[str, str], dict[str, list[tuple[int, float]]]]


def draw(path: Path, rows: Sequence[Row], cells: Sequence[Kernel], about: dict[str, Any]) -> bool:
    """Write the plot as PNG, of all threads and contiguous shapes; False without matplotlib."""
    title = f"{about['cpu']}, {about['cores']} threads · torch {about['torch']}"
    labels = ("bytes that the call has to move", "GB moved per second")
    return save(path, _points(rows, cells), _panel, labels, title)


def save(
    path: Path,
    points: Points,
    panel: Callable[[Any, dict[str, list[tuple[int, float]]]], None],
    labels: tuple[str, str],
    title: str,
) -> bool:
    """Write a PNG of one panel for each key of `points`; False without matplotlib.

    Args:
        panel: draws the points of one panel.
        labels: of the horizontal and the vertical axis.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    whats, dtypes = ([*dict.fromkeys(key[i] for key in points)] for i in (0, 1))
    figure = Figure(
        figsize=(5.2 * len(dtypes) + 1.6, 3 * len(whats) + 0.5), dpi=110, layout="constrained"
    )
    FigureCanvasAgg(figure)
    panels: Any = figure.subplots(len(whats), len(dtypes), sharex=True, sharey="row", squeeze=False)
    for i, what in enumerate(whats):
        for j, dtype in enumerate(dtypes):
            axes = panels[i][j]
            panel(axes, points.get((what, dtype), {}))
            axes.set_title(f"{what}, {dtype}", loc="left", fontsize=9, weight="bold")
            axes.grid(color="#ececec")
            axes.spines[["top", "right"]].set_visible(False)
        panels[i][0].set_ylabel(labels[1])
    for axes in panels[-1]:
        axes.set_xlabel(labels[0])
    named = {
        name: line
        for axes in panels.flat
        for line, name in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(named.values(), named.keys(), loc="outside right upper", frameon=False)
    figure.suptitle(title, fontsize=9, color="#666")
    figure.savefig(path)
    return True


def line(axes: Any, name: str, xs: Sequence[float], ys: Sequence[float], label: str = "") -> None:
    """A way's line, in the colour and style that it has in every plot."""
    way = name.removesuffix(_WRONG)
    dashed = ":" if way != name else "--" if name == COPY else "-"
    wide = 2.2 if name == FUSED else 1.3
    axes.plot(xs, ys, dashed, color=_COLORS[way], lw=wide, marker=".", label=label or name)


def _points(rows: Sequence[Row], cells: Sequence[Kernel]) -> Points:
    found: Points = defaultdict(lambda: defaultdict(list))
    dtypes = {row.dtype for row in rows}
    threads = max(row.threads for row in rows)
    for cell in cells:
        if cell.threads != threads or cell.shape.row_stride or cell.dtype not in dtypes:
            continue
        ways = found[f"C++ {cell.part}", cell.dtype]
        ways[COPY].append((cell.bytes, limit(cell, list(cells))))
        for name, seconds in cell.seconds.items():
            if name not in _HIDDEN:
                ways[f"{name}{_WRONG * (name in cell.wrong)}"].append((cell.bytes, seconds))
    for row in rows:
        if row.threads != threads or row.shape.row_stride:
            continue
        moved = (2 if row.part == FORWARD else 5) * row.shape.bytes(row.dtype)
        for name, seconds in row.seconds.items():
            found[f"PyTorch {row.part}", row.dtype][name].append((moved, seconds))
    return found


def _panel(axes: Any, ways: dict[str, list[tuple[int, float]]]) -> None:
    for name, points in ways.items():
        moved, seconds = zip(*sorted(points), strict=True)
        rates = [size / taken / 1e9 for size, taken in zip(moved, seconds, strict=True)]
        line(axes, name, moved, rates, "copy, or stream" if name == COPY else name)
    axes.set_xscale("log")
    axes.set_yscale("log")
