"""Whether the results of a row depend on its batch, the threads and the instruction set."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import rmsnorm
from rmsnorm.bench.ways import EPSILON

THREADS = (1, 2, 3)
_BATCHES = (1, 2, 7, 64)  # and all rows


@dataclass(frozen=True)
class Bits:
    """The bytes of one result under many settings.

    Attributes:
        variants: the settings by what they gave; one entry where all gave the same bytes.
    """

    variants: dict[bytes, list[str]]

    @property
    def runs(self) -> int:
        return sum(len(settings) for settings in self.variants.values())

    @property
    def same(self) -> bool:
        return len(self.variants) == 1

    @property
    def digest(self) -> str:
        """SHA-256 of what the first setting gave."""
        return hashlib.sha256(next(iter(self.variants))).hexdigest()

    def figures(self) -> dict[str, int | str]:
        return {"runs": self.runs, "variants": len(self.variants), "sha256": self.digest}


def sweep(x: Tensor, dy: Tensor, gamma: Tensor, targets: Sequence[str]) -> dict[str, Bits]:
    """Run one row alone and in batches, with each number of threads, on each CPU target.

    Args:
        x, dy: [rows, n]; the row lies two thirds down, and inside the batches that hold it.
        targets: of rmsnorm.cpu_targets().

    Returns:
        By name: the bytes of the row's results, and of dgamma over all rows.
    """
    rows = len(x)
    row = rows * 2 // 3
    sizes = sorted({min(size, rows) for size in (*_BATCHES, rows)})
    variants: dict[str, dict[bytes, list[str]]] = defaultdict(lambda: defaultdict(list))
    threads_before = torch.get_num_threads()
    try:
        for target in targets:
            rmsnorm.use_cpu_target(target)
            for threads in THREADS:
                torch.set_num_threads(threads)
                for size in sizes:
                    start = min(max(row - size // 2, 0), rows - size)
                    batch = slice(start, start + size)
                    y, rstd = rmsnorm.npu_rms_norm(x[batch], gamma, EPSILON)
                    dx, dgamma = rmsnorm.npu_rms_norm_backward(dy[batch], x[batch], gamma, rstd)
                    setting = f"{target}, {threads} threads, batch {size}"
                    for name, result in (("y", y), ("rstd", rstd), ("dx", dx)):
                        variants[name][_bytes(result[row - start])].append(setting)
                    if size == rows:
                        variants["dgamma"][_bytes(dgamma)].append(setting)
    finally:
        torch.set_num_threads(threads_before)
        rmsnorm.use_cpu_target(None)
    return {name: Bits(dict(found)) for name, found in variants.items()}


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()
