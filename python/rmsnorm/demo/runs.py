"""The runs over processes: split in several ways, killed and restarted, and what has to hold."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rmsnorm.demo.checks import STRAY_FACTOR, Check, allowed_stray, apart, root_mean_square
from rmsnorm.demo.launch import Lost, launch
from rmsnorm.demo.processes import SILENCE, Job, Ran
from rmsnorm.demo.training import Size

COUNTS = (1, 2, 4)
_MODELS = ("own", "fused")
_Found = tuple[str, bool, str]  # claim, whether it holds, figures
_ALONE = "1 process"


@dataclass(frozen=True)
class Runs:
    """All that is measured with up to some number of processes.

    Attributes:
        processes: that number.
        alone: one process, which also trains with nudged norms.
        split: by how the work is split.
        whole: of these, the run that is repeated, but with checkpoints, and killed.
        lost: how the killed run ended; None if it did not.
        restarted: the rest of it, from its last checkpoint.
    """

    processes: int
    alone: Ran
    split: dict[str, Ran]
    whole: str
    lost: Lost | None
    restarted: Ran

    @property
    def by_name(self) -> dict[str, Ran]:
        return {_ALONE: self.alone, **self.split, "restarted": self.restarted}

    def figures(self) -> dict[str, Any]:
        """What demo.json says of it."""
        return {
            "processes": self.processes,
            "runs": {name: asdict(ran) for name, ran in self.by_name.items()},
            "killed": str(self.lost),
        }


def launches(processes: int) -> int:
    """How many runs measure() does."""
    return len(_splits(processes)) + 3


def measure(processes: int, size: Size, advance: Callable[[], object]) -> Runs:
    """Train alone, split in each way, killed in the middle, and from the last checkpoint on."""

    def finished(job: Job) -> Ran:
        ran = launch(job, Path(tempfile.mkdtemp(dir=folder)))
        advance()
        return ran

    with tempfile.TemporaryDirectory(prefix="rmsnorm-demo-") as folder:
        alone = finished(Job(size, models=(*_MODELS, "nudged")))
        splits = _splits(processes)
        split = {name: finished(Job(size, *sizes, _MODELS)) for name, sizes in splits.items()}
        whole, sizes = list(splits.items())[-1] if splits else (_ALONE, (1, 1))
        every = max(1, size.steps // 4)
        kill_at = 2 * every + every // 2  # between two checkpoints, where there are steps
        killed = Job(size, *sizes, ("fused",), Path(folder) / "checkpoints", every, kill_at)
        lost = None
        try:
            finished(killed)
        except Lost as error:
            lost = error
            advance()
        restarted = finished(replace(killed, kill_at=None))
    return Runs(processes, alone, split, whole, lost, restarted)


def _splits(processes: int) -> dict[str, tuple[int, int]]:
    """The ways to split the work over processes: over sequences, and over heads."""
    ways = {
        "2 processes, tensor parallel": (1, 2),
        "2 processes, FSDP2": (2, 1),
        "4 processes, FSDP2 × tensor parallel": (2, 2),
    }
    return {name: sizes for name, sizes in ways.items() if sizes[0] * sizes[1] <= processes}


def check(runs: Runs) -> list[Check]:
    """What has to hold."""
    part = f"{runs.processes} process{'es' if runs.processes > 1 else ''}"
    found = [*_losses_equal(runs), _bits_equal(runs), _ended(runs), _restart_equal(runs)]
    return [Check(part, *each) for each in found]


def _losses_equal(runs: Runs) -> list[_Found]:
    """Rounding differs: of the norms, and of PyTorch's products and gloo's sums of other sizes."""
    own = runs.alone.losses["own"]
    allowed = allowed_stray(apart(runs.alone.losses["nudged"], own), own[0])
    bound = f"at most {allowed:.1e} ({STRAY_FACTOR} × nudged)"

    def check(claim: str, pairs: list[tuple[list[float], list[float]]]) -> _Found:
        strays = [root_mean_square(apart(*pair)) for pair in pairs]
        within = all(stray <= allowed for stray in strays)
        return claim, within, f"{max(strays):.1e} nats rms, {bound}"

    every = [runs.alone, *runs.split.values()]
    return [
        check(
            "own and fused losses differ only by rounding",
            [(ran.losses["own"], ran.losses["fused"]) for ran in every],
        ),
        check(
            "losses differ from one process's only by rounding",
            [(ran.losses[name], runs.alone.losses[name]) for ran in every for name in _MODELS],
        ),
    ]


def _bits_equal(runs: Runs) -> _Found:
    differ = [
        f"{result} of {name}"
        for name, ran in runs.by_name.items()
        for result, digest in ran.norms.items()
        if digest != runs.alone.norms[result]
    ]
    claim = "the norms have the bits of one process"
    figures = ", ".join(differ) or f"y, rstd, dx, dgamma of {len(runs.by_name)} runs"
    return claim, not differ, figures


def _ended(runs: Runs) -> _Found:
    claim, lost = "after a kill all end, and one line says which", runs.lost
    if lost is None:
        return claim, False, "the run did not end"
    holds = (
        lost.rank == runs.processes - 1
        and lost.how.endswith("SIGKILL")
        and lost.alive == 0
        and lost.seconds < SILENCE
    )
    figures = f"rank {lost.rank} {lost.how}; {lost.alive} left after {lost.seconds:.1f} s"
    return claim, holds, figures


def _restart_equal(runs: Runs) -> _Found:
    whole, rest = runs.by_name[runs.whole], runs.restarted
    same = rest.losses["fused"] == whole.losses["fused"][rest.start :]
    same = same and rest.parameters["fused"] == whole.parameters["fused"]
    claim = "a restart has the bits of the run without a kill"
    digests = " and ".join(f"{ran.parameters['fused'][:8]}…" for ran in (whole, rest))
    figures = f"{len(rest.losses['fused'])} losses; parameters {digests}"
    return claim, same and rest.start > 0, figures
