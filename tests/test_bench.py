"""The harness: turns, the check of peers before they are timed, what is written and shown."""

import json
import time

import matplotlib.image
import pytest
import torch
from typer.testing import CliRunner

from bench_tables import shown
from rmsnorm.bench import harness, kernels, memory, peers, shapes, tables
from rmsnorm.bench.measure import BOTH, FORWARD, expected, measure, pytorch_ways
from rmsnorm.bench.shapes import Shape
from rmsnorm.bench.ways import (
    COPY,
    FUSED,
    INTO,
    SMALL,
    TORCH,
    WAYS,
    Case,
    passes_of,
    small_operators,
)
from rmsnorm.cli import app

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def rows_of(case, ways, repeats=1):
    return {row.part: row for row in measure(case, ways, expected(case), repeats)}


def test_candidates_warm_up_and_then_take_turns_in_a_changing_order_each_after_itself():
    order = []
    candidates = {name: (lambda name=name: order.append(name)) for name in "abc"}
    harness.interleaved(candidates, repeats=9)
    assert order[:3] == ["a", "b", "c"]
    rounds = ["".join(order[i : i + 6]) for i in range(3, len(order), 6)]
    assert len(rounds) == 9 and len(set(rounds)) > 1
    for each in rounds:
        assert each[::2] == each[1::2] and sorted(each[::2]) == ["a", "b", "c"]


def test_the_median_and_not_the_mean_is_reported():
    pauses = iter([0.0, 0.0, 0.001, 0.0, 0.2, 0.001])  # warm-up; each after itself, if short
    seconds = harness.interleaved({"pause": lambda: time.sleep(next(pauses))}, repeats=3)
    assert seconds["pause"] < 0.1


def test_the_shapes_are_those_of_models_and_each_has_a_source():
    found = shapes.read()
    assert {str(shape) for shape in found} >= {
        *("1x4096", "8x4096", "512x4096", "4096x4096", "1024x12288", "16384x5120"),
        *("65536x128", "65536x128s384"),
    }
    assert len(set(found)) == len(found)
    assert all(shape.row_stride == 0 or shape.row_stride > shape.n for shape in found)
    assert all(Shape.parse(str(shape)) == shape for shape in found)
    for entry in json.loads(shapes.DATA.read_text()):
        assert entry["what"] and entry["source"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [Shape(16, 256), Shape(16, 64, 192)], ids=str)
def test_right_ways_are_timed_and_a_wrong_one_is_marked(shape, dtype):
    case = Case.of(shape, dtype)
    mean_subtracted = passes_of(lambda x, g: small_operators(x - x.mean(-1, keepdim=True), g), case)
    rows = rows_of(case, {**pytorch_ways(case), "wrong": mean_subtracted})
    assert rows[FORWARD].seconds.keys() == {COPY, INTO, *WAYS}
    assert rows[BOTH].seconds.keys() == {COPY, *WAYS}
    for row in rows.values():
        assert row.missing == {"wrong": "wrong"}
        assert row.errors["wrong"] > 4 >= max(row.errors[name] for name in WAYS)


def test_a_way_whose_gradient_alone_is_wrong_is_timed_forward_only():
    case = Case.of(Shape(16, 64), torch.float32)
    no_dx = passes_of(lambda x, gamma: small_operators(x.detach(), gamma) + 0 * x, case)
    rows = rows_of(case, {"way": no_dx})
    assert rows[FORWARD].seconds.keys() == {COPY, INTO, "way"}
    assert rows[BOTH].seconds.keys() == {COPY} and rows[BOTH].missing == {"way": "wrong"}


def test_a_backward_pass_without_its_mean_is_wrong_at_the_width_of_a_model_too():
    def no_mean(x, gamma):
        wide = x.float()
        rstd = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6).detach()
        return (wide * rstd).type_as(x) * gamma

    case = Case.of(Shape(4, 4096), torch.bfloat16)
    rows = rows_of(case, {"way": passes_of(no_mean, case)})
    assert rows[FORWARD].missing == {} and rows[BOTH].missing == {"way": "wrong"}


def test_a_way_that_fails_says_why_and_our_own_may_not():
    def fails(x, gamma):
        raise RuntimeError("no compiler")

    case = Case.of(Shape(4, 64), torch.float32)
    rows = rows_of(case, {"way": passes_of(fails, case)})
    assert rows[FORWARD].missing == {"way": "failed: no compiler"}
    with pytest.raises(RuntimeError, match="no compiler"):
        rows_of(case, {FUSED: passes_of(fails, case)})


def test_a_way_that_is_not_there_says_why(monkeypatch):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(peers.importlib, "import_module", absent)
    case = Case.of(Shape(4, 64), torch.float32)
    for make in peers.PEERS.values():
        with pytest.raises(LookupError, match="not installed"):
            make(case, 1)
    rows = rows_of(case, {"peer": "not installed"})
    assert rows[FORWARD].missing == {"peer": "not installed"}


def test_the_small_operators_keep_more_for_backward_than_the_fused_one():
    case = Case.of(Shape(64, 256), torch.bfloat16)
    kept = {name: memory.kept(way, case) for name, way in WAYS.items()}
    assert kept[FUSED] == 4 * 64  # rstd
    assert kept[SMALL] > case.x.nbytes
    # y, dx and dgamma at least; the small operators' float32 copies of x beyond
    assert memory.peak(WAYS[FUSED], case) >= 2 * case.x.nbytes
    assert memory.peak(WAYS[SMALL], case) > memory.peak(WAYS[FUSED], case)


def test_kernels_are_shown_in_multiples_of_the_best_stream_and_wrong_ones_are_marked(tmp_path):
    def run(part, way, threads, nanoseconds, **more):
        name = f"{part}/{way}/float32/8x64/{threads}/real_time"
        times = [9e9, nanoseconds, 1.0]  # the median is nanoseconds
        return [
            {"run_name": name, "run_type": "iteration", "real_time": each, **more} for each in times
        ]

    runs = [
        *run("forward", "memcpy", 1, 100.0),
        *run("forward", "copy past cache", 1, 200.0),
        *run("forward", "memcpy", 2, 300.0),  # slower than one thread
        *run("forward", "rmsnorm", 1, 150.0),
        *run("forward", "rmsnorm", 2, 125.0),
        *run("forward", "oneDNN", 1, 300.0, label="y is off by 1e-02 of its norm"),
        *run("forward", "oneDNN", 2, 0.0, error_occurred=True, error_message="refused"),
        {"run_name": "ForwardOfPowers/exponent:0/real_time", "run_type": "iteration"},
    ]
    path = tmp_path / "kernels.json"
    path.write_text(json.dumps({"context": {}, "benchmarks": runs}))
    one, two = kernels.read(path)
    assert (one.threads, two.threads) == (1, 2)
    lines = [line.split() for line in shown(kernels.table([one, two])).splitlines()]
    assert ["8x64", "float32", "0.10", "µs", "1.50", "3.00", "wrong", "0.50"] in lines
    assert ["8x64", "float32", "0.10", "µs", "1.25", "refused"] in lines


def test_the_table_shows_multiples_of_the_copy_and_small_calls_in_microseconds():
    case = Case.of(Shape(8, 64), torch.float32)
    row = rows_of(case, {TORCH: "wrong"})[FORWARD]
    row.seconds = {COPY: 1e-3, FUSED: 2.5e-3}
    assert "2.5" in shown(tables.calls([row])) and "wrong" in shown(tables.calls([row]))
    row.seconds = {COPY: 1e-6, FUSED: 2.5e-6}
    assert "2.5µs" in shown(tables.calls([row]))


def test_the_command_refuses_what_is_no_shape_or_dtype():
    for option, value in (("--shape", "16384"), ("--dtype", "float64"), ("--kernels", "absent")):
        result = CliRunner().invoke(app, ["bench", option, value])
        assert result.exit_code == 2 and value in result.output, result.output


def test_the_command_writes_figures_and_a_plot(tmp_path):
    command = ["bench", "--shape", "4x64", "--dtype", "float32", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "4x64" in result.output and "forward+backward" in result.output
    figures = json.loads((tmp_path / "bench.json").read_text())
    assert figures.keys() == {"machine", "kernels", "kernels_context", "calls", "memory"}
    assert {call["part"] for call in figures["calls"]} == {FORWARD, BOTH}
    assert figures["machine"]["versions"]["torch"]
    assert matplotlib.image.imread(tmp_path / "bench.png").std() > 0.01
