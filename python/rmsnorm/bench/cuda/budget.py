"""How the seconds that a run may take are shared."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Budget:
    """Seconds that all cells share, and how many of them each way has taken to get ready."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._end = clock() + seconds
        self._ready = seconds / 5  # there are three ways that compile
        self._taken: dict[str, float] = defaultdict(float)

    @contextmanager
    def getting_ready(self, name: str) -> Iterator[None]:
        """Counts what is done inside."""
        start = self._clock()
        try:
            yield
        finally:
            self._taken[name] += self._clock() - start

    def used_up(self, name: str) -> str:
        """Why a way may not get ready for one more cell; "" where it may."""
        taken = self._taken[name]
        return f"left out: {taken:.0f} s of getting ready are used up" * (taken > self._ready)

    def repeats(self, cells_left: int, seconds: float) -> int:
        """For a cell, this one counted among those left, of which one repeat takes `seconds`."""
        share = (self._end - self._clock()) / cells_left
        return min(51, max(5, int(share / seconds)))
