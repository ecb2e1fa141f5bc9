"""The GPU's goals, each met and missed, and the tables."""

import pytest
import torch

from bench_tables import shown
from rmsnorm.bench.cuda import show
from rmsnorm.bench.cuda.goals import Goal, judge
from rmsnorm.bench.cuda.rotation import BACKWARD, CALL, Cell
from rmsnorm.bench.cuda.timing import CudaRow
from rmsnorm.bench.measure import FORWARD
from rmsnorm.bench.shapes import Shape
from rmsnorm.bench.ways import COPY, FUSED, OPERATOR, TORCH

SMALL = Shape(16, 64)


def row(shape=SMALL, part=FORWARD, dtype="bfloat16", gamma="bfloat16", **seconds):
    times = {
        {"copy": COPY, "ours": FUSED, "torch": TORCH, "op": OPERATOR}[way]: taken
        for way, taken in seconds.items()
    }
    moved = Cell(part, shape, torch.bfloat16, torch.bfloat16).moved
    return CudaRow(part, shape, dtype, times, gamma=gamma, moved=moved)


def verdict(rows, words):
    (found,) = [each for each in judge(rows) if words in each.goal]
    return found


def test_a_goal_is_met_by_its_worst_row_only():
    big, other = Shape(32768, 1024), Shape(32768, 8192)
    words = "n 1K to 64K"
    near = [row(big, copy=0.95, ours=1.0), row(other, copy=0.93, ours=1.0)]
    assert verdict(near, words).met is True and verdict(near, words).measured == "93.0 %"
    far = [*near, row(big, gamma="float32", copy=0.92, ours=1.0)]
    assert verdict(far, words).met is False and "gamma float32" in verdict(far, words).where
    assert verdict(far, words).rows == "3 of 3"


@pytest.mark.parametrize(
    ("words", "shape", "part", "dtype", "good", "bad"),
    [
        ("n 128:", Shape(648720, 128), FORWARD, "bfloat16", 0.85, 0.84),
        ("n 128K", Shape(16384, 131072), FORWARD, "bfloat16", 0.92, 0.91),
        ("n 128K", Shape(8192, 262144), FORWARD, "bfloat16", 0.92, 0.91),
        ("bfloat16, n 2K to 8K, by autograd", Shape(4096, 2048), BACKWARD, "bfloat16", 0.85, 0.84),
        ("float32, n 2K to 8K, by autograd", Shape(4096, 8192), BACKWARD, "float32", 0.9, 0.89),
    ],
)
def test_shares_of_the_copys_bandwidth_are_met_and_missed(words, shape, part, dtype, good, bad):
    for share, met in ((good, True), (bad, False)):
        found = verdict([row(shape, part, dtype, copy=share, ours=1.0)], words)
        assert found.met is met and found.rows == "1 of 1"


def test_the_operators_own_backward_call_is_judged_by_its_own_time():
    found = [row(Shape(4096, 4096), BACKWARD, copy=0.9, ours=2.0, op=1.0)]
    assert verdict(found, "bfloat16, n 2K to 8K, the operator").met is True
    assert verdict(found, "bfloat16, n 2K to 8K, by autograd").met is False


def test_times_of_calls_are_met_and_missed():
    for seconds, met in ((3e-6, True), (3.1e-6, False)):
        one = row(Shape(1, 4096), copy=1e-6, ours=seconds)
        assert verdict([one], "in a graph").met is met
    for seconds, met in ((0.9, True), (1.1, False)):
        one = row(Shape(1, 4096), CALL, ours=seconds, torch=1.0)
        assert verdict([one], "from Python").met is met


def test_what_was_not_measured_gives_no_answer_and_what_is_wrong_misses_the_goal():
    words, shape = "n 128:", Shape(648720, 128)
    assert all(each.met is None for each in judge([]))
    left_out = row(shape)
    left_out.left_out = "too large"
    assert verdict([left_out], words).met is None
    wrong = row(shape, copy=1.0)
    assert verdict([wrong], words).met is False
    good = row(shape, copy=1.0, ours=1.0)
    assert verdict([good, left_out], words).met is True
    assert verdict([good, left_out], words).rows == "1 of 2"
    assert verdict([good, wrong], words).met is False
    small = row(Shape(8, 4096), copy=1.0, ours=9.0)  # is in no goal about large shapes
    assert verdict([small], "n 1K to 64K").rows == "0 of 0"


def test_a_value_without_a_limit_is_shown_and_not_judged():
    found = verdict([row(Shape(32768, 256), copy=0.5, ours=1.0)], "n 256")
    assert found.measured == "50.0 %" and found.limit == "" and found.met is None


def test_the_table_of_goals_says_which_are_met_and_missed():
    limits = [Goal(f"goal {n}", lambda row: True, limit=n / 10) for n in (1, 9)]
    lines = shown(show.goals(judge([row(copy=0.5, ours=1.0)], limits))).splitlines()
    assert "met" in lines[1] and "MISSED" in lines[2] and "not measured" not in lines[1]
    assert "not measured" in shown(show.goals(judge([], limits)))


def test_the_table_shows_percentages_of_the_copy_and_small_calls_in_microseconds():
    large = row(Shape(4096, 64), copy=1e-3, ours=2e-3, torch=4e-3)
    line = next(line for line in shown(show.times([large])).splitlines() if "4096x64" in line)
    assert line.split()[1:] == ["1.0", "ms", "1", "50", "–", "25", "–", "–", "–"]
    assert "2.5µs" in shown(show.times([row(copy=1e-6, ours=2.5e-6)]))
    assert "7.5µs" in shown(show.times([row(part=CALL, ours=7.5e-6, torch=9e-6)]))
