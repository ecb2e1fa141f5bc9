"""The demo's outputs, and that each of its checks can fail."""

import json
from dataclasses import replace

import matplotlib.image
import pytest
import torch

import rmsnorm
from rmsnorm import demo
from rmsnorm.bench import harness
from rmsnorm.demo import bits, checks, migration, training

TINY = training.Size(hidden=64, layers=1, batch=2, length=16, steps=3, shape=(8, 64), repeats=1)


@pytest.fixture(scope="module")
def outcome() -> checks.Outcome:
    with harness.progress(harness.console()) as bar:
        return demo.measure(torch.bfloat16, TINY, migration.rewritten(), bar)


def failing(outcome: checks.Outcome) -> set[str]:
    return {check.claim for check in checks.check(outcome) if not check.holds}


def test_three_steps_are_too_few_to_learn_and_all_else_holds(outcome):
    assert failing(outcome) == {"the model learned"}


def test_a_norm_that_was_not_replaced_is_noticed(outcome):
    report = replace(outcome.report, replaced=outcome.report.replaced[:-1])
    assert "every norm was replaced" in failing(replace(outcome, report=report))
    operators = {**outcome.operators, "aten::rsqrt": 1}
    assert "every norm was replaced" in failing(replace(outcome, operators=operators))


def test_losses_that_differ_are_noticed(outcome):
    losses = [loss + 0.2 for loss in outcome.fused.losses]
    found = failing(replace(outcome, fused=replace(outcome.fused, losses=losses)))
    assert found >= {
        "the first loss is equal but for rounding",
        "losses stray no further than by rounding",
        "no loss is far away",
    }


def test_a_loss_that_is_not_a_number_is_noticed(outcome):
    losses = [*outcome.fused.losses[:-1], float("nan")]
    found = failing(replace(outcome, fused=replace(outcome.fused, losses=losses)))
    assert found >= {"no loss is far away", "the model learned"}


def test_a_compiled_model_that_was_not_moved_over_is_noticed(outcome):
    claim = "compile_pass moves the compiled model over"
    for change in ({"replaced": 2}, {"roots": 1}, {"loss": outcome.compiled.loss + 0.2}):
        compiled = replace(outcome.compiled, **change)
        assert claim in failing(replace(outcome, compiled=compiled))


def test_a_rewritten_class_with_other_bits_is_noticed(outcome):
    other = migration.rewritten().new.replace('rounding="before_gamma"', 'rounding="once"')
    own = training.llama(TINY, torch.bfloat16).model.norm
    torch.nn.init.normal_(own.weight)
    x = torch.randn(99, 64).bfloat16()
    assert (migration.norm_of(other, own)(x) != own(x)).any()
    assert "the class that migrate rewrote has patch's bits" in failing(
        replace(outcome, rewritten_differs=1)
    )


def test_memory_that_is_not_less_is_noticed(outcome):
    more = dict.fromkeys(("own", "fused"), 1)
    found = failing(replace(outcome, norm_bytes=more, step_bytes=more))
    assert sum("less memory" in claim for claim in found) == 2


def test_a_bit_that_depends_on_the_batch_is_noticed(outcome, monkeypatch):
    def batch_dependent(x, gamma, epsilon):
        y, rstd = torch.ops.rmsnorm.rms_norm(x, gamma, epsilon)
        y.view(torch.int16)[:, 0] ^= int(len(x) == 7)
        return y, rstd

    monkeypatch.setattr(rmsnorm, "npu_rms_norm", batch_dependent)
    x, dy = torch.randn(2, 20, 64).bfloat16()
    found = bits.sweep(x, dy, torch.ones(64), ["reference"])
    assert not found["y"].same and found["rstd"].same
    assert "a row has the same bits everywhere" in failing(replace(outcome, bits=found))


def test_run_writes_the_figures_and_the_plot_and_says_that_a_check_failed(tmp_path, capsys):
    assert demo.run_at(tmp_path, TINY, 0) is False
    printed = capsys.readouterr().out
    assert "the model learned" in printed and "replaced 3 of 3 norms" in printed
    figures = json.loads((tmp_path / "demo.json").read_text())
    assert "+        return rmsnorm.rms_norm(" in printed
    assert "3 × bfloat16 -> bfloat16, epsilon 1e-06, gamma_offset 0" in printed
    assert figures.keys() == {"machine", "size", "outcomes", "checks"}
    assert figures["outcomes"].keys() == {"float32", "bfloat16"}
    for outcome in figures["outcomes"].values():
        assert {len(losses) for losses in outcome["losses"].values()} == {TINY.steps}
    picture = matplotlib.image.imread(tmp_path / "demo.png")
    assert picture.std() > 0.05
