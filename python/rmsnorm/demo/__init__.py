"""The main job on real input: train a small LLaMA with its own norms and with ours, and compare."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

import rmsnorm
from rmsnorm.bench import harness
from rmsnorm.bench.measure import pytorch
from rmsnorm.bench.shapes import Shape
from rmsnorm.demo import bits, checks, migration, plot, tables, training
from rmsnorm.demo.checks import Outcome
from rmsnorm.demo.training import Size

FULL = Size()
SHORT = Size(layers=2, steps=20, shape=(1024, 4096), repeats=5)
_DTYPES = (torch.float32, torch.bfloat16)


def run(out: Path, short: bool) -> bool:
    """Show the main job; write demo.png and demo.json into the folder `out`.

    Returns:
        True if all checks hold.
    """
    return run_at(out, SHORT if short else FULL, 2)


def run_over(processes: int, out: Path, short: bool) -> bool:
    """Show the training over processes alone; write processes.json into the folder `out`.

    Args:
        processes: 1, 2 or 4.

    Returns:
        True if all checks hold.
    """
    _prepare()
    if lack := why_no_processes():
        raise SystemExit(f"--nproc: {lack}")
    from rmsnorm.demo import distributed

    return distributed.run(out, processes, distributed.SHORT if short else distributed.FULL)


def run_at(out: Path, size: Size, processes: int) -> bool:
    """run() at any size; processes: of the training over processes; 0: without."""
    _prepare()
    start = time.perf_counter()
    screen = harness.console()
    about = harness.machine()
    tables.introduction(screen, size, about)
    source = migration.rewritten()
    outcomes = []
    for dtype in _DTYPES:
        with harness.progress(screen) as bar:
            outcomes.append(measure(dtype, size, source, bar))
        tables.trained(screen, outcomes[-1])
    held = [check for outcome in outcomes for check in checks.check(outcome)]
    tables.results(screen, outcomes, source)
    figures: dict[str, Any] = {
        "machine": about,
        "size": asdict(size),
        "outcomes": {outcome.name: outcome.figures() for outcome in outcomes},
    }
    if processes and not (lack := why_no_processes()):
        from rmsnorm.demo import distributed, runs

        split = distributed.measure(screen, processes, distributed.SHORT)
        distributed.show(screen, split)
        held += runs.check(split)
        figures["processes"] = split.figures()
    elif processes:
        screen.print(f"\nWithout a training over processes: {lack}", markup=False)
    tables.checked(screen, held)
    figures["checks"] = [asdict(check) for check in held]

    out.mkdir(parents=True, exist_ok=True)
    (out / "demo.json").write_text(json.dumps(figures, indent=1) + "\n")
    plot.draw(out / "demo.png", outcomes, about)
    seconds = time.perf_counter() - start
    tables.ending(screen, held, seconds, [out / "demo.png", out / "demo.json"])
    return all(check.holds for check in held)


def measure(dtype: torch.dtype, size: Size, source: migration.Rewritten, bar: Progress) -> Outcome:
    """Train, time and compare in one dtype. source: the file of the model's class, rewritten."""
    name = harness.name_of(dtype)
    task = bar.add_task(f"{name}: training", total=size.steps)
    own = training.llama(size, dtype)
    fused = copy.deepcopy(own)
    report = rmsnorm.patch(fused)
    models = {"own": own, "fused": fused}
    steps = training.batches(size)
    operators = training.operators_run(fused, steps[0])
    compiled = migration.compiled(own, steps[0])
    step_bytes = {key: training.step_bytes(model, steps[0]) for key, model in models.items()}
    trained = training.train(
        {**models, "nudged": training.nudged(own)}, steps, lambda: bar.advance(task)
    )

    task = bar.add_task(f"{name}: time and bits", total=4)
    calls = training.norm_calls(fused, steps[-1])
    norm_seconds = training.norm_seconds(models, calls, 5 * size.repeats)
    bar.advance(task)
    timed = {}
    for shape, repeats in (((size.rows, size.hidden), 50), (size.shape, size.repeats)):
        timed[shape] = pytorch(Shape(*shape), dtype, repeats)
        bar.advance(task)
    last, norm = list(training.norms(fused).items())[-1]
    call, gamma = calls[last], training.gamma(norm).detach()
    rewritten = migration.norm_of(source.new, norm)
    with torch.no_grad():
        rewritten_differs = int((rewritten(call.x) != norm(call.x)).sum())
    operands = (call.x.flatten(0, 1), call.dy.flatten(0, 1), gamma)
    targets = rmsnorm.cpu_targets()
    found_bits = bits.sweep(*operands, targets)
    bar.advance(task)
    return Outcome(
        dtype=dtype,
        report=report,
        norms=len(training.norms(own)),
        rows=size.rows,
        operators=operators,
        compiled=compiled,
        rewritten_differs=rewritten_differs,
        **trained,
        norm_seconds=norm_seconds,
        norm_bytes={key: training.norm_bytes(model, calls) for key, model in models.items()},
        step_bytes=step_bytes,
        calls=timed,
        targets=targets,
        bits=found_bits,
    )


def _prepare() -> None:
    """Say what is missing before anything takes time; keep transformers quiet, off the network."""
    missing = [
        name for name in ("transformers", "matplotlib") if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise SystemExit(f"the demo needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"


def why_no_processes() -> str | None:
    """What PyTorch lacks for the training over processes."""
    if not torch.distributed.is_available():
        return "this PyTorch was built without torch.distributed"
    from torch.distributed import fsdp

    if not hasattr(fsdp, "fully_shard"):
        return f"FSDP2 needs PyTorch 2.6 or later; this is {torch.__version__}"
    return None
