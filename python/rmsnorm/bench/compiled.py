"""Which form of rms_norm is faster in a compiled graph: `python -m rmsnorm.bench.compiled`."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor

import rmsnorm
from rmsnorm.bench.harness import console, interleaved, machine, name_of, readable
from rmsnorm.bench.shapes import Shape
from rmsnorm.compiled import FORMS

SHAPES = (Shape(1, 4096), Shape(64, 4096), Shape(1024, 4096))
DTYPES = (torch.float32, torch.bfloat16)

Graph = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]  # x, gamma, and one more like x


def alone(x: Tensor, gamma: Tensor, _: Tensor) -> tuple[Tensor, ...]:
    return (rmsnorm.rms_norm(x, gamma),)


def after_a_residual(x: Tensor, gamma: Tensor, residual: Tensor) -> tuple[Tensor, ...]:
    total = x + residual
    return total, rmsnorm.rms_norm(total, gamma)


def before_a_gate(x: Tensor, gamma: Tensor, gate: Tensor) -> tuple[Tensor, ...]:
    return (rmsnorm.rms_norm(x, gamma) * F.silu(gate),)


GRAPHS: dict[str, Graph] = {
    "norm": alone,
    "x + residual, norm": after_a_residual,
    "norm, * silu(gate)": before_a_gate,
}


def measure(
    graph: Graph, shape: Shape, dtype: torch.dtype, backward: bool, repeats: int
) -> dict[str, float]:
    """The median time of each form, in turns; backward: with the gradients of x and gamma."""
    torch.compiler.reset()
    run = torch.compile(graph, fullgraph=True, dynamic=False)
    x, more = (torch.randn(shape.rows, shape.n).to(dtype) for _ in range(2))
    gamma = torch.ones(shape.n, dtype=dtype)
    wanted = [tensor.requires_grad_(backward) for tensor in (x, gamma)]

    def call(form: str) -> Sequence[Tensor]:
        rmsnorm.compile_as(form)  # both graphs are kept, with the form as a guard
        outputs = run(x, gamma, more)
        return torch.autograd.grad(outputs, wanted, outputs) if backward else outputs

    return interleaved({form: partial(call, form) for form in FORMS}, repeats, processor_time)


def processor_time(run_once: Callable[[], object]) -> float:
    """The seconds that a call computes on one thread, whatever else the machine does meanwhile."""
    start = time.process_time()
    run_once()
    return time.process_time() - start


def main() -> None:
    screen = console()
    torch.set_num_threads(1)
    facts = machine()
    screen.print(f"{facts['cpu']}, PyTorch {facts['torch']}, one thread: medians of processor time")
    for backward in (False, True):
        table = Table("graph", "dtype", "shape", *FORMS, "decomposition / kernel")
        table.title = "forward and backward" if backward else "forward"
        for name, dtype, shape in itertools.product(GRAPHS, DTYPES, SHAPES):
            repeats = 21 if shape.rows > 100 else 301
            times = measure(GRAPHS[name], shape, dtype, backward, repeats)
            ratio = times["decomposition"] / times["kernel"]
            cells = (*map(readable, times.values()), f"{ratio:.2f}")
            table.add_row(name, name_of(dtype), str(shape), *cells)
        screen.print(table)
    rmsnorm.compile_as("kernel")


if __name__ == "__main__":
    main()
