"""The bytes that a pass moves, and copies of its operands that no cache holds together."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rmsnorm.bench.harness import name_of
from rmsnorm.bench.shapes import Shape

BACKWARD, CALL = "backward", "call from Python"
RSTD_BYTES = 4  # a row
WAYS_THAT_KEEP = 6  # each keeps its y and rstd of every copy for its backward pass
SPARE = 3 * 2**30  # bytes for what isn't counted: the check in float64, workspaces, PyTorch itself
_ALIGNED = 16  # bytes: of what a copying kernel moves at once


@dataclass(frozen=True)
class Cell:
    """What is measured: a pass on a shape; forward passes are without gradient."""

    part: str
    shape: Shape
    dtype: torch.dtype
    gamma_dtype: torch.dtype

    @property
    def x_bytes(self) -> int:
        """Of x, y, dy or dx."""
        return self.shape.bytes(name_of(self.dtype))

    @property
    def moved(self) -> int:
        """Bytes that must be read or written: x, y and rstd; backward: dy, x and dx."""
        if self.part == BACKWARD:
            return 3 * self.x_bytes
        return 2 * self.x_bytes + RSTD_BYTES * self.shape.rows

    @property
    def copied(self) -> int:
        """Bytes that a copy reads, and writes, to move as many; a few more to stay aligned."""
        return math.ceil(self.moved / 2 / _ALIGNED) * _ALIGNED

    @property
    def touched(self) -> int:
        """Bytes of one copy of all operands, results included."""
        return self.moved + self.shape.n * self.gamma_dtype.itemsize

    @property
    def held(self) -> int:
        """Bytes of memory for one copy: operands, what a way keeps for its gradient, results."""
        gamma = self.shape.n * self.gamma_dtype.itemsize
        if self.part != BACKWARD:
            return self.copied + gamma + self.result
        kept = WAYS_THAT_KEEP * (self.x_bytes + RSTD_BYTES * self.shape.rows)
        return self.copied + gamma + self.x_bytes + kept + self.result

    @property
    def result(self) -> int:
        """Bytes of what one call gives, a copy's included."""
        small = 4 * self.shape.n if self.part == BACKWARD else RSTD_BYTES * self.shape.rows
        return max(self.copied, self.x_bytes + small)

    def wanted(self, l2: int) -> int:
        """Copies that together are twice as large as the cache, or larger."""
        return math.ceil(2 * l2 / self.touched)

    def copies(self, l2: int, free: int) -> int:
        """As many of them as memory holds beside one result more in a graph and one outside; 0: not
        even one."""
        fitting = (free - SPARE - 2 * self.result) // self.held
        return max(0, min(self.wanted(l2), fitting))


@dataclass(frozen=True)
class Slot:
    """One copy of the operands: x and gamma want gradients; `source` is what a copy reads.

    x is the first part of source, so that they take no more memory than the longer one.
    """

    source: Tensor
    x: Tensor
    gamma: Tensor
    dy: Tensor  # empty for a forward pass


def fill(cell: Cell, count: int, place: torch.device) -> list[Slot]:
    """`count` copies of the same random operands, each in memory of its own."""
    generator = torch.Generator(place).manual_seed(0)
    rows, n = cell.shape.rows, cell.shape.n
    source = torch.zeros(cell.copied, dtype=torch.uint8, device=place)
    # Means other than 0: the terms that a wrong backward leaves out would be too small to show.
    _x(source, cell).normal_(0.5, 1.0, generator=generator)
    gamma = torch.empty(n, dtype=cell.gamma_dtype, device=place)
    gamma.uniform_(0.5, 1.5, generator=generator)
    dy = torch.empty((rows, n) if cell.part == BACKWARD else 0, dtype=cell.dtype, device=place)
    dy.normal_(0.5, 1.0, generator=generator)
    first = _slot(cell, source, gamma, dy)
    others = (_slot(cell, source.clone(), gamma.clone(), dy.clone()) for _ in range(count - 1))
    return [first, *others]


def _slot(cell: Cell, source: Tensor, gamma: Tensor, dy: Tensor) -> Slot:
    x = _x(source, cell).detach()
    return Slot(source, x.requires_grad_(), gamma.detach().requires_grad_(), dy)


def _x(source: Tensor, cell: Cell) -> Tensor:
    return source[: cell.x_bytes].view(cell.dtype).view(cell.shape.rows, cell.shape.n)
