"""Cases that several processes run together, and what didn't hold: for the tests of machines."""

import datetime
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

SECONDS = 240  # after which processes that hang are killed

Claims = Iterator[tuple[str, bool]]


@dataclass(frozen=True)
class World:
    """This process, and how many there are."""

    rank: int
    size: int

    def mesh(self):
        from torch.distributed.device_mesh import init_device_mesh

        return init_device_mesh("cpu", (self.size,))

    def own(self, tensor: Tensor, axis: int) -> Tensor:
        """This process's part of a tensor that all have."""
        return tensor.chunk(self.size, axis)[self.rank].contiguous()

    def whole(self, part: Tensor, axis: int) -> Tensor:
        """What own took apart."""
        parts = [torch.empty_like(part) for _ in range(self.size)]
        dist.all_gather(parts, part.detach().contiguous())
        return torch.cat(parts, axis)


Case = Callable[[World], Claims]
Cases = dict[str, Case]
NEEDS: dict[Case, tuple[str, str | None]] = {}  # a PyTorch at least, another package


def needs(pytorch: str, package: str | None = None) -> Callable[[Case], Case]:
    """Where that PyTorch or the package is not there, the case is not run."""

    def note(case: Case) -> Case:
        NEEDS[case] = pytorch, package
        return case

    return note


def named(*cases: Case) -> Cases:
    return {case.__name__.replace("_", " "): case for case in cases}


def outcomes(size: int, cases: Cases, folder: str) -> dict[str, list[str]]:
    """What doesn't hold, by case, when `size` processes run them all; kills them in time."""
    context = torch.multiprocessing.spawn(_work, (size, cases, folder), nprocs=size, join=False)
    end = time.monotonic() + SECONDS
    while not context.join(timeout=1):
        if time.monotonic() > end:
            for process in context.processes:
                process.kill()
            raise TimeoutError(f"the {size} processes did not end")
    return torch.load(f"{folder}/outcomes.pt")


def _work(rank: int, size: int, cases: Cases, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=SECONDS / 2),
    )
    broken = {name: _broken(case, World(rank, size)) for name, case in cases.items()}
    gathered = [None] * size
    dist.all_gather_object(gathered, broken)
    if rank == 0:
        everyone = {
            name: [f"rank {i}: {what}" for i, one in enumerate(gathered) for what in one[name]]
            for name in cases
        }
        torch.save(everyone, f"{folder}/outcomes.pt")
    dist.destroy_process_group()


def _broken(case: Case, world: World) -> list[str]:
    torch.manual_seed(0)
    broken, claims = [], 0
    try:
        for claim, holds in case(world):
            claims += 1
            broken += [] if holds else [claim]
    except Exception:
        broken.append(traceback.format_exc())
    return broken if claims else [*broken, "nothing was claimed"]


def error_of(call: Callable[[], object]) -> str:
    """The type and text of what a call raises."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"
