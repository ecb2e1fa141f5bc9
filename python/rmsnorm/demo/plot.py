"""The demo's picture: the losses over each other, and the time of a norm call."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmsnorm.bench.harness import readable
from rmsnorm.bench.ways import COPY, FUSED, SMALL, TORCH

if TYPE_CHECKING:
    from rmsnorm.demo.checks import Outcome

_COLORS = {"float32": ("#a9cbe8", "#12507f"), "bfloat16": ("#f6c9a0", "#b4480a")}  # own, fused
_BARS = {FUSED: "#12507f", TORCH: "#8c97a3", SMALL: "#c9d0d7"}
_ZERO = 1e-7  # where a difference of 0 stands on a logarithmic axis: no loss above 1 is finer
_NAMES = {
    FUSED: "rmsnorm",
    TORCH: "PyTorch's F.rms_norm",
    SMALL: "small operators, as Hugging Face's class",
}


def draw(path: Path, outcomes: list[Outcome], about: dict[str, Any]) -> None:
    """Write the picture as PNG.

    Args:
        outcomes: one for each dtype; the time of a norm call is shown for the last.
        about: of harness.machine().
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13.5, 6.2), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    halves: Any = figure.subfigures(1, 2, width_ratios=(1, 1.15), wspace=0.04)
    left, right = halves
    upper, lower = left.subplots(2, 1, sharex=True, height_ratios=(2.4, 1))
    _losses(upper, outcomes)
    _differences(lower, outcomes)
    bars = right.subplots()
    _norm_calls(bars, outcomes[-1])
    for axes in (upper, lower, bars):
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(
        f"{about['cpu']}, {about['cores']} cores, {about['threads']} threads · torch "
        f"{about['torch']} · {about['command']}",
        fontsize=8.5,
        color="#666",
    )
    figure.savefig(path)


def _losses(axes: Any, outcomes: list[Outcome]) -> None:
    for width, outcome in zip((8, 4), outcomes, strict=False):
        steps = range(1, len(outcome.own.losses) + 1)
        pale, _ = _COLORS[outcome.name]
        axes.plot(
            steps, outcome.own.losses, color=pale, lw=width, label=f"{outcome.name}, own norms"
        )
    for style, outcome in zip(("-", (0, (2, 2))), outcomes, strict=False):
        steps = range(1, len(outcome.fused.losses) + 1)
        _, dark = _COLORS[outcome.name]
        label = f"{outcome.name}, fused norms"
        axes.plot(steps, outcome.fused.losses, color=dark, lw=1.6, ls=style, label=label)
    axes.set_title("A small LLaMA trains the same with fused norms", loc="left", weight="bold")
    axes.set_ylabel("loss, nats per byte")
    axes.grid(axis="y", color="#e6e6e6")
    axes.legend(frameon=False)


def _differences(axes: Any, outcomes: list[Outcome]) -> None:
    for outcome in outcomes:
        pale, dark = _COLORS[outcome.name]
        steps = range(1, len(outcome.own.losses) + 1)
        for trained, color, width in ((outcome.nudged, pale, 4), (outcome.fused, dark, 1.6)):
            values = [max(value, _ZERO) for value in outcome.strays(trained)]
            axes.plot(steps, values, color=color, lw=width)
    axes.set_yscale("log")
    axes.set_ylim(bottom=_ZERO)
    axes.set_yticks([_ZERO, 1e-5, 1e-3], ["0", "$10^{-5}$", "$10^{-3}$"])
    axes.minorticks_off()
    axes.set_xlabel("step")
    axes.set_ylabel("difference\nfrom own, nats")
    axes.grid(axis="y", color="#e6e6e6")
    axes.set_title(
        "thin: fused norms; thick: own norms, every gamma moved by one unit in the last place",
        loc="left",
        fontsize=8.5,
        color="#444",
    )


def _norm_calls(axes: Any, outcome: Outcome) -> None:
    ticks, labels, at = [], [], 0.0
    longest = max(
        seconds[way] / seconds[COPY]
        for parts in outcome.calls.values()
        for seconds in parts.values()
        for way in _BARS
    )
    for shape, parts in outcome.calls.items():
        for part, seconds in parts.items():
            ticks.append(at + 1)
            labels.append(f"[{shape[0]}, {shape[1]}]\n{part}")
            for way, color in _BARS.items():
                copies = seconds[way] / seconds[COPY]
                axes.barh(at, copies, color=color, height=0.86, label=_NAMES[way])
                text = f"{copies:.1f} × · {readable(seconds[way])}"
                axes.text(copies + longest / 80, at, text, va="center", fontsize=9)
                at += 1
            at += 0.9
    axes.axvline(1, color="#b4480a", lw=1.2, ls=(0, (4, 3)))
    axes.text(1, -0.75, " a copy", color="#b4480a", fontsize=9, va="bottom")
    axes.set_yticks(ticks, labels)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(at - 0.9, -1.4)
    axes.set_xlim(0, longest * 1.3)
    axes.set_xlabel("time per call, in copies of the same bytes (less is better)")
    title = f"Time of one norm call, {outcome.name}"
    axes.set_title(title, loc="left", weight="bold")
    handles, names = axes.get_legend_handles_labels()
    axes.legend(handles[: len(_BARS)], names[: len(_BARS)], frameon=False, loc="upper right")
