"""rmsnorm.patch leaves what doesn't compute RMSNorm, with a true reason."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3_next.modeling_qwen3_next import (
    Qwen3NextRMSNormGated,
)

import rmsnorm
from norms import (
    LOOKALIKES,
    LOOKALIKES_IN_16_BITS,
    LookalikeNorm,
    N,
    every_dtype,
    right,
)
from rmsnorm.library import why_no_cuda
from rmsnorm.patch import patch


class TestLeft:
    @pytest.mark.parametrize("formula", LOOKALIKES)
    @every_dtype
    def test_a_look_alike_is_left(self, formula, dtype):
        self.check(LookalikeNorm(LOOKALIKES[formula]).to(dtype))

    @pytest.mark.parametrize("formula", LOOKALIKES_IN_16_BITS)
    @pytest.mark.parametrize("dtype", [torch.bfloat16])
    def test_a_look_alike_that_rounds_too_often_is_left(self, formula, dtype):
        self.check(LookalikeNorm(LOOKALIKES_IN_16_BITS[formula]).to(dtype))

    def test_zeros_for_a_row_of_zeros_are_not_an_epsilon_of_0(self):
        def formula(m, x):
            return F.normalize(x.float(), dim=-1, eps=1e-30) * N**0.5 * m.weight

        self.check(LookalikeNorm(formula, eps=0.0))

    def test_a_look_alike_that_is_right_is_replaced(self):
        assert len(patch(LookalikeNorm(right)).replaced) == 1

    def check(self, model):
        report = patch(model)
        assert [norm.name for norm in report.left] == [""] and report.replaced == ()
        assert type(model) is LookalikeNorm

    @pytest.mark.parametrize(
        ("norm", "reason"),
        [
            (nn.LayerNorm(N), "holds weight, bias"),
            (nn.LayerNorm(N, bias=False), "subtracts the mean"),
            (nn.LayerNorm(N, elementwise_affine=False), "subtracts the mean"),
            (nn.LayerNorm(N, bias=False).bfloat16(), "subtracts the mean"),
            (nn.GroupNorm(3, N), "holds weight, bias"),
            (nn.BatchNorm1d(N), "holds weight, bias, running_mean"),
            (nn.LazyBatchNorm1d(), "holds weight, bias"),
            (nn.InstanceNorm1d(N), "raises"),
            (nn.LocalResponseNorm(2), "raises"),
            (nn.RMSNorm((3, 5), elementwise_affine=False), "several axes"),
            (nn.RMSNorm(1), "says nothing about the width of x"),
            (nn.RMSNorm((N, 1, 1)), "says nothing about the width of x"),
            (nn.RMSNorm(N).double(), "its weight is float64"),
            (nn.RMSNorm((2**10, 2**10)), "is a matrix"),
            (Qwen3NextRMSNormGated(N), "TypeError"),
            (LookalikeNorm(lambda m, x: m.nothing), "has no attribute 'nothing'"),
            (rmsnorm.RMSNorm(N), "fused already"),
        ],
        ids=lambda value: value if isinstance(value, str) else type(value).__name__,
    )
    def test_the_reason_is_true(self, norm, reason):
        before = type(norm)
        report = patch(norm)
        assert reason in report.left[0].reason and report.replaced == ()
        assert type(norm) is before

    def test_outputs_of_another_kind_are_named(self):
        class OtherNorm(LookalikeNorm):
            def forward(self, x):
                return self.formula(self, x)

        for formula, reason in (
            (lambda m, x: (right(m, x), x), "returns a tuple and not a tensor"),
            (lambda m, x: right(m, x).double(), "returns torch.float64 for x of torch.float32"),
            (lambda m, x: right(m, x)[0], "returns shape [48] for x of [24, 48]"),
        ):
            assert patch(OtherNorm(formula)).left[0].reason == reason

    def test_a_forward_that_another_tool_replaced_on_the_instance_stays(self):
        norm = LlamaRMSNorm(N)
        norm.forward = lambda x: x
        assert "by something else" in patch(norm).left[0].reason
        assert norm(1) == 1

    def test_what_is_no_norm_by_name_or_holds_other_modules_is_not_mentioned(self):
        class NormBlock(nn.Sequential):
            pass

        model = NormBlock(nn.PReLU(5), nn.PReLU(1), nn.Linear(5, 1), nn.Embedding(5, 1))
        assert patch(model) == rmsnorm.Report((), ())

    @pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
    def test_a_norm_on_a_device_without_kernels_is_left(self):
        for device, reason in {
            "xpu": "is on xpu; the fused kernels run on CPUs and on CUDA",
            "cuda": f"is on {why_no_cuda()}",
        }.items():
            with FakeTensorMode(), torch.device(device):
                model = nn.Sequential(nn.RMSNorm(8))
            report = patch(model)
            assert not report.replaced and report.left[0].reason == reason
