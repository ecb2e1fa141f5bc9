"""Every way on a cell: checked against float64, then timed in turn with a copy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rmsnorm.bench.cuda.budget import Budget
from rmsnorm.bench.cuda.device import Call, Device
from rmsnorm.bench.cuda.peers import PEERS, Way, backward_of, forward_of, operator_of
from rmsnorm.bench.cuda.rotation import BACKWARD, Cell, Slot, fill
from rmsnorm.bench.harness import interleaved, name_of
from rmsnorm.bench.measure import Expected, Result, failure, right_calls
from rmsnorm.bench.measure import expected as expected_of
from rmsnorm.bench.ways import COPY, FUSED, OPERATOR, OURS, TORCH, WAYS, Case, Passes

COPY_KERNEL = "copy, by a kernel"
COPIES = (COPY, COPY_KERNEL)
LONG = 2e-3  # seconds of what is timed at once: an event is good to a microsecond
CALLS = 1000  # from Python, timed at once
_CHECKED = 2**24  # elements of a result that are compared with float64

Make = Callable[[Slot], Call]  # a way's call on one copy of the operands


@dataclass
class CudaRow(Result):
    """A pass on a shape on a GPU.

    Attributes:
        gamma: its dtype.
        moved: bytes that the pass must read or write.
        copies, wanted: of the operands, in memory and to exceed the cache twice; 0: left out.
        calls: timed at once.
        repeats: whose median the seconds are.
        left_out: why nothing was measured.
    """

    gamma: str = ""
    moved: int = 0
    copies: int = 1
    wanted: int = 1
    calls: int = 1
    repeats: int = 0
    left_out: str = field(default="")

    @property
    def copy(self) -> float:
        """Seconds of the faster copy of as many bytes."""
        return min(self.seconds[name] for name in COPIES if name in self.seconds)


def measure(
    cell: Cell,
    device: Device,
    budget: Budget,
    cells_left: int,
    peers: Mapping[str, Callable[[], Way]] = PEERS,
) -> CudaRow:
    """Times of a forward or a backward pass by every way and by two copies of as many bytes.

    A call is timed inside a recording of many, over copies of the operands that no cache holds
    together and into results that are as many. Forward passes give y, and rstd where the way has
    one; backward passes give dx and dgamma.
    """
    row = _row(cell)
    device.clear()
    free = device.free()
    row.wanted, row.copies = cell.wanted(device.l2), cell.copies(device.l2, free)
    if row.copies == 0:
        row.left_out = f"one copy of all takes {cell.held / 1e9:.1f} GB; {free / 1e9:.1f} are free"
        return row
    slots = fill(cell, row.copies, device.place)
    right = expected(cell, slots[0])
    makes = _makes(row, cell, budget, peers)
    for name in COPIES:  # a kernel's first launch loads it, which no recording allows
        makes[name](slots[0])()
    once = device.record(_in_turn_of(makes[COPY], slots, 1))
    once()
    cycles = max(1, math.ceil(LONG / min(device.seconds(once) for _ in range(3))))
    row.calls = cycles * len(slots)
    recorded: dict[str, Call] = {}
    for name, make in makes.items():
        with budget.getting_ready(name):
            if name in COPIES or _is_right(row, name, make, slots[0], right):
                _record(recorded, row, name, partial(_in_turn_of, make, slots, cycles), device)
    row.repeats = budget.repeats(cells_left, 2 * sum(map(device.seconds, recorded.values())))
    seconds = interleaved(recorded, row.repeats, device.seconds)
    row.seconds = {name: taken / row.calls for name, taken in seconds.items()}
    return row


def measure_calls(cell: Cell, device: Device) -> CudaRow:
    """Wall-clock times of calls from Python, without gradient, queued one after another."""
    row = _row(cell)
    device.clear()
    (slot,) = fill(cell, 1, device.place)

    def queue(call: Call) -> None:
        for _ in range(CALLS):
            call()
        device.wait()

    calls: dict[str, Call] = {
        name: partial(queue, forward_of(WAYS[name], slot)) for name in (FUSED, TORCH)
    }
    row.calls, row.repeats = CALLS, 15
    seconds = interleaved(calls, row.repeats)
    row.seconds = {name: taken / CALLS for name, taken in seconds.items()}
    return row


def expected(cell: Cell, slot: Slot) -> Expected:
    """The formula in float64, a part of the rows of it: y; or nothing, dx, and dgamma of all."""
    x, gamma = slot.x.detach(), slot.gamma.detach()
    step = _step(cell)
    if cell.part != BACKWARD:
        part = x[::step]
        return expected_of(Case(cell.shape, cell.dtype, part, gamma, part))
    dx, dgamma = [], torch.zeros(cell.shape.n, dtype=torch.float64, device=x.device)
    at_once = max(1, _CHECKED // cell.shape.n // step) * step
    for xs, dys in zip(x.split(at_once), slot.dy.split(at_once), strict=True):
        _, dx_part, dgamma_part = expected_of(Case(cell.shape, cell.dtype, xs, gamma, dys))
        dx.append(dx_part[::step].clone())
        dgamma += dgamma_part
    return x[:0], torch.cat(dx), dgamma


def _row(cell: Cell) -> CudaRow:
    gamma = name_of(cell.gamma_dtype)
    return CudaRow(cell.part, cell.shape, name_of(cell.dtype), gamma=gamma, moved=cell.moved)


def _step(cell: Cell) -> int:
    """Every how many rows one is compared."""
    return min(cell.shape.rows, math.ceil(cell.shape.rows * cell.shape.n / _CHECKED))


def _makes(
    row: CudaRow, cell: Cell, budget: Budget, peers: Mapping[str, Callable[[], Way]]
) -> dict[str, Make]:
    """The copies and the ways that are there; notes in `row` why others are not."""
    makes: dict[str, Make] = {
        COPY: lambda slot: slot.source.clone,
        COPY_KERNEL: lambda slot: slot.source.view(torch.int32).bitwise_not,
    }
    for name, make in peers.items():
        used_up = "" if name in OURS else budget.used_up(name)
        if used_up:
            row.missing[name] = used_up
            continue
        try:
            makes[name] = partial(backward_of if cell.part == BACKWARD else forward_of, make())
        except LookupError as reason:
            row.missing[name] = str(reason)
        except Exception as error:
            row.missing[name] = failure(error)
    if cell.part == BACKWARD:
        makes[OPERATOR] = operator_of
    return makes


def _is_right(row: CudaRow, name: str, make: Make, slot: Slot, right: Expected) -> bool:
    step = _step(Cell(row.part, row.shape, slot.x.dtype, slot.gamma.dtype))

    def call() -> Any:
        return make(slot)()

    def compared(result: Tensor) -> Tensor:
        return result[::step] if result.dim() == 2 else result

    return bool(right_calls(row, {name: Passes(call, call, compared)}, right))


def _record(
    recorded: dict[str, Call], row: CudaRow, name: str, run: Callable[[], Call], device: Device
) -> None:
    try:
        recorded[name] = device.record(run())
    except Exception as error:
        if name in OURS or name == COPY:
            raise
        row.missing[name] = failure(error)


def _in_turn_of(make: Make, slots: Sequence[Slot], cycles: int) -> Call:
    """A way's calls on all copies of the operands, so many times. A result lives until its own call
    gives the next one, so that results take memory in turn, too."""
    calls = [make(slot) for slot in slots]

    def run() -> None:
        results: list[object] = [None] * len(calls)
        for _ in range(cycles):
            for i, call in enumerate(calls):
                results[i] = call()

    return run
