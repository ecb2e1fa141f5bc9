"""The GPU's benchmark on a device made of the CPU: rotation, bytes, checks, goals, what is kept."""

import contextlib
import json
import time
import weakref
from functools import partial

import matplotlib.image
import pytest
import torch
from typer.testing import CliRunner

import rmsnorm
from bench_tables import shown
from rmsnorm.bench import cuda
from rmsnorm.bench.cuda import goals, peers, rotation, show, timing
from rmsnorm.bench.cuda.budget import Budget
from rmsnorm.bench.cuda.rotation import BACKWARD, CALL, SPARE, Cell, fill
from rmsnorm.bench.cuda.timing import COPIES, COPY_KERNEL, LONG
from rmsnorm.bench.measure import FORWARD
from rmsnorm.bench.shapes import Shape
from rmsnorm.bench.ways import COMPILED, COPY, FUSED, OPERATOR, TORCH, WAYS, small_operators
from rmsnorm.cli import app

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
SMALL = Shape(16, 64)
OURS_AND_TORCH = {name: (lambda name=name: WAYS[name]) for name in (FUSED, TORCH)}


@pytest.fixture(autouse=True)
def _one_thread():  # two that meet at barriers wait for other programs' time slices
    torch.set_num_threads(1)


class Cpu:
    """Runs what a graph would replay, and times it by the clock on the wall."""

    place = torch.device("cpu")
    l2 = 1 << 14

    def __init__(self, free=8 << 30):
        self._free = free

    def here(self):
        return contextlib.nullcontext()

    def clear(self):
        pass

    def free(self):
        return self._free

    def wait(self):
        pass

    def record(self, run):
        return run

    def seconds(self, run):
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    def about(self):
        return {"gpu": "a CPU", "l2": self.l2}


def cell(part=FORWARD, shape=SMALL, dtype=F32, gamma=None):
    return Cell(part, shape, dtype, gamma or dtype)


def measured(part, ways, shape=SMALL, dtype=F32, device=None, budget=None):
    known = {**OURS_AND_TORCH, **{name: (lambda way=way: way) for name, way in ways.items()}}
    return timing.measure(
        cell(part, shape, dtype), device or Cpu(), budget or Budget(0), 1, peers=known
    )


def test_the_shapes_are_those_of_the_sweep_of_decoding_and_of_training_and_each_has_a_source():
    of = {part: {c.shape for c in cuda.cells_of() if c.part == part} for part in (BACKWARD, CALL)}
    forward = {c.shape for c in cuda.cells_of() if c.part == FORWARD}
    training = {Shape(m, n) for m in (4096, 8192, 16384) for n in (2048, 4096, 5120, 8192)}
    decoding = {Shape(m, 4096) for m in (1, 8, 128)}
    sweep = {Shape(32768, 2**k) for k in range(8, 17)}
    assert of == {BACKWARD: training, CALL: decoding}
    longest = {Shape(16384, 131072), Shape(8192, 262144)}
    assert forward == training | decoding | sweep | longest | {Shape(648720, 128)}
    for entry in json.loads(cuda.DATA.read_text()):
        assert entry["what"] and entry["source"]


def test_the_dtypes_are_the_three_and_bfloat16_comes_with_gamma_of_both():
    pairs = {(c.dtype, c.gamma_dtype) for c in cuda.cells_of()}
    assert pairs == {(BF16, BF16), (BF16, F32), (F16, F16), (F32, F32)}
    only = cuda.cells_of([SMALL], ["bfloat16"])
    assert {(c.dtype, c.gamma_dtype) for c in only} == {(BF16, BF16), (BF16, F32)}
    assert {c.part for c in only} == {FORWARD, BACKWARD, CALL}
    assert {c.shape for c in only} == {SMALL}


@pytest.mark.parametrize(
    ("part", "dtype", "moved"),
    [
        (FORWARD, BF16, 2 * 5 * 64 * 2 + 5 * 4),  # x, y; rstd
        (FORWARD, F32, 2 * 5 * 64 * 4 + 5 * 4),
        (BACKWARD, F16, 3 * 5 * 64 * 2),  # dy, x, dx
        (BACKWARD, F32, 3 * 5 * 64 * 4),
    ],
)
def test_a_pass_moves_its_operands_and_results_once_and_a_copy_moves_as_many_bytes(
    part, dtype, moved
):
    one = cell(part, Shape(5, 64), dtype)
    assert one.moved == moved
    (slot,) = fill(one, 1, torch.device("cpu"))
    for result in (slot.source.clone(), slot.source.view(torch.int32).bitwise_not()):
        read_and_written = 2 * result.nbytes
        assert moved <= read_and_written < moved + 32


def test_copies_of_the_operands_exceed_the_cache_twice_and_one_fewer_would_not():
    one = cell(shape=Shape(1, 4096), dtype=BF16)
    touched = one.touched
    assert touched == 2 * 8192 + 4 + 8192  # x, y; rstd; gamma
    count = one.copies(l2=50 << 20, free=80 << 30)
    assert count * touched >= 2 * (50 << 20) > (count - 1) * touched
    assert cell(shape=Shape(32768, 65536)).copies(l2=50 << 20, free=80 << 30) == 1


def test_every_copy_has_the_same_values_in_memory_of_its_own():
    slots = fill(cell(BACKWARD, dtype=BF16, gamma=F32), 3, torch.device("cpu"))
    for name in ("source", "x", "gamma", "dy"):
        tensors = [getattr(slot, name).detach() for slot in slots]
        assert len({tensor.data_ptr() for tensor in tensors}) == 3
        assert all(torch.equal(tensor, tensors[0]) for tensor in tensors)
    assert slots[0].x.shape == slots[0].dy.shape == (16, 64) and slots[0].gamma.dtype == F32
    assert slots[0].x.detach().std() > 0.5 and slots[0].x.data_ptr() == slots[0].source.data_ptr()
    assert all(slot.x.requires_grad and slot.gamma.requires_grad for slot in slots)


def test_what_does_not_fit_gets_fewer_copies_at_least_one_or_is_left_out_by_name():
    one, l2 = cell(shape=Shape(64, 64)), 1 << 22
    wanted, beside = one.wanted(l2), SPARE + 2 * one.result
    assert wanted > 3
    assert one.copies(l2, beside + 1000 * wanted * one.held) == wanted
    assert one.copies(l2, beside + 3 * one.held) == 3
    assert one.copies(l2, beside + one.held) == 1
    assert one.copies(l2, beside + one.held - 1) == 0
    assert one.copies(l2, 0) == 0
    none = measured(FORWARD, {}, device=Cpu(free=SPARE))
    assert none.seconds == {} and none.copies == 0 and none.left_out
    assert "16x64" in shown(show.missing([none])) and "free" in shown(show.missing([none]))
    few = measured(FORWARD, {}, device=Cpu(free=SPARE + 2 * cell().result + 1 * cell().held))
    assert few.copies == 1 < few.wanted and "16x64*" in shown(show.times([few]))


def test_the_memory_of_every_copy_is_counted():
    one = cell(BACKWARD, Shape(32, 128), BF16, F32)
    (slot,) = fill(one, 1, torch.device("cpu"))
    results = peers.operator_of(slot)()
    operands = slot.source.nbytes + slot.gamma.nbytes + slot.dy.nbytes
    assert one.result >= sum(result.nbytes for result in results)
    kept = rotation.WAYS_THAT_KEEP * (slot.x.nbytes + 32 * 4)  # y, rstd
    assert one.held >= operands + kept + sum(result.nbytes for result in results)


def test_results_take_memory_in_turn_too():
    class Something:
        pass

    alive = weakref.WeakSet()
    most = []

    def make(slot):
        def call():
            most.append(len(alive))
            result = Something()
            alive.add(result)
            return result

        return call

    run = timing._in_turn_of(make, [None] * 4, cycles=3)
    run()
    assert most == [0, 1, 2, 3] + [4] * 8
    assert len(alive) == 0


def test_a_short_call_is_timed_many_times_at_once_and_a_long_one_is_not():
    class Clock(Cpu):
        def record(self, run):
            return lambda: None

        def seconds(self, run):
            return self.once

    device = Clock()
    device.once = 1e-5
    short = measured(FORWARD, {}, device=device)
    assert short.calls == short.copies * 200 and short.calls / short.copies * 1e-5 >= LONG
    assert short.seconds[FUSED] == pytest.approx(1e-5 / short.calls)
    device.once = 0.1
    assert measured(FORWARD, {}, device=device).calls == short.copies


@pytest.mark.parametrize("part", [FORWARD, BACKWARD])
@pytest.mark.parametrize("dtypes", [(BF16, BF16), (BF16, F32), (F16, F16), (F32, F32)], ids=str)
def test_right_ways_are_timed_beside_two_copies(part, dtypes):
    known = {**OURS_AND_TORCH, "formula": lambda: peers.formula}
    found = timing.measure(Cell(part, SMALL, *dtypes), Cpu(), Budget(0), 1, peers=known)
    ways = {FUSED, TORCH, "formula", *([OPERATOR] if part == BACKWARD else [])}
    assert found.seconds.keys() == {*COPIES, *ways} and found.missing == {}
    assert all(seconds > 0 for seconds in found.seconds.values())
    assert found.errors.keys() == ways
    assert found.copy == min(found.seconds[COPY], found.seconds[COPY_KERNEL])


def test_a_wrong_peer_is_not_timed():
    def mean_subtracted(x, gamma):
        return small_operators(x - x.mean(-1, keepdim=True), gamma)

    def no_dx(x, gamma):
        return small_operators(x.detach(), gamma) + 0 * x

    ways = {"mean": mean_subtracted, "no dx": no_dx}
    forward, backward = measured(FORWARD, ways), measured(BACKWARD, ways)
    assert forward.missing == {"mean": "wrong"} and "no dx" in forward.seconds
    assert backward.missing == {"mean": "wrong", "no dx": "wrong"}
    assert backward.errors["no dx"] > 4 and not {"mean", "no dx"} & backward.seconds.keys()
    assert "wrong" in shown(show.missing([backward]))


def test_the_check_reads_a_part_of_the_rows_but_dgamma_of_all(monkeypatch):
    one = cell(BACKWARD, Shape(61, 64))
    (slot,) = fill(one, 1, torch.device("cpu"))
    _, whole_dx, whole_dgamma = timing.expected(one, slot)
    whole_y, *_ = timing.expected(cell(FORWARD, Shape(61, 64)), slot)
    monkeypatch.setattr(timing, "_CHECKED", 64 * 10)
    _, dx, dgamma = timing.expected(one, slot)
    y, *_ = timing.expected(cell(FORWARD, Shape(61, 64)), slot)
    assert torch.equal(dx, whole_dx[::7]) and torch.equal(y, whole_y[::7])
    torch.testing.assert_close(dgamma, whole_dgamma)

    def some_rows(x, gamma):  # right but for the gradient of gamma of rows that aren't compared
        y = small_operators(x, gamma)
        compared = torch.arange(x.shape[0])[:, None] % 7 == 0
        return torch.where(compared, y, small_operators(x, gamma.detach()))

    assert measured(BACKWARD, {"some": some_rows}, Shape(61, 64)).missing == {"some": "wrong"}


def test_a_peer_that_fails_is_named_with_its_reason_and_our_own_may_not_fail():
    def fails(x, gamma):
        raise RuntimeError("no compiler\nand much more")

    def cannot_be_made():
        raise AttributeError("no such function")

    known = {**OURS_AND_TORCH, "peer": lambda: fails, "other": cannot_be_made}
    found = timing.measure(cell(), Cpu(), Budget(0), 1, peers=known)
    assert found.missing["peer"] == "failed: no compiler"
    assert found.missing["other"] == "failed: no such function"
    assert {FUSED, TORCH} <= found.seconds.keys()
    with pytest.raises(RuntimeError, match="no compiler"):
        measured(FORWARD, {FUSED: fails})


def test_a_peer_that_cannot_be_recorded_is_named_too_and_our_own_may_not_fail():
    class Refuses(Cpu):
        def __init__(self, recording):
            super().__init__()
            self.left = recording

        def record(self, run):
            self.left -= 1
            if self.left == 0:
                raise RuntimeError("not permitted when stream is capturing")
            return run

    # The copy alone, both copies, ours, F.rms_norm.
    found = measured(FORWARD, {}, device=Refuses(5))
    assert "not permitted" in found.missing[TORCH]
    assert found.seconds.keys() == {*COPIES, FUSED}
    with pytest.raises(RuntimeError, match="not permitted"):
        measured(FORWARD, {}, device=Refuses(4))


def test_peers_that_are_not_there_or_lack_something_say_so(monkeypatch):
    def absent(name):
        raise ModuleNotFoundError("no", name=missing or name.partition(".")[0])

    monkeypatch.setattr(peers.importlib, "import_module", absent)
    missing = None
    for make in (peers.liger, peers.quack):
        with pytest.raises(LookupError, match="not installed"):
            make()
    missing = "cutlass"
    with pytest.raises(ModuleNotFoundError):
        peers.quack()


def test_peers_are_called_as_they_are_made(monkeypatch):
    class Liger:
        class LigerRMSNormFunction:
            @staticmethod
            def apply(x, weight, eps, offset, casting_mode, in_place):
                assert (offset, casting_mode, in_place) == (0.0, "llama", False)
                return rmsnorm.rms_norm(x, weight, eps)

    class Quack:
        @staticmethod
        def rmsnorm(x, weight=None, bias=None, residual=None, eps=1e-6):
            return rmsnorm.rms_norm(x, weight, eps)

    modules = {"liger_kernel.ops.rms_norm": Liger, "quack.rmsnorm": Quack}
    monkeypatch.setattr(peers.importlib, "import_module", modules.get)
    found = measured(BACKWARD, {"Liger": peers.liger(), "Quack": peers.quack()})
    assert {"Liger", "Quack"} <= found.seconds.keys()


def test_a_short_budget_lowers_repeats_and_stops_ways_that_take_long_to_get_ready():
    now = [0.0]
    budget = Budget(100, clock=lambda: now[0])
    assert budget.repeats(cells_left=10, seconds=0.5) == 20
    assert budget.repeats(cells_left=10, seconds=1e-3) == 51
    now[0] = 90.0
    assert budget.repeats(cells_left=1, seconds=1.0) == 10
    now[0] = 500.0
    assert budget.repeats(cells_left=1, seconds=1.0) == 5
    with budget.getting_ready("slow"):
        now[0] += 19
    assert not budget.used_up("slow")
    with pytest.raises(ValueError), budget.getting_ready("slow"):
        now[0] += 2
        raise ValueError
    assert "21 s" in budget.used_up("slow") and not budget.used_up("other")
    with budget.getting_ready(FUSED):
        now[0] += 100
    found = measured(FORWARD, {"slow": peers.formula}, budget=budget)
    assert "left out" in found.missing["slow"] and FUSED in found.seconds


def test_cells_that_are_left_leave_fewer_repeats_to_each():
    class Instant(Cpu):
        def record(self, run):
            return lambda: None

        def seconds(self, run):
            return 1e-2

    def repeats(cells_left):
        budget = Budget(3, clock=lambda: 0.0)
        return timing.measure(cell(), Instant(), budget, cells_left, peers=OURS_AND_TORCH).repeats

    assert repeats(cells_left=1) == 37  # each takes 4 ways, 2 times, 10 ms
    assert repeats(cells_left=3) == 12


def test_calls_from_python_are_timed_by_the_clock_with_what_they_queued(monkeypatch):
    waited = []

    class Waits(Cpu):
        def wait(self):
            waited.append(0)
            time.sleep(0.02)

    monkeypatch.setattr(timing, "CALLS", 20)
    found = timing.measure_calls(cell(CALL, Shape(1, 64)), Waits())
    assert found.seconds.keys() == {FUSED, TORCH} and len(waited) > 2 * found.repeats
    assert all(seconds > 0.001 for seconds in found.seconds.values())


def test_a_run_writes_figures_and_a_plot_and_prints_all_tables(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(timing, "CALLS", 10)
    cuda.run(Cpu(), tmp_path, [SMALL], ["float32"], seconds=20)
    printed = capsys.readouterr().out
    for words in (
        "forward, float32",
        "backward, float32",
        "call from Python",
        "not measured",
        "16x64",
    ):
        assert words in printed
    figures = json.loads((tmp_path / "cuda.json").read_text())
    about = figures["machine"]
    assert about["gpu"] == "a CPU" and about["date"] and about["l2"] and about["command"]
    found = {each["part"]: each for each in figures["rows"]}
    assert found.keys() == {FORWARD, BACKWARD, CALL}
    assert found[FORWARD]["shape"]["n"] == 64 and found[FORWARD]["gamma"] == "float32"
    for part in (FORWARD, BACKWARD):
        assert {*COPIES, FUSED, TORCH} <= found[part]["seconds"].keys()
        assert found[part].keys() >= {"moved", "copies", "wanted", "calls", "repeats", "errors"}
        known = found[part]["seconds"].keys() | found[part]["missing"].keys()
        assert {COMPILED, "Liger", "Quack"} <= known
    assert len(figures["goals"]) == len(goals.GOALS)
    assert matplotlib.image.imread(tmp_path / "cuda.png").std() > 0.01


def test_an_error_leaves_what_was_measured_before_it(tmp_path, monkeypatch):
    def fails(*_):
        raise RuntimeError("the GPU is gone")

    monkeypatch.setattr(cuda, "measure_calls", fails)
    monkeypatch.setattr(cuda, "measure", partial(timing.measure, peers=OURS_AND_TORCH))
    with pytest.raises(RuntimeError, match="gone"):
        cuda.run(Cpu(), tmp_path, [SMALL], ["float16"], seconds=1)
    figures = json.loads((tmp_path / "cuda.json").read_text())
    assert [each["part"] for each in figures["rows"]] == [FORWARD, BACKWARD]


def test_without_a_gpu_the_command_ends_with_one_line_and_code_2(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = CliRunner().invoke(app, ["bench", "--cuda", "--out", str(tmp_path)])
    assert result.exit_code == 2
    (line,) = result.output.splitlines()
    assert line.startswith("no GPU: ")
    assert list(tmp_path.iterdir()) == []


def test_the_command_refuses_what_only_the_cpu_measures():
    result = CliRunner().invoke(app, ["bench", "--cuda", "--shape", "8x64s128"])
    assert result.exit_code == 2 and "stride" in result.output


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_every_way_is_timed_in_a_graph(tmp_path):
    cuda.run(cuda.gpu(), tmp_path, [Shape(512, 4096)], ["bfloat16"], seconds=20)
    for each in json.loads((tmp_path / "cuda.json").read_text())["rows"]:
        assert {FUSED, TORCH} <= each["seconds"].keys(), each["missing"]
        assert all(1e-7 < seconds < 1e-2 for seconds in each["seconds"].values())
