"""The memory of each way in PyTorch: what it keeps for backward, and the peak of both passes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from rmsnorm.bench.harness import name_of
from rmsnorm.bench.ways import COMPILED, WAYS, Case, compiled, passes_of


@dataclass(frozen=True)
class Memory:
    """Bytes over the bytes of x.

    Attributes:
        kept: between the passes, beyond x, gamma and y.
        peak: allocated at once in a forward pass with its backward pass, results included.
    """

    dtype: str
    way: str
    kept: float
    peak: float


def measure(case: Case) -> list[Memory]:
    """Of our way and PyTorch's own."""
    whole = case.dy.nbytes
    ways = {**WAYS, COMPILED: compiled()}
    return [
        Memory(name_of(case.dtype), name, kept(way, case) / whole, peak(way, case) / whole)
        for name, way in ways.items()
    ]


def kept(way: Callable[[Tensor, Tensor], Tensor], case: Case) -> int:
    """Bytes of the storages that autograd keeps, beyond the inputs' and the result's."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = way(case.x, case.gamma)
    for known in (case.x, case.gamma, y):
        storages.pop(known.untyped_storage().data_ptr(), None)
    return sum(storages.values())


def peak(way: Callable[[Tensor, Tensor], Tensor], case: Case) -> int:
    """Bytes allocated at once, at most, in a forward pass with its backward pass."""
    both = passes_of(way, case).both
    assert both is not None
    both()  # compiles
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it tells of every start on stderr
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        results = both()
    del results
    allocated = most = 0
    events = profiler.profiler.kineto_results.events()  # events() nets them by operator
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            allocated += event.nbytes()
            most = max(most, allocated)
    return most
