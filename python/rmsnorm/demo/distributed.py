"""The part of the demo that trains over processes: `rmsnorm demo --nproc`."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from rmsnorm.bench import harness
from rmsnorm.demo import runs as over
from rmsnorm.demo import tables
from rmsnorm.demo.checks import apart, root_mean_square
from rmsnorm.demo.launch import Lost
from rmsnorm.demo.runs import Runs
from rmsnorm.demo.training import Size

FULL = Size(layers=2, steps=20)
SHORT = Size(layers=1, steps=6)


def run(out: Path, processes: int, size: Size) -> bool:
    """Show this part alone; write processes.json into the folder `out`.

    Returns:
        True if all checks hold.
    """
    if processes not in over.COUNTS:
        raise SystemExit(
            f"--nproc: {processes}; expected one of {', '.join(map(str, over.COUNTS))}"
        )
    start = time.perf_counter()
    screen = harness.console()
    runs = measure(screen, processes, size)
    held = over.check(runs)
    show(screen, runs)
    tables.checked(screen, held)
    figures = {"machine": harness.machine(), "size": asdict(size), **runs.figures()}
    figures["checks"] = [asdict(check) for check in held]
    out.mkdir(parents=True, exist_ok=True)
    path = out / "processes.json"
    path.write_text(json.dumps(figures, indent=1) + "\n")
    tables.ending(screen, held, time.perf_counter() - start, [path])
    return all(check.holds for check in held)


def measure(screen: Console, processes: int, size: Size) -> Runs:
    """runs.measure(), with a bar; ends the program in one line if a process is lost."""
    with harness.progress(screen) as bar:
        task = bar.add_task(f"up to {processes} processes", total=over.launches(processes))
        try:
            return over.measure(processes, size, lambda: bar.advance(task))
        except Lost as error:
            # The demo's folder of checkpoints goes with it.
            raise SystemExit(str(error).replace("restart from", "its checkpoint was")) from None


def show(screen: Console, runs: Runs) -> None:
    tables.section(
        screen,
        "A training run over processes",
        "float32 on gloo, a thread each, started by torchrun's launcher. FSDP2 splits the batch, "
        "tensor parallelism the heads and the MLP. Apart: losses, rms.",
    )
    table = tables.plain_table(
        "", right=("first loss", "last", "own norms\napart", "1 process\napart", "parameters")
    )
    for name, ran in runs.by_name.items():
        fused = ran.losses["fused"]
        alone = runs.alone.losses["fused"][ran.start :]
        own = ran.losses.get("own")
        table.add_row(
            f"{name} after step {ran.start}" if ran.start else name,
            f"{fused[0]:.4f}",
            f"{fused[-1]:.4f}",
            f"{root_mean_square(apart(fused, own)):.1e}" if own else "",
            f"{root_mean_square(apart(fused, alone)):.1e}",
            f"{ran.parameters['fused'][:16]}…",
        )
    screen.print(table)
    if runs.lost:
        screen.print(f"\nOne process was killed. The launcher: {runs.lost}", markup=False)
        for line in runs.lost.said:
            screen.print(line, style="dim", markup=False)
    tables.section(
        screen,
        "Bits over processes",
        "All norms of the model on the same x, rows split over the processes, dgamma summed in "
        "order: SHA-256, float32 and bfloat16.",
    )
    table = tables.plain_table("", *runs.alone.norms)
    for name, ran in runs.by_name.items():
        table.add_row(name, *(f"{digest[:8]}…" for digest in ran.norms.values()))
    screen.print(table)
