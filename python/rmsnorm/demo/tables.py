"""What the demo prints."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table

from rmsnorm.bench.harness import readable
from rmsnorm.bench.ways import COPY, FUSED, SMALL, TORCH
from rmsnorm.demo.bits import THREADS
from rmsnorm.demo.checks import Check, Outcome
from rmsnorm.demo.migration import Rewritten
from rmsnorm.demo.training import Size


def introduction(screen: Console, size: Size, about: dict[str, Any]) -> None:
    screen.rule("[bold]rmsnorm demo", align="left")
    screen.print(
        f"Trains Hugging Face's LlamaForCausalLM ({size.layers} layers, {size.hidden} wide, random "
        "weights) on the text of Python's\nown manual, byte by byte: with the norms that it comes "
        "with, and after rmsnorm.patch(model).\n"
    )
    screen.print(
        f"{about['cpu']}, {about['cores']} cores, {about['threads']} threads, "
        f"{about['cpu_targets'][0]} kernels; torch {about['torch']}\n",
        style="dim",
    )


def trained(screen: Console, outcome: Outcome) -> None:
    steps = len(outcome.own.losses)
    seconds = sum(outcome.own.seconds) + sum(outcome.fused.seconds)
    screen.print(
        f"{outcome.name:9} {steps} steps with own norms and {steps} with fused ones: "
        f"{seconds:.0f} s"
    )


def results(screen: Console, outcomes: list[Outcome], source: Rewritten) -> None:
    for outcome in outcomes:
        section(screen, f"What patch did to the {outcome.name} model")
        screen.print(str(outcome.report), markup=False)
    section(screen, "What rmsnorm migrate --diff says of the model's source")
    screen.print(Syntax(source.diff, "diff", background_color="default", word_wrap=True))
    for outcome in outcomes:
        section(screen, f"What compile_pass did to the graph of the {outcome.name} model")
        screen.print(outcome.compiled.report, markup=False)
    _losses(screen, outcomes)
    _costs(screen, outcomes)
    _norm_calls(screen, outcomes)
    _bits(screen, outcomes)


def checked(screen: Console, held: list[Check]) -> None:
    section(screen, "Checks")
    table = plain_table("", "", "")
    for part, of_part in itertools.groupby(held, lambda check: check.part):
        table.add_row("", f"[bold]{part}[/]")
        for check in of_part:
            mark = "[green]✓[/]" if check.holds else "[bold red]✗[/]"
            table.add_row(mark, check.claim, f"[dim]{check.figures}[/]")
    screen.print(table)


def ending(screen: Console, held: list[Check], seconds: float, files: list[Path]) -> None:
    failed = sum(not check.holds for check in held)
    verdict = f"{failed} of {len(held)} checks FAILED" if failed else f"all {len(held)} checks hold"
    screen.print(
        f"\n[bold {'red' if failed else 'green'}]{verdict}[/] after {seconds:.0f} s; "
        f"see {' and '.join(map(str, files))}",
        soft_wrap=True,
    )


def section(screen: Console, title: str, explanation: str = "") -> None:
    screen.print()
    screen.rule(f"[bold]{title}", align="left", style="dim")
    if explanation:
        screen.print(explanation, style="dim", markup=False)


def plain_table(*left: str, right: Sequence[str] = ()) -> Table:
    """A table without lines: columns of words on the left, of numbers after them."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for name in left:
        table.add_column(name)
    for name in right:
        table.add_column(name, justify="right")
    table.show_header = any((*left, *right))
    return table


def _by_dtype(outcomes: list[Outcome], columns: Sequence[str]) -> list[str]:
    """The columns for each dtype, with its name above the first."""
    names = []
    for outcome in outcomes:
        names += [f"{outcome.name}\n{columns[0]}", *(f"\n{name}" for name in columns[1:])]
    return names


def _losses(screen: Console, outcomes: list[Outcome]) -> None:
    section(
        screen,
        "Losses, nats per byte",
        "From the same weights, on the same batches. 'Nudged': own norms, after every gamma moved "
        "by one unit in the last place; how far that strays is what rounding alone does.",
    )
    columns = ("own", "fused", "apart", "nudged apart")
    table = plain_table(right=("\nstep", *_by_dtype(outcomes, columns)))
    steps = len(outcomes[0].own.losses)
    every = -(-steps // 8)
    for step in sorted({0, *range(every - 1, steps, every), steps - 1}):
        row = [str(step + 1)]
        for outcome in outcomes:
            row += [
                f"{outcome.own.losses[step]:.4f}",
                f"{outcome.fused.losses[step]:.4f}",
                f"{outcome.strays(outcome.fused)[step]:.1e}",
                f"{outcome.strays(outcome.nudged)[step]:.1e}",
            ]
        table.add_row(*row)
    screen.print(table)


def _costs(screen: Console, outcomes: list[Outcome]) -> None:
    section(
        screen,
        "Time and memory of a training step",
        "Median times, own and fused in turn. Time in the norms: forward and backward of every "
        "norm of a step, by themselves, on the tensors that they met. Memory: kept for backward, "
        "without parameters.",
    )
    table = plain_table("", right=_by_dtype(outcomes, ("own", "fused", "own / fused")))

    def add(name: str, pairs: list[dict[str, float]], unit: str, scale: float) -> None:
        row = [name]
        for pair in pairs:
            own, fused = pair["own"], pair["fused"]
            row += [f"{own / scale:.1f} {unit}", f"{fused / scale:.1f} {unit}"]
            row.append(f"{own / fused:.2f}")
        table.add_row(*row)

    steps = [
        {"own": outcome.own.step_seconds, "fused": outcome.fused.step_seconds}
        for outcome in outcomes
    ]
    add("time of a step", steps, "ms", 1e-3)
    add("time in the norms", [outcome.norm_seconds for outcome in outcomes], "ms", 1e-3)
    add("memory of a step", [{**outcome.step_bytes} for outcome in outcomes], "MiB", 2**20)
    add("memory of the norms", [{**outcome.norm_bytes} for outcome in outcomes], "MiB", 2**20)
    screen.print(table)


def _norm_calls(screen: Console, outcomes: list[Outcome]) -> None:
    section(
        screen,
        "Time of one norm call",
        "At the model's own shape and at a large one: median, and as a multiple of a copy of the "
        "bytes that it has to move. 'Small operators': what Hugging Face's class runs, and the "
        "class on the operator page.",
    )
    table = plain_table("", "", right=(COPY, FUSED, TORCH, SMALL))
    for outcome in outcomes:
        table.add_row(f"[bold]{outcome.name}[/]")
        for shape, parts in outcome.calls.items():
            for part, seconds in parts.items():
                times = [
                    f"{readable(seconds[way])} {seconds[way] / seconds[COPY]:5.1f} ×"
                    for way in (FUSED, TORCH, SMALL)
                ]
                size = f"\\[{shape[0]}, {shape[1]}]"
                table.add_row(size, part, readable(seconds[COPY]), *times)
    screen.print(table)


def _bits(screen: Console, outcomes: list[Outcome]) -> None:
    section(
        screen,
        "Bits",
        "One row of the trained model's last norm: alone and inside batches of up to "
        f"{outcomes[0].rows} rows, with {', '.join(map(str, THREADS))} threads, on "
        f"{', '.join(outcomes[0].targets)}; dgamma is of all rows. Counted: "
        "different results in all runs.",
    )
    table = plain_table("", right=_by_dtype(outcomes, ("different / runs", "SHA-256")))
    for name in outcomes[0].bits:
        row = [name]
        for outcome in outcomes:
            found = outcome.bits[name]
            row.append(f"{len(found.variants)} / {found.runs}")
            row.append(f"{found.digest[:16]}…" if found.same else "[bold red]differ[/]")
        table.add_row(*row)
    screen.print(table)
