"""Faults of the process around a call: threads, forks, memory, and tensors that change under it."""

import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import rmsnorm
from operands import forward_and_backward, same_bits

ROOT = Path(__file__).parents[1]


def operands(rows: int = 2100, n: int = 513) -> tuple[Tensor, Tensor, Tensor]:
    """x, gamma and dy; by default of enough bytes for 64 threads."""
    return torch.randn(rows, n), torch.randn(n), torch.randn(rows, n)


def raw(tensors: tuple[Tensor, ...]) -> list[bytes]:
    """The elements, without PyTorch's threads, which a forked child can't use."""
    return [tensor.numpy().tobytes() for tensor in tensors]


FIRST_CALLS = """
import threading, torch, rmsnorm
from operands import forward_and_backward, same_bits

torch.manual_seed(0)
x, gamma, dy = torch.randn(1000, 513), torch.randn(513), torch.randn(1000, 513)
together = threading.Barrier(8)
results = []

def call():
    together.wait()
    names = rmsnorm.cpu_targets(), rmsnorm.operators()
    results.append((names, forward_and_backward(x, gamma, dy)))

threads = [threading.Thread(target=call) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
rmsnorm.use_cpu_target("reference")
expected = forward_and_backward(x, gamma, dy)
assert len(results) == 8
for names, result in results:
    assert names == (rmsnorm.cpu_targets(), rmsnorm.operators())
    assert all(same_bits(*pair) for pair in zip(result, expected, strict=True))
"""


def test_first_calls_of_a_process_may_come_from_eight_threads_at_once():
    subprocess.run(
        [sys.executable, "-c", FIRST_CALLS],
        check=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), *sys.path])},
    )


def test_inside_a_parallel_region_of_pytorchs_the_bits_are_the_same():
    torch.ops.load_library(
        ROOT / "build" / "bindings" / "torch" / "librmsnorm_torch_in_parallel.so"
    )
    torch.set_num_threads(4)
    xs = [torch.randn(300, 513) for _ in range(16)]
    gamma = torch.randn(513)
    inside = torch.ops.rmsnorm_test.in_parallel(xs, gamma)
    for x, y in zip(xs, inside, strict=True):
        assert same_bits(y, rmsnorm.rms_norm(x, gamma))


def test_any_number_of_threads_from_1_to_64_gives_the_same_bits():
    tensors = operands()
    expected = forward_and_backward(*tensors)
    for threads in range(1, 65):
        torch.set_num_threads(threads)
        assert all(
            same_bits(*pair) for pair in zip(forward_and_backward(*tensors), expected, strict=True)
        ), threads


def test_numbers_of_threads_changed_on_several_threads_at_once_give_the_same_bits():
    tensors = operands()
    expected = forward_and_backward(*tensors)
    right = []

    def call(caller: int) -> None:
        for threads in (1 + caller, 64 >> caller, 2, 7 * caller + 1):
            torch.set_num_threads(threads)
            right.append(
                all(
                    same_bits(*pair)
                    for pair in zip(forward_and_backward(*tensors), expected, strict=True)
                )
            )

    callers = [threading.Thread(target=call, args=(caller,)) for caller in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert right == [True] * 16


def status_of_child(claim: Callable[[], bool]) -> int:
    """The exit status of a forked child: 0 if claim() holds; killed if it takes 20 seconds."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(20)
            status = 0 if claim() else 1
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_forked_after_threads_were_used_has_the_same_bits_and_does_not_hang():
    torch.set_num_threads(4)
    tensors = operands()
    out = torch.empty_like(tensors[0])
    expected = raw(forward_and_backward(*tensors))

    def claim() -> bool:
        rmsnorm.rms_norm(tensors[0], tensors[1], out=out)
        return raw(forward_and_backward(*tensors)) == expected and raw((out,)) == expected[:1]

    assert status_of_child(claim) == 0
    assert status_of_child(lambda: status_of_child(claim) == 0) == 0, "a child's child"
    assert claim(), "the parent"


@pytest.mark.parametrize("changed", ["y", "rstd"])
def test_a_change_of_what_npu_rms_norm_returned(changed):
    x, gamma = torch.randn(4, 8, requires_grad=True), torch.ones(8, requires_grad=True)
    y, rstd = rmsnorm.npu_rms_norm(x * 1, gamma)
    loss = y.sum()
    if changed == "y":  # which no gradient needs
        expected = torch.autograd.grad(loss, (x, gamma), retain_graph=True)
        y.detach().add_(1)
        assert all(
            same_bits(*pair)
            for pair in zip(torch.autograd.grad(loss, (x, gamma)), expected, strict=True)
        )
    else:
        rstd.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_wrong_rstd_has_the_bits_of_the_reference(dtype):
    x, gamma, dy = (tensor.to(dtype) for tensor in operands(rows=70, n=77))
    wrong = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, -1.0, 1e-45])
    any_bits = torch.randint(-(2**31), 2**31, [63, 1], dtype=torch.int32).view(torch.float32)
    rstd = torch.cat([wrong[:, None], any_bits])
    actual = rmsnorm.npu_rms_norm_backward(dy, x, gamma, rstd)
    rmsnorm.use_cpu_target("reference")
    expected = rmsnorm.npu_rms_norm_backward(dy, x, gamma, rstd)
    assert all(same_bits(*pair) for pair in zip(actual, expected, strict=True))


# 32 TB, and more bytes than 64 bits count.
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(
    not HUGE_PAGES.exists() or "[never]" in HUGE_PAGES.read_text(), reason="no huge pages here"
)
def test_large_outputs_are_touched_in_huge_pages():
    x, gamma, dy = operands(rows=64, n=1 << 18)  # 64 MB each
    rstd = torch.ones(64, 1)
    for call in (
        lambda: rmsnorm.npu_rms_norm(x, gamma),
        lambda: rmsnorm.npu_rms_norm_backward(dy, x, gamma, rstd),
    ):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        call()
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        assert faults < x.nbytes / os.sysconf("SC_PAGESIZE") / 4


@pytest.mark.parametrize("rows", [2**40, 2**58])
def test_outputs_too_large_to_allocate_are_pytorchs_error_and_the_next_call_is_right(rows):
    x, gamma = torch.ones(1, 8).expand(rows, 8), torch.ones(8)
    with pytest.raises(RuntimeError, match=r"allocate memory|calculation overflowed"):
        rmsnorm.rms_norm(x, gamma)
    rstd = torch.ones(1, 1).expand(rows, 1)
    with pytest.raises(RuntimeError, match=r"allocate memory|calculation overflowed"):
        rmsnorm.npu_rms_norm_backward(x, x, gamma, rstd)
    assert torch.equal(rmsnorm.rms_norm(torch.ones(1, 8), gamma, epsilon=0.0), torch.ones(1, 8))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_negated_views_are_read_and_written_as_their_values(mode):
    x, gamma = torch.randn(4, 8), torch.randn(8)
    with mode():
        out = torch._neg_view(torch.empty(4, 8))
        expected = rmsnorm.rms_norm(-x, -gamma)
        rmsnorm.rms_norm(torch._neg_view(x), torch._neg_view(gamma), out=out)
        assert out.is_neg() and torch.equal(out, expected)
        in_place = torch._neg_view(x.clone())
        rmsnorm.rms_norm(in_place, -gamma, out=in_place)
        assert torch.equal(in_place, expected)
        plain = torch.empty(4, 8)
        rmsnorm.rms_norm(torch._neg_view(x), -gamma, out=plain)
        assert same_bits(plain, expected)


def test_the_imaginary_part_of_a_conjugate_is_written_as_its_value():
    x = torch.randn(4, 8)
    out = torch.zeros(4, 8, dtype=torch.complex64).conj().imag
    assert torch.equal(rmsnorm.rms_norm(x, out=out), rmsnorm.rms_norm(x))


def test_a_negated_out_that_overlaps_x_is_refused_and_nothing_is_written():
    memory = torch.ones(33)
    with pytest.raises(ValueError, match="out: overlaps x"):
        rmsnorm.rms_norm(memory[1:].view(4, 8), out=torch._neg_view(memory[:32].view(4, 8)))
    assert torch.equal(memory, torch.ones(33))
