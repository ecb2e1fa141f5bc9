"""The demo's training over processes: that it holds, what a lost process does, and that each check
can fail."""

import json
import multiprocessing
import os
import signal
import socket
import time
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from typer.testing import CliRunner

from rmsnorm import cli, demo
from rmsnorm.demo import training

if lack := demo.why_no_processes():
    pytest.skip(lack, allow_module_level=True)

from rmsnorm.demo import distributed, launch, processes, runs, split

TINY = training.Size(hidden=64, layers=1, batch=4, length=16, steps=4)


@pytest.fixture(autouse=True, scope="module")
def _time_limit():
    """Nothing waits for ever, whatever a process does."""

    def stop(number, frame):
        raise TimeoutError("the tests over processes take too long")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(600)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def found():
    return runs.measure(2, TINY, lambda: None)


def failing(found):
    return {check.claim for check in runs.check(found) if not check.holds}


def test_two_processes_train_as_one_and_go_on_after_a_kill(found):
    assert failing(found) == set()
    assert found.restarted.start == 2 and len(found.restarted.losses["fused"]) == 2
    assert found.alone.losses["fused"][-1] < found.alone.losses["fused"][0]


def test_the_line_names_the_process_that_was_killed_and_the_checkpoint(found):
    line = str(found.lost)
    assert line.startswith("rank 1 of 2 was ended by SIGKILL; restart from ")
    assert line.endswith("/step-000002") and "\n" not in line


def test_the_launcher_puts_the_signal_handlers_back(found):
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def left_to_right(dgamma, rows):
    pieces = [torch.empty_like(dgamma) for _ in range(dist.get_world_size())]
    dist.all_gather(pieces, dgamma)
    return sum(pieces[1:], pieces[0])


def work_in_a_wrong_order_too(job):
    in_order = split.norm_digests

    def both(size):
        norms = in_order(size)
        split.sum_in_order = left_to_right
        return {**norms, "left to right": in_order(size)["dgamma"]}

    split.norm_digests = both
    return processes.work(job)


def test_four_processes_give_the_bits_of_one_and_another_order_of_the_sum_does_not(
    found, tmp_path, monkeypatch
):
    monkeypatch.setattr(processes, "work", work_in_a_wrong_order_too)
    ran = launch.launch(processes.Job(replace(TINY, steps=1), 2, 2), tmp_path)
    wrong = ran.norms.pop("left to right")
    assert ran.norms == found.alone.norms
    norms = {**ran.norms, "dgamma": wrong}
    with_wrong = replace(found, restarted=replace(found.restarted, norms=norms))
    assert failing(with_wrong) == {"the norms have the bits of one process"}


def test_losses_that_differ_are_noticed(found):
    ran = found.split[found.whole]
    for name in ("own", "fused"):
        for other in (ran.losses[name][-1] + 1e-4, float("nan")):
            losses = {**ran.losses, name: [*ran.losses[name][:-1], other]}
            split = {**found.split, found.whole: replace(ran, losses=losses)}
            assert failing(replace(found, split=split)) >= {
                "own and fused losses differ only by rounding",
                "losses differ from one process's only by rounding",
            }


def test_a_run_that_does_not_end_well_is_noticed(found):
    claim = "after a kill all end, and one line says which"
    assert failing(replace(found, lost=None)) == {claim}
    for change in ({"rank": 0}, {"how": "failed"}, {"alive": 1}, {"seconds": 1e9}):
        lost = launch.Lost.__new__(launch.Lost)
        lost.__dict__.update({**vars(found.lost), **change})
        assert failing(replace(found, lost=lost)) == {claim}


def test_a_restart_from_a_corrupted_checkpoint_or_from_none_is_noticed(found, tmp_path):
    job = processes.Job(TINY, folder=tmp_path / "checkpoints", kill_at=3)
    with pytest.raises(launch.Lost, match="rank 0 of 1 was ended by SIGKILL"):
        launch.launch(job, tmp_path)
    (job.folder / "step-000004").mkdir()  # as a process leaves it that is killed in writing
    last = processes.last_checkpoint(job.folder)
    assert last.name == "step-000003"

    (file,) = last.glob("*.distcp")
    bytes_ = bytearray(file.read_bytes())
    middle = len(bytes_) // 2
    bytes_[middle : middle + 400] = bytes(400)
    file.write_bytes(bytes_)
    ran = launch.launch(replace(job, kill_at=None), tmp_path)
    assert ran.start == 3
    of_one = replace(found, whole="1 process", restarted=ran)
    assert failing(of_one) == {"a restart has the bits of the run without a kill"}
    assert failing(replace(found, whole="1 process", restarted=found.alone)) == failing(of_one)


def work_without_launcher(rank, port, how, job, printed):
    os.environ.update(RANK=str(rank), MASTER_ADDR="localhost", MASTER_PORT=port)
    os.environ["WORLD_SIZE"] = str(job.processes)
    processes.SILENCE, processes._HEADSTART = 10, 0
    signal.SIGKILL = how
    with Path(printed).open("w") as file, redirect_stdout(file):
        processes.work(job)


@pytest.mark.usefixtures("found")  # has started the server that they are forked from
@pytest.mark.parametrize(("how", "data"), [(signal.SIGKILL, 1), (signal.SIGSTOP, 2)])
def test_the_others_end_by_themselves_when_a_process_is_killed_or_hangs(how, data, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    job = processes.Job(TINY, data, 2, folder=tmp_path / "checkpoints", kill_at=1)
    printed = [tmp_path / f"{rank}.txt" for rank in range(job.processes)]
    context = multiprocessing.get_context("forkserver")
    started = [
        context.Process(target=work_without_launcher, args=(rank, port, how, job, path))
        for rank, path in enumerate(printed)
    ]
    for process in started:
        process.start()
    end = time.monotonic() + 90
    for process in started[:-1]:
        process.join(max(0, end - time.monotonic()))
    codes = [process.exitcode for process in started[:-1]]
    for process in started:
        process.kill()
        process.join()
    assert codes == [1] * len(codes)
    go_on = f"can't go on; restart from {job.folder / 'step-000001'} ("
    for rank, path in enumerate(printed[:-1]):
        assert path.read_text().startswith(f"rank {rank} of {job.processes} {go_on}")


def test_an_error_in_a_process_is_told_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "work", work_that_fails)
    with pytest.raises(launch.Lost) as caught:
        launch.launch(processes.Job(TINY), tmp_path)
    assert str(caught.value) == (
        "rank 0 of 1 failed; there is no checkpoint (RuntimeError: out of tokens)"
    )


def work_that_fails(job):
    def fail(size):
        raise RuntimeError("out of tokens")

    split.norm_digests, processes._HEADSTART = fail, 0
    return processes.work(job)


def test_the_run_prints_its_tables_and_writes_the_figures(found, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runs, "measure", lambda *_: found)
    assert distributed.run(tmp_path, 2, TINY) is True
    printed = capsys.readouterr().out
    assert "2 processes, FSDP2" in printed and "all 5 checks hold" in printed
    figures = json.loads((tmp_path / "processes.json").read_text())
    assert figures["killed"] == str(found.lost)
    assert figures["runs"]["restarted"]["parameters"] == found.restarted.parameters
    monkeypatch.setattr(runs, "measure", lambda *_: replace(found, lost=None))
    assert distributed.run(tmp_path, 2, TINY) is False


def test_a_number_of_processes_that_is_not_foreseen_is_refused():
    result = CliRunner().invoke(cli.app, ["demo", "--nproc", "3"])
    assert result.exit_code == 1 and "--nproc: 3; expected one of 1, 2, 4" in result.output


def test_a_pytorch_without_fsdp2_is_told_so(monkeypatch):
    monkeypatch.delattr(torch.distributed.fsdp, "fully_shard")
    result = CliRunner().invoke(cli.app, ["demo", "--nproc", "2"])
    assert result.exit_code == 1 and "FSDP2 needs PyTorch 2.6 or later" in result.output
