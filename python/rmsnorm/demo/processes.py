"""What each process of a run over processes does: train, write checkpoints, compute norms."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import DeviceMesh

import rmsnorm
from rmsnorm.demo import split, training
from rmsnorm.demo.training import Size

SILENCE = 60  # seconds after which a process that says nothing counts as lost
_HEADSTART = 5  # seconds in which the launcher looks; it names the process that ended first


@dataclass(frozen=True)
class Job:
    """A run over data * tensor processes.

    Attributes:
        data, tensor: processes among which FSDP2 splits the sequences of a batch, and tensor
            parallelism the heads and the width of the MLP.
        models: what to train: "own", "fused", "nudged", as the demo does.
        folder: where checkpoints of the model are, if any are to be written; a run starts from the
            last one.
        every: steps between them.
        kill_at: the step in which the last process kills itself.
    """

    size: Size
    data: int = 1
    tensor: int = 1
    models: tuple[str, ...] = ("fused",)
    folder: Path | None = None
    every: int = 1
    kill_at: int | None = None

    @property
    def processes(self) -> int:
        return self.data * self.tensor


@dataclass(frozen=True)
class Ran:
    """What came out of a job.

    Attributes:
        start: steps that the checkpoint held from which it started.
        losses: of every step from there on, by model.
        parameters: SHA-256 of all parameters at the end, by model.
        norms: SHA-256 of the norms' x, y, rstd, dx and dgamma, computed on rows that are split
            over all processes.
    """

    start: int
    losses: dict[str, list[float]]
    parameters: dict[str, str]
    norms: dict[str, str]


def _end_with_launcher() -> None:
    """A launcher that is killed can't end its processes."""
    if launcher := multiprocessing.parent_process():
        launcher.join()
        os._exit(1)


def work(job: Job) -> Ran:
    """Runs in each process that torchrun's launcher starts; all return the same.

    Raises:
        RuntimeError: another process ended, or was silent for SILENCE seconds.
    """
    threading.Thread(target=_end_with_launcher, daemon=True).start()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=SILENCE))
    try:
        mesh = _mesh(job)
        runs = [_Training(job, name, mesh) for name in job.models]
        for run in runs:
            run.finish()
        return Ran(
            runs[0].start,
            {run.name: run.losses for run in runs},
            {run.name: split.digest(map(split.whole, run.model.parameters())) for run in runs},
            split.norm_digests(job.size),
        )
    except RuntimeError as error:
        print(ending(job, dist.get_rank(), "can't go on", str(error)), flush=True)
        time.sleep(_HEADSTART)
        raise
    finally:
        dist.destroy_process_group()


def _mesh(job: Job) -> DeviceMesh:
    """As init_device_mesh makes it, but for the timeout: its groups wait for half an hour."""
    ranks = torch.arange(job.processes).view(job.data, job.tensor)
    groups: list[Any] = [
        dist.new_subgroups_by_enumeration(each.tolist(), timedelta(seconds=SILENCE))[0]
        for each in (ranks.T, ranks)
    ]
    return DeviceMesh.from_group(groups, "cpu", ranks, mesh_dim_names=("data", "tensor"))


class _Training:
    """One model's training, from its last checkpoint."""

    def __init__(self, job: Job, name: str, mesh: DeviceMesh) -> None:
        self.job, self.name, self.mesh = job, name, mesh
        self.model = split.over_mesh(_model(job.size, name), mesh)
        self.optimizer = training.optimizer(self.model)
        self.sequences = training.batches(job.size).flatten(0, 1)
        self.steps = self.read = 0  # the position in training, and in the data
        if last := last_checkpoint(job.folder):
            self._load(last)
        self.start = self.steps
        self.losses: list[float] = []

    def finish(self) -> None:
        while self.steps < self.job.size.steps:
            self._step()
            if self.job.folder and self.steps % self.job.every == 0:
                checkpoint = self.job.folder / f"step-{self.steps:06}"
                dcp.save(self._state(), checkpoint_id=checkpoint)

    def _step(self) -> None:
        batch = self.sequences[self.read : self.read + self.job.size.batch]
        tokens = batch.chunk(self.job.data)[self.mesh["data"].get_local_rank()]
        loss = self.model(input_ids=tokens, labels=tokens).loss
        if self.job.kill_at == self.steps and dist.get_rank() == self.job.processes - 1:
            self._end_by_force()
        loss.backward()
        split.clip([parameter.grad for parameter in self.model.parameters()])
        training.warm_up(self.optimizer, self.steps)
        self.optimizer.step()
        self.optimizer.zero_grad()
        losses = split.gathered(loss.detach().view(1), self.mesh.get_group("data"))
        self.losses.append(losses.mean().item())
        self.steps += 1
        self.read += len(batch)

    def _end_by_force(self) -> None:
        assert self.job.folder is not None
        killed_file(self.job.folder).touch()
        os.kill(os.getpid(), signal.SIGKILL)

    def _state(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer, "steps": self.steps, "read": self.read}

    def _load(self, checkpoint: Path) -> None:
        state = self._state()
        dcp.load(state, checkpoint_id=checkpoint)
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )
        self.steps, self.read = state["steps"], state["read"]


def ending(job: Job, rank: int, how: str, why: str = "") -> str:
    """The line that tells how a process ended, and where to go on."""
    last = last_checkpoint(job.folder)
    go_on = f"restart from {last}" if last else "there is no checkpoint"
    reason = f" ({why.splitlines()[0]})" if why else ""
    return f"rank {rank} of {job.processes} {how}; {go_on}{reason}"


def killed_file(folder: Path) -> Path:
    """Written by the process that is killed, right before."""
    return folder / "killed"


def last_checkpoint(folder: Path | None) -> Path | None:
    """The last one that is complete: its metadata is written after all else."""
    whole = [path.parent for path in folder.glob("*/.metadata")] if folder else []
    return max(whole, default=None)


def _model(size: Size, name: str) -> torch.nn.Module:
    model = training.llama(size, torch.float32)
    if name == "fused":
        rmsnorm.patch(model)
    return training.nudged(model) if name == "nudged" else model
