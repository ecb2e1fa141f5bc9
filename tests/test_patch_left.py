"""rmsnorm.patch leaves what doesn't compute RMSNorm, with a true reason."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrizations
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3_next.modeling_qwen3_next import (
    Qwen3NextRMSNormGated,
)

import rmsnorm
from lookalikes import IN_16_BITS, LOOKALIKES, READER_ONLY, arithmetic, behaviour, divisor, scale
from norms import N, OperatorPageRMSNorm, every_dtype
from rmsnorm.library import why_no_cuda
from rmsnorm.patch import patch


class OtherOutputNorm(OperatorPageRMSNorm):
    """y, but not as a tensor like x."""

    def __init__(self, output):
        super().__init__(N)
        self.output = output

    def forward(self, x):
        y = super().forward(x)
        if self.output == "pair":
            return y, x
        return y.double() if self.output == "double" else y[0]


class BrokenNorm(OperatorPageRMSNorm):
    def forward(self, x):
        return self.nothing


class TestLeft:
    @pytest.mark.parametrize("look_alike", (*LOOKALIKES, *READER_ONLY))
    @every_dtype
    def test_a_look_alike_is_left(self, look_alike, dtype):
        self.check(look_alike, dtype)

    @pytest.mark.parametrize("look_alike", IN_16_BITS)
    def test_a_look_alike_that_rounds_too_often_is_left(self, look_alike):
        self.check(look_alike, torch.bfloat16)

    @pytest.mark.parametrize("look_alike", IN_16_BITS)
    def test_such_a_look_alike_is_fused_for_float32_alone(self, look_alike):
        matches = patch(look_alike(N)).replaced[0].matches
        assert [match.x_dtype for match in matches] == [torch.float32]

    def check(self, look_alike, dtype):
        model = look_alike(N).to(dtype)
        report = patch(model)
        assert [norm.name for norm in report.left] == [""] and report.replaced == ()
        assert type(model) is look_alike

    @pytest.mark.parametrize(
        ("norm", "reason"),
        [
            (nn.LayerNorm(N), "holds weight, bias"),
            (nn.LayerNorm(N, bias=False), "subtracts the mean"),
            (nn.LayerNorm(N, elementwise_affine=False), "subtracts the mean"),
            (nn.LayerNorm(N, bias=False).bfloat16(), "subtracts the mean"),
            (nn.GroupNorm(3, N), "holds weight, bias"),
            (nn.BatchNorm1d(N), "holds weight, bias;"),
            (nn.LazyBatchNorm1d(), "holds weight, bias"),
            (nn.InstanceNorm1d(N), "runs `self._check_input_dim(input)` for its effect"),
            (nn.LocalResponseNorm(2), "calls `F.local_response_norm`, which isn't followed"),
            (nn.RMSNorm((3, 5), elementwise_affine=False), "several axes"),
            (nn.RMSNorm(1), "says nothing about the width of x"),
            (nn.RMSNorm((N, 1, 1)), "says nothing about the width of x"),
            (nn.RMSNorm(N).double(), "its weight is float64"),
            (nn.RMSNorm((2**10, 2**10)), "is a matrix"),
            (Qwen3NextRMSNormGated(N), "takes gate, a second input"),
            (BrokenNorm(N), "reads self.nothing, which it doesn't have"),
            (behaviour.InPlaceNorm(N), "changes a tensor in place, by copy_"),
            (behaviour.InPlaceSquareNorm(N), "changes a tensor in place, by mul_"),
            (behaviour.NoGradientNorm(N), "is decorated with torch.no_grad()"),
            (behaviour.StoppedAtTheRootNorm(N), "keeps a part of the gradient back"),
            (arithmetic.EpsilonOutsideNorm(N), "adds self.eps outside of the root"),
            (divisor.MeanSubtractedNorm(N), "takes the mean of x, as LayerNorm does"),
            (scale.BiasNorm(N), "holds weight, bias"),
            (scale.GatedNorm(N), "takes gate, a second input"),
            (rmsnorm.RMSNorm(N), "fused already"),
        ],
        ids=lambda value: value if isinstance(value, str) else type(value).__name__,
    )
    def test_the_reason_is_true(self, norm, reason):
        before = type(norm)
        report = patch(norm)
        assert reason in report.left[0].reason and report.replaced == ()
        assert type(norm) is before

    @pytest.mark.parametrize(
        ("output", "reason"),
        [
            ("pair", "its forward returns something other than one tensor"),
            ("double", "its forward returns float64 for x of float32"),
            ("row", "its forward takes a part of a tensor"),
        ],
    )
    def test_outputs_of_another_kind_are_named(self, output, reason):
        assert patch(OtherOutputNorm(output)).left[0].reason == reason

    def test_a_scale_that_is_no_parameter_is_not_taken_for_none(self):
        """With ones in it, the values are those of a norm without a weight."""
        parametrized = LlamaRMSNorm(N)
        parametrizations.weight_norm(parametrized, "weight", dim=None)
        with torch.no_grad():
            parametrized.parametrizations.weight.original0.fill_(N**0.5)
        flattened = LlamaRMSNorm(N)
        del flattened.weight
        flattened.weight = torch.ones(N)
        for norm, reason in (
            (parametrized, "is parametrized: its scale is computed from something else"),
            (flattened, "holds weight, a tensor that is no parameter"),
        ):
            assert norm.weight.allclose(torch.ones(N))
            assert patch(norm).left[0].reason == reason

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
            "xpu": "is on xpu; the fused kernels run on CPUs, on CUDA, and by torch_npu on NPUs",
            "cuda": f"is on {why_no_cuda()}",
        }.items():
            with FakeTensorMode(), torch.device(device):
                model = nn.Sequential(nn.RMSNorm(8))
            report = patch(model)
            assert not report.replaced and report.left[0].reason == reason
