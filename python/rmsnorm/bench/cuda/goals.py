"""What was set as a goal for a GPU, and whether the measured rows reach it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rmsnorm.bench.cuda.rotation import BACKWARD, CALL
from rmsnorm.bench.cuda.timing import CudaRow
from rmsnorm.bench.harness import readable
from rmsnorm.bench.measure import FORWARD
from rmsnorm.bench.ways import FUSED, OPERATOR, TORCH


def share(row: CudaRow, name: str) -> float:
    """The bandwidth of a way as a part of the faster copy's."""
    return row.copy / row.seconds[name]


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


@dataclass(frozen=True)
class Goal:
    """A limit for every row that it is about.

    Attributes:
        about: whether it is about this row.
        value: of a row in which `way`, the second argument, has a time.
        limit: None: nothing was set, the value is shown.
        at_least: the limit is the least that is good, or the most.
    """

    text: str
    about: Callable[[CudaRow], bool]
    value: Callable[[CudaRow, str], float] = share
    limit: float | None = None
    at_least: bool = True
    shown: Callable[[float], str] = _percent
    way: str = FUSED


@dataclass(frozen=True)
class Verdict:
    """How the row that is furthest from a goal stands; met is None where there is no answer."""

    goal: str
    limit: str
    measured: str
    where: str
    rows: str
    met: bool | None


_COPY = "of the copy's bandwidth"


def _backward(dtype: str, limit: float, way: str, how: str) -> Goal:
    def about(row: CudaRow) -> bool:
        return row.part == BACKWARD and row.dtype == dtype and 2048 <= row.shape.n <= 8192

    text = f"backward with dgamma, {dtype}, n 2K to 8K, {how}: {_COPY}"
    return Goal(text, about, share, limit, way=way)


def _forward(row: CudaRow) -> bool:
    return row.part == FORWARD and row.dtype == "bfloat16"


GOALS = (
    Goal(
        f"forward, bfloat16, n 1K to 64K, x of 64 MB and more: {_COPY}",
        lambda row: (
            _forward(row)
            and 1024 <= row.shape.n <= 65536
            and row.shape.bytes(row.dtype) >= 64_000_000
        ),
        limit=0.93,
    ),
    Goal(
        f"forward, bfloat16, n 128: {_COPY}",
        lambda row: _forward(row) and row.shape.n == 128,
        limit=0.85,
    ),
    Goal(f"forward, bfloat16, n 256: {_COPY}", lambda row: _forward(row) and row.shape.n == 256),
    Goal(
        f"forward, bfloat16, n 128K and 256K: {_COPY}",
        lambda row: _forward(row) and row.shape.n in (131072, 262144),
        limit=0.92,
    ),
    _backward("bfloat16", 0.85, FUSED, "by autograd"),
    _backward("bfloat16", 0.85, OPERATOR, "the operator"),
    _backward("float32", 0.90, FUSED, "by autograd"),
    _backward("float32", 0.90, OPERATOR, "the operator"),
    Goal(
        "a call in a graph, [1, 4096]",
        lambda row: row.part == FORWARD and (row.shape.rows, row.shape.n) == (1, 4096),
        value=lambda row, way: row.seconds[way],
        limit=3e-6,
        at_least=False,
        shown=readable,
    ),
    Goal(
        "a call from Python, no gradient: in times of F.rms_norm's",
        lambda row: row.part == CALL,
        value=lambda row, way: row.seconds[way] / row.seconds[TORCH],
        limit=1.0,
        at_least=False,
        shown=lambda value: f"{value:.2f}",
    ),
)


def judge(rows: Sequence[CudaRow], goals: Sequence[Goal] = GOALS) -> list[Verdict]:
    """Every goal's verdict. A row in which our way has no time misses the goal; one that didn't fit
    the GPU says nothing."""
    return [_verdict(goal, [row for row in rows if goal.about(row)]) for goal in goals]


def _verdict(goal: Goal, rows: Sequence[CudaRow]) -> Verdict:
    sign = ">=" if goal.at_least else "<="
    limit = "" if goal.limit is None else f"{sign} {goal.shown(goal.limit)}"
    fitting = [row for row in rows if not row.left_out]
    timed = [row for row in fitting if goal.way in row.seconds]
    count = f"{len(timed)} of {len(rows)}"
    if not timed:
        return Verdict(goal.text, limit, "", "", count, False if fitting else None)
    values = [goal.value(row, goal.way) for row in timed]
    value = (min if goal.at_least else max)(values)
    worst = timed[values.index(value)]
    met = None
    if goal.limit is not None:
        good = value >= goal.limit if goal.at_least else value <= goal.limit
        met = good and len(timed) == len(fitting)
    where = f"{worst.shape} {worst.dtype}, gamma {worst.gamma}"
    return Verdict(goal.text, limit, goal.shown(value), where, count, met)
