"""What only a GPU can do: CUDA graphs, events and streams. The rest of the benchmark calls it."""

from __future__ import annotations

import contextlib
import gc
import shutil
import subprocess
from collections.abc import Callable
from typing import Any, Protocol

import torch

import rmsnorm

Call = Callable[[], object]


class NoGpu(RuntimeError):
    """There is nothing to measure on."""


class Device(Protocol):
    """Where calls run and how they are timed; tests run the benchmark on one made of the CPU.

    Attributes:
        place: where tensors are made.
        l2: bytes of the second-level cache.
    """

    place: torch.device
    l2: int

    def here(self) -> contextlib.AbstractContextManager[Any]:
        """While it is entered, all work is queued where record() and seconds() expect it."""

    def clear(self) -> None:
        """Start anew: nothing that record() gave before is called again."""

    def free(self) -> int:
        """Bytes of memory."""

    def wait(self) -> None:
        """Until all queued work is done."""

    def record(self, run: Call) -> Call:
        """What does the work of `run` again without the time that it takes on the host. `run` must
        have done it before, or something else that loads the same kernels."""

    def seconds(self, run: Call) -> float:
        """The time that the work of `run` takes on the device."""

    def about(self) -> dict[str, Any]:
        """Where figures come from."""


class Gpu:
    """The current GPU. Everything runs on one stream of its own: the gradient of a call runs on the
    stream of the call, and a graph can only record the stream that it is told."""

    def __init__(self) -> None:
        self.place = torch.device("cuda", torch.cuda.current_device())
        self._properties = torch.cuda.get_device_properties(self.place)
        self.l2 = self._properties.L2_cache_size
        self._stream = torch.cuda.Stream()
        self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._pool = torch.cuda.graph_pool_handle()
        self._free_at_first = self.free()
        self._recorded: list[Call] = []

    def here(self) -> contextlib.AbstractContextManager[Any]:
        return torch.cuda.stream(self._stream)

    def clear(self) -> None:
        self.wait()
        self._recorded.clear()
        torch.cuda.empty_cache()
        if self.free() < 0.9 * self._free_at_first:  # something is held in a cycle
            gc.collect()
            torch.cuda.empty_cache()
        self._pool = torch.cuda.graph_pool_handle()

    def free(self) -> int:
        return torch.cuda.mem_get_info(self.place)[0]

    def wait(self) -> None:
        torch.cuda.synchronize(self.place)

    def record(self, run: Call) -> Call:
        # All graphs may write to the same memory: nobody reads what they wrote.
        graph = torch.cuda.CUDAGraph()
        gc.disable()  # what it frees may be what must not be freed while a stream is recorded
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                run()
        finally:
            gc.enable()
        self._recorded.append(run)  # the graph reads the memory of what it keeps for gradients
        return graph.replay

    def seconds(self, run: Call) -> float:
        self._start.record()
        run()
        self._end.record()
        self._end.synchronize()
        return self._start.elapsed_time(self._end) / 1e3

    def about(self) -> dict[str, Any]:
        found = self._properties
        return {
            "gpu": found.name,
            "compute_capability": f"{found.major}.{found.minor}",
            "multiprocessors": found.multi_processor_count,
            "memory": found.total_memory,
            "l2": self.l2,
            "cuda": torch.version.cuda,
            "memory_clock_khz": getattr(found, "memory_clock_rate", None),
            **_driver(self.place.index),
        }


def gpu() -> Gpu:
    """The current GPU.

    Raises:
        NoGpu: there is none, or this build of ours has no code for it.
    """
    if not torch.cuda.is_available():
        raise NoGpu(f"no GPU: torch {torch.__version__} finds none that it can use")
    found = Gpu()
    try:
        rmsnorm.rms_norm(torch.ones(1, 8, device=found.place))
        found.wait()
    except RuntimeError as error:
        raise NoGpu(f"no GPU: {str(error).splitlines()[0]}") from error
    return found


def _driver(index: int) -> dict[str, str]:
    """The driver's version and the clocks, where nvidia-smi is there to tell."""
    asked = ("driver_version", "clocks.mem", "clocks.max.mem", "clocks.sm", "power.limit")
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    uuid = str(torch.cuda.get_device_properties(index).uuid)
    command = [program, f"--query-gpu={','.join(asked)}", "--format=csv,noheader"]
    try:
        told = subprocess.run(
            [*command, f"--id=GPU-{uuid}"], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(asked, (each.strip() for each in told.stdout.split(",")), strict=False))
