"""What rmsnorm.patch reports, its arguments, and what it undoes as a context manager."""

import gc
import pickle
import re
import weakref

import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import rmsnorm
from lookalikes import LOOKALIKES
from lookalikes.behaviour import DropoutNorm
from norms import NORMS, N, every_norm, llama, make, rows
from operands import same_bits
from rmsnorm import forms
from rmsnorm.patch import patch, unpatch


class TestReport:
    def test_the_report_reads_well(self):
        model = nn.Sequential(*(LlamaRMSNorm(N) for _ in range(6)), nn.LayerNorm(N)).bfloat16()
        lines = str(patch(model)).split("\n")
        assert lines[:4] == [
            "replaced 6 of 7 norms",
            "  6 × LlamaRMSNorm: epsilon 1e-06, gamma_offset 0",
            "      bfloat16 -> bfloat16  before_gamma",
            "        y: equal bits in all 1152 values",
        ]
        assert re.fullmatch(
            r" {8}dx: \d+ of 384 values differ, by [\d.]+ at most; bound [\d.]+", lines[4]
        )
        assert lines[6] == "      float32 -> float32    once"
        assert lines[10] == "      float16 -> float32    before_gamma"
        assert lines[14:] == [
            "      0, 1, …, 5",
            "left 1 as they are",
            "  1 × LayerNorm: holds weight, bias; a norm that can be fused holds one scale or "
            "nothing",
            "      6",
        ]

    def test_a_norm_without_a_weight_is_called_so(self):
        lines = str(patch(nn.RMSNorm(N, 1e-5, elementwise_affine=False))).split("\n")
        assert lines[1] == "  1 × RMSNorm: epsilon 1e-05, no weight"

    def test_no_line_is_wider_than_100_columns(self):
        class ANormWithAnUnusuallyLongNameThatSomebodyThoughtWasAGoodIdea(DropoutNorm):
            pass

        model = nn.ModuleDict({"deep" * 20 + str(i): make(name) for i, name in enumerate(NORMS)})
        model["left"] = nn.ModuleList(look_alike(N) for look_alike in LOOKALIKES)
        model["long"] = ANormWithAnUnusuallyLongNameThatSomebodyThoughtWasAGoodIdea(N)
        assert max(map(len, str(patch(model, rounding="fused")).split("\n"))) <= 100

    def test_the_largest_differences_are_those_of_the_probes(self):
        y, dx, dgamma = patch(nn.RMSNorm(4096)).replaced[0].matches[0].differences
        assert y.values == 24 * 4096 and dx.values == 8 * 4096 and dgamma.values == 4096
        assert 0 < y.differing < y.values and 0 < dx.differing <= dx.values
        assert 0 < y.largest <= y.bound <= 128 * 2.0**-16  # |y| < 64 sqrt(2) * 2 for n = 4096
        assert 0 < dx.largest <= dx.bound and dgamma.largest <= dgamma.bound

    def test_a_fused_operator_that_is_wrong_is_found_out(self, monkeypatch):
        """Its y is right, its gradient a thousandth off."""
        right = forms.rms_norm

        def wrong(x, *arguments, **options):
            y = right(x, *arguments, **options)
            return y.detach() + (y - y.detach()) * 1.001

        monkeypatch.setattr(forms, "rms_norm", wrong)
        report = patch(nn.RMSNorm(N))
        assert (
            report.left[0].reason == "its dx and the fused one differ by more than right ones may"
        )
        assert patch(nn.RMSNorm(N), verify=False).replaced

    def test_without_verify_nothing_is_compared(self, monkeypatch):
        model = llama(torch.bfloat16)
        verified = patch(model)
        unpatch(model)
        backward = []
        gradient = torch.autograd.grad
        monkeypatch.setattr(
            torch.autograd, "grad", lambda *a, **k: backward.append(a) or gradient(*a, **k)
        )
        report = patch(model, verify=False)
        calls = len(backward)
        for norm, same in zip(report.replaced, verified.replaced, strict=True):
            assert all(match.differences == () for match in norm.matches)
            assert [match.form for match in norm.matches] == [m.form for m in same.matches]
        assert "      bfloat16 -> bfloat16  before_gamma; not compared" in str(report)
        unpatch(model)
        patch(model)
        assert len(backward) - calls == 3 * calls  # its own again, and the fused one

    def test_a_report_can_be_pickled_and_compared(self):
        report = patch(nn.Sequential(LlamaRMSNorm(N), nn.LayerNorm(N)))
        assert pickle.loads(pickle.dumps(report)) == report
        assert "weakref" not in repr(report)

    def test_a_report_does_not_keep_the_model_alive(self):
        model = make("llama")
        report, norm = patch(model), weakref.ref(model[0])
        del model
        gc.collect()
        assert norm() is None
        with report:
            assert len(report.replaced) == 1


class TestFusedRounding:
    @every_norm
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_it_rounds_once_whatever_the_class_does(self, name, dtype):
        _, rounding, gamma_offset, epsilon = NORMS[name]
        model = make(name, dtype)
        x = rows(dtype, norm=model[0])
        report = patch(model, rounding="fused")
        gamma = next(model.parameters(), None)
        once = rmsnorm.rms_norm(x, gamma, epsilon, gamma_offset=gamma_offset, rounding="once")
        assert same_bits(model(x), once)
        assert {match.form.rounding for match in report.replaced[0].matches} == {"once"}
        own = report.replaced[0].matches[0]
        assert own.own_rounding == rounding
        assert ("once, its own was before_gamma" in str(report)) == (rounding != "once")

    def test_the_report_says_how_many_values_move_and_how_far(self):
        norm = LlamaRMSNorm(N).bfloat16()
        y = patch(norm, rounding="fused").replaced[0].matches[0].differences[0]
        unpatch(norm)
        kept = patch(norm).replaced[0].matches[0].differences[0]
        assert kept.differing == 0
        assert y.values / 10 < y.differing < y.values / 2
        # Both round a y of less than 16: one by half a unit, the other by that and half a unit of
        # xhat < 8, times a gamma < 2.
        assert 0 < y.largest <= y.bound <= 3 * 8 * torch.finfo(torch.bfloat16).eps

    def test_another_rounding_is_refused(self):
        model = nn.Sequential(LlamaRMSNorm(N))
        for refused in ("once", "before_gamma", True):
            with pytest.raises(
                ValueError, match=f"rounding: {refused!r}; expected None or 'fused'"
            ):
                patch(model, rounding=refused)
        assert type(model[0]) is LlamaRMSNorm


class TestContextManager:
    def test_it_restores_at_the_end_what_its_call_replaced_and_nothing_else(self):
        model = nn.Sequential(LlamaRMSNorm(N), nn.Sequential(LlamaRMSNorm(N)), nn.LayerNorm(N))
        patch(model[1])
        before = [type(module) for module in model.modules()]
        with rmsnorm.patch(model) as report:
            assert [norm.name for norm in report.replaced] == ["0"]
            assert "fused by rmsnorm" in repr(model[0])
        assert [type(module) for module in model.modules()] == before
        assert type(model[0]) is LlamaRMSNorm and "fused by rmsnorm" in repr(model[1])

    def test_it_restores_after_an_exception_and_passes_it_on(self):
        model = make("llama")
        with pytest.raises(KeyError), patch(model):
            raise KeyError
        assert type(model[0]) is LlamaRMSNorm

    def test_unpatch_inside_does_no_harm(self):
        model = make("llama")
        with patch(model):
            unpatch(model)
        assert type(model[0]) is LlamaRMSNorm
