"""The harness that times candidates in turn, and the check of peers before they are timed."""

import time

import pytest
import torch

from rmsnorm import bench


def test_candidates_run_once_to_warm_up_and_then_take_turns():
    order = []
    candidates = {name: (lambda name=name: order.append(name)) for name in "abc"}
    bench.interleaved(candidates, repeats=3)
    assert "".join(order) == "abc" * 4


def test_the_median_and_not_the_mean_is_reported():
    pauses = iter([0.0, 0.001, 0.2, 0.001])  # warm-up, then one outlier
    seconds = bench.interleaved({"pause": lambda: time.sleep(next(pauses))}, repeats=3)
    assert seconds["pause"] < 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_right_ways_are_near_float64_and_a_wrong_one_is_found(dtype, monkeypatch):
    monkeypatch.setitem(
        bench.WAYS, "mean subtracted", lambda x, g: bench.small_operators(x - x.mean(-1, True), g)
    )
    found = bench.errors((16, 256), dtype)
    wrong = found.pop("mean subtracted")
    assert all(error <= 4 for error in found.values()), found
    assert wrong > 4


def test_a_wrong_way_is_not_timed():
    seconds = bench.measure((4, 64), torch.float32, 1, frozenset({bench.TORCH}))
    for part in (bench.FORWARD, bench.BOTH):
        assert bench.TORCH not in seconds[part]
        assert {bench.COPY, bench.FUSED, bench.SMALL} <= seconds[part].keys()
