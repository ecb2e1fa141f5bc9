"""rmsnorm.patch replaces what computes RMSNorm, leaves what doesn't, and changes nothing else."""

import copy
import io
import pickle

import pytest
import rmsnorm
import torch
import torch.nn.functional as F
from rmsnorm.patch import patch, unpatch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm
from transformers.models.qwen3_next.modeling_qwen3_next import (
    Qwen3NextRMSNorm,
    Qwen3NextRMSNormGated,
)
from transformers.models.t5.modeling_t5 import T5LayerNorm

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
N = 48


class OperatorPageRMSNorm(nn.Module):
    """The small operators of the operator page, as printed there."""

    def __init__(self, dim: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def _norm(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)

    def forward(self, x):
        output = self._norm(x.float()).type_as(x)
        return output * self.weight


class BaichuanRMSNorm(nn.Module):
    """Rounds to the dtype of a 16-bit weight, whatever that of x."""

    def __init__(self, width, epsilon=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.epsilon = epsilon

    def forward(self, hidden):
        variance = hidden.to(torch.float32).square().mean(-1, keepdim=True)
        hidden = hidden * torch.rsqrt(variance + self.epsilon)
        if self.weight.dtype != torch.float32:
            hidden = hidden.to(self.weight.dtype)
        return self.weight * hidden


class Rescale(nn.Module):
    """RMSNorm by another name, with epsilon in the code and an argument that is rarely given."""

    def __init__(self, n):
        super().__init__()
        self.g = nn.Parameter(torch.ones(n))

    def forward(self, x, shift=0.0):
        xhat = x.float() * (x.float().square().sum(-1, keepdim=True) / x.shape[-1] + 1e-5) ** -0.5
        return (xhat * self.g).to(x.dtype) + shift


# name: how to make it, its rounding in 16 bits, gamma_offset, epsilon
NORMS = {
    "operator page": (lambda: OperatorPageRMSNorm(N), "before_gamma", 0, 1e-6),
    "llama": (lambda: LlamaRMSNorm(N, eps=1e-5), "before_gamma", 0, 1e-5),
    "mistral": (lambda: MistralRMSNorm(N), "before_gamma", 0, 1e-6),
    "qwen2": (lambda: Qwen2RMSNorm(N), "before_gamma", 0, 1e-6),
    "qwen3": (lambda: Qwen3RMSNorm(N), "before_gamma", 0, 1e-6),
    "t5": (lambda: T5LayerNorm(N), "before_gamma", 0, 1e-6),
    "baichuan": (lambda: BaichuanRMSNorm(N), "before_gamma", 0, 1e-6),
    "olmo2": (lambda: Olmo2RMSNorm(N), "once", 0, 1e-6),
    "gemma": (lambda: GemmaRMSNorm(N), "once", 1, 1e-6),
    "qwen3 next": (lambda: Qwen3NextRMSNorm(N), "once", 1, 1e-6),
    "another name": (lambda: Rescale(N), "once", 0, 1e-5),
    "torch": (lambda: nn.RMSNorm(N, eps=1e-3), "once", 0, 1e-3),
    "torch, no eps": (lambda: nn.RMSNorm(N), "once", 0, torch.finfo(torch.float32).eps),
    "torch, eps 0": (lambda: nn.RMSNorm(N, eps=0.0), "once", 0, 0.0),
    "torch, no weight": (lambda: nn.RMSNorm(N, 1e-6, elementwise_affine=False), "once", 0, 1e-6),
    "torch, two axes": (lambda: nn.RMSNorm((3, N // 3), eps=1e-6), "once", 0, 1e-6),
}
every_norm = pytest.mark.parametrize("name", NORMS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])


def make(name, dtype=torch.float32):
    """The norm with a random weight, alone in a model."""
    norm = NORMS[name][0]()
    for parameter in norm.parameters():
        nn.init.normal_(parameter, mean=0.5)
    return nn.Sequential(norm).to(dtype)


def rows(dtype, *leading, n=N, norm=None):
    """Random x; of the shape that norm wants, if it wants more than one axis."""
    shape = getattr(norm, "normalized_shape", (n,))
    return torch.randn(*(leading or (7, 5)), *shape).to(dtype)


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and pickle_bytes(a) == pickle_bytes(b)


def pickle_bytes(tensor):
    return tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()


def assert_close(got, expected, rounding_dtype):
    """Apart by at most what two right norms may differ by, in each value.

    In float32 each is within 2^-18 of the formula. In 16 bits those errors may flip the rounding of
    x * rstd, by one machine epsilon, and then that of y, by another.
    """
    eps = torch.finfo(rounding_dtype).eps
    bound = 2.0**-17 if rounding_dtype == torch.float32 else 2 * eps
    assert got.dtype == expected.dtype
    torch.testing.assert_close(got.double(), expected.double(), rtol=bound, atol=0)


def distance(got, expected):
    """Norm-wise, relative."""
    return ((got.double() - expected.double()).norm() / expected.double().norm()).item()


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


class TestReplaced:
    @every_norm
    @every_dtype
    def test_a_norm_is_replaced_by_the_form_that_it_computes(self, name, dtype):
        _, rounding, gamma_offset, epsilon = NORMS[name]
        model = make(name, dtype)
        report = patch(model)
        assert [norm.name for norm in report.replaced] == ["0"] and report.left == ()
        own = next(match for match in report.replaced[0].matches if match.x_dtype == dtype)
        assert own.form.rounding == ("once" if dtype == torch.float32 else rounding)
        assert own.form.gamma_offset == gamma_offset
        assert report.replaced[0].epsilon == epsilon
        assert own.form.out_dtype == dtype
        assert own.differing <= own.values / 2 and own.max_difference < 0.1

    @every_norm
    @every_dtype
    @pytest.mark.parametrize("x_dtype", DTYPES, ids=lambda dtype: "x_" + str(dtype)[6:])
    def test_outputs_and_gradients_stay_those_of_the_class(self, name, dtype, x_dtype):
        model = make(name, dtype)
        x = rows(x_dtype, norm=model[0]).requires_grad_()
        dy = torch.randn(x.shape)
        results = []
        for step in (lambda: None, lambda: patch(model)):
            step()
            y = model(x)
            results.append((y, *torch.autograd.grad(y, [x, *model.parameters()], dy.to(y.dtype))))
        (y, *gradients), (fused_y, *fused_gradients) = results
        coarsest = max(dtype, x_dtype, key=lambda dtype: torch.finfo(dtype).eps)
        assert_close(fused_y, y, coarsest)
        for fused, own in zip(fused_gradients, gradients, strict=True):
            assert fused.dtype == own.dtype
            assert distance(fused, own) <= 2 * max(torch.finfo(coarsest).eps, 2.0**-17)

    @every_dtype
    def test_a_fused_norm_runs_our_operator_and_nothing_else(self, dtype):
        model = make("llama", dtype)
        x = rows(dtype)
        patch(model)
        expected = rmsnorm.rms_norm(
            x,
            model[0].weight,
            1e-5,
            rounding="once" if dtype == torch.float32 else "before_gamma",
        )
        assert same_bits(model(x), expected)

    def test_a_dtype_of_x_without_a_form_runs_the_own_forward(self):
        model = make("baichuan", torch.bfloat16)
        x = rows(torch.float32)
        expected = model(x)
        report = patch(model)
        assert torch.float32 not in [match.x_dtype for match in report.replaced[0].matches]
        assert expected.dtype == torch.bfloat16
        assert same_bits(model(x), expected)

    @pytest.mark.parametrize("name", ["llama", "baichuan", "olmo2", "gemma", "torch"])
    @pytest.mark.parametrize("before", DTYPES)
    @pytest.mark.parametrize("after", DTYPES)
    def test_a_weight_that_changes_its_dtype_later_gets_the_form_of_that_dtype(
        self, name, before, after
    ):
        model = make(name, before)
        patch(model)
        model.to(after)
        for x_dtype in DTYPES:
            x = rows(x_dtype)
            fused = model(x)
            unpatch(model)
            coarsest = max(after, x_dtype, key=lambda dtype: torch.finfo(dtype).eps)
            assert_close(fused, model(x), coarsest)
            patch(model)

    def test_float32_norms_of_a_bfloat16_model_are_fused_for_both(self):
        model = nn.Sequential(nn.Linear(N, N), Olmo2RMSNorm(N), nn.Linear(N, N)).bfloat16()
        model[1].float()
        x = rows(torch.bfloat16)
        expected = model(x)
        report = patch(model)
        assert {match.x_dtype for match in report.replaced[0].matches} == set(DTYPES)
        assert distance(model(x), expected) <= torch.finfo(torch.bfloat16).eps

    def test_epsilon_is_each_module_s_own_and_is_read_when_it_runs(self):
        model = nn.Sequential(*(LlamaRMSNorm(N, eps=eps) for eps in (1e-5, 1e-3, 1e-5)))
        assert [norm.epsilon for norm in patch(model).replaced] == [1e-5, 1e-3, 1e-5]
        x = rows(torch.float32) / 100
        model[0].variance_epsilon = 0.5
        fused = model[0](x)
        unpatch(model)
        assert_close(fused, model[0](x), torch.float32)

    def test_modules_of_one_class_are_judged_apart_where_their_attributes_differ(self):
        class MaybeCentredNorm(OperatorPageRMSNorm):
            def __init__(self, centred):
                super().__init__(N)
                self.centred = centred

            def forward(self, x):
                return super().forward(x - x.mean(-1, keepdim=True) if self.centred else x)

        model = nn.Sequential(*(MaybeCentredNorm(centred) for centred in (False, True, False)))
        report = patch(model)
        assert [norm.name for norm in report.replaced] == ["0", "2"]
        assert [norm.name for norm in report.left] == ["1"]

    def test_a_model_on_the_meta_device_is_patched_before_it_has_weights(self):
        with torch.device("meta"):
            model = nn.Sequential(LlamaRMSNorm(N), nn.LayerNorm(N))
        assert len(patch(model).replaced) == 1
        assert model[0].weight.is_meta

    def test_a_module_under_two_names_is_replaced_once(self):
        norm = LlamaRMSNorm(N)
        report = patch(nn.ModuleDict({"a": norm, "b": norm}))
        assert [norm.name for norm in report.replaced] == ["a"]


class LookalikeNorm(nn.Module):
    """Almost RMSNorm: the formula is a function of the module and x."""

    def __init__(self, formula):
        super().__init__()
        self.formula = formula
        self.eps = 1e-6
        self.weight = nn.Parameter(torch.ones(N))

    def forward(self, x):
        return self.formula(self, x).to(x.dtype)


def mean_square(x, axis=-1):
    return x.float().square().mean(axis, keepdim=True)


def xhat(m, x, axis=-1):
    return x.float() * torch.rsqrt(mean_square(x, axis) + m.eps)


def right(m, x):
    return xhat(m, x) * m.weight


LOOKALIKES = {
    "mean subtracted": lambda m, x: right(m, x.float() - x.float().mean(-1, keepdim=True)),
    "sum instead of mean": lambda m, x: (
        x.float() * torch.rsqrt(N * mean_square(x) + m.eps) * m.weight
    ),
    "n - 1 instead of n": lambda m, x: (
        x.float() * torch.rsqrt(mean_square(x) * N / (N - 1) + m.eps) * m.weight
    ),
    "mean of a part of the row": lambda m, x: (
        x.float() * torch.rsqrt(mean_square(x[..., : N // 4]) + m.eps) * m.weight
    ),
    "mean of absolute values": lambda m, x: (
        x.float() / (x.float().abs().mean(-1, keepdim=True) + m.eps) * m.weight
    ),
    "epsilon outside of the root": lambda m, x: (
        x.float() / (mean_square(x).sqrt() + m.eps) * m.weight
    ),
    "epsilon squared": lambda m, x: x.float() * torch.rsqrt(mean_square(x) + m.eps**2) * m.weight,
    "epsilon a thousandth off": lambda m, x: (
        x.float() * torch.rsqrt(mean_square(x) + 1.001 * m.eps) * m.weight
    ),
    "epsilon as a floor": lambda m, x: (
        x.float() * torch.rsqrt(mean_square(x).clamp(min=m.eps)) * m.weight
    ),
    "L2 norm": lambda m, x: F.normalize(x.float(), dim=-1) * m.weight,
    "scale before the norm": lambda m, x: xhat(m, x.float() * m.weight),
    "scale twice": lambda m, x: xhat(m, x) * m.weight * m.weight,
    "absolute scale": lambda m, x: xhat(m, x) * m.weight.abs(),
    "gate of 1 + tanh": lambda m, x: xhat(m, x) * (1 + torch.tanh(m.weight)),
    "offset of a half": lambda m, x: xhat(m, x) * (0.5 + m.weight),
    "bias added": lambda m, x: right(m, x) + 0.01,
    "x clamped": lambda m, x: right(m, x.clamp(-1000, 1000)),
    "y clamped": lambda m, x: right(m, x).clamp(-5, 5),
    "over rows": lambda m, x: xhat(m, x, axis=-2) * m.weight,
    "over axis 1": lambda m, x: xhat(m, x, axis=1) * m.weight,
    "over all axes but the first": lambda m, x: xhat(m, x, tuple(range(1, x.dim()))) * m.weight,
    "dropout": lambda m, x: F.dropout(right(m, x), 0.01, m.training),
    "noise in evaluation": lambda m, x: right(m, x) * (1 if m.training else 1 + torch.rand(()) / 9),
    "mean square in bfloat16": lambda m, x: (
        x.float() * torch.rsqrt(mean_square(x).bfloat16() + m.eps) * m.weight
    ),
    "squares in bfloat16": lambda m, x: (
        (x.float() * torch.rsqrt(x.square().bfloat16().float().mean(-1, keepdim=True) + m.eps))
        * m.weight
    ),
    "root held constant in the gradient": lambda m, x: (
        x.float() * torch.rsqrt(mean_square(x) + m.eps).detach() * m.weight
    ),
    "scale held constant in the gradient": lambda m, x: xhat(m, x) * m.weight.detach(),
    "no gradient": lambda m, x: right(m, x).detach(),
    "in place": lambda m, x: x.copy_(right(m, x)),
}
# Right in float32; in 16 bits they round more often than any form.
LOOKALIKES_IN_16_BITS = {
    "all arithmetic in 16 bits": lambda m, x: (
        x * torch.rsqrt(x.square().mean(-1, keepdim=True) + m.eps) * m.weight.to(x.dtype)
    ),
    "rstd in 16 bits": lambda m, x: (
        x * torch.rsqrt(mean_square(x) + m.eps).to(x.dtype) * m.weight.to(x.dtype)
    ),
    "offset added in 16 bits": lambda m, x: xhat(m, x) * (1 + m.weight.to(x.dtype)),
    "rounded toward zero": lambda m, x: (right(m, x).view(torch.int32) & ~0xFFFF).view(
        torch.float32
    ),
}


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
        model = LookalikeNorm(
            lambda m, x: F.normalize(x.float(), dim=-1, eps=1e-30) * N**0.5 * m.weight
        )
        model.eps = 0.0
        self.check(model)

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
            (nn.RMSNorm((3, 5), elementwise_affine=False), "raises"),
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

    def test_leaves_that_only_look_like_norms_by_their_parameter_are_not_mentioned(self):
        model = nn.Sequential(nn.PReLU(5), nn.PReLU(1), nn.Linear(5, 1), nn.Embedding(5, 1))
        assert patch(model) == rmsnorm.Report((), ())


def llama(dtype):
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=N,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config).to(dtype)


def qwen3(dtype):
    config = Qwen3Config(
        vocab_size=32,
        hidden_size=N,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
    )
    return Qwen3ForCausalLM(config).to(dtype)


TOKENS = torch.arange(24).view(2, 12)
every_model = pytest.mark.parametrize(("make_model", "norms"), [(llama, 5), (qwen3, 9)])


def logits_and_gradients(model):
    model.zero_grad()
    output = model(input_ids=TOKENS, labels=TOKENS)
    output.loss.backward()
    return output.logits.detach(), [p.grad.clone() for p in model.parameters()]


class TestModels:
    @every_model
    @every_dtype
    def test_logits_and_gradients_agree_before_and_after(self, make_model, norms, dtype):
        model = make_model(dtype)
        logits, gradients = logits_and_gradients(model)
        assert len(patch(model).replaced) == norms
        fused_logits, fused_gradients = logits_and_gradients(model)
        # Each norm moves a value by two roundings at most, forward, and as much backward; the
        # layers between pass a relative change on at about its size.
        bound = norms * 2 * max(torch.finfo(dtype).eps, 2.0**-17)
        assert distance(fused_logits, logits) <= bound
        for fused, own in zip(fused_gradients, gradients, strict=True):
            assert distance(fused, own) <= 2 * bound

    @every_model
    def test_a_patched_model_compiles_to_one_graph(self, make_model, norms):
        model = make_model(torch.float32)
        assert len(patch(model).replaced) == norms
        expected = model(input_ids=TOKENS).logits
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert same_bits(compiled(input_ids=TOKENS, use_cache=False).logits, expected)

    def test_a_patched_norm_compiles_with_its_gradient(self):
        model = make("llama")
        patch(model)
        x = rows(torch.float32).requires_grad_()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        for run in (model, compiled):
            y = run(x)
            results = y, *torch.autograd.grad(y.sum(), [x, model[0].weight])
            if run is model:
                expected = results
        assert all(map(same_bits, results, expected))


class TestNothingElseChanges:
    def test_parameters_state_dict_mode_and_classes_stay(self):
        model = llama(torch.float32)
        model.model.norm.eval()
        model.model.norm.weight.requires_grad_(False)
        before = [
            list(model.state_dict()),
            [id(parameter) for parameter in model.parameters()],
            [pickle_bytes(parameter) for parameter in model.parameters()],
            [parameter.requires_grad for parameter in model.parameters()],
            [module.training for module in model.modules()],
            [type(module).__name__ for module in model.modules()],
            [name for name, _ in model.named_modules()],
        ]
        patch(model)
        assert before == [
            list(model.state_dict()),
            [id(parameter) for parameter in model.parameters()],
            [pickle_bytes(parameter) for parameter in model.parameters()],
            [parameter.requires_grad for parameter in model.parameters()],
            [module.training for module in model.modules()],
            [type(module).__name__ for module in model.modules()],
            [name for name, _ in model.named_modules()],
        ]
        assert isinstance(model.model.norm, LlamaRMSNorm)
        model.load_state_dict(model.state_dict())

    def test_hooks_fire_when_the_model_runs_and_only_then(self):
        norm = LlamaRMSNorm(N)
        fired = []
        norm.register_forward_pre_hook(lambda *_: fired.append("pre"))
        norm.register_forward_hook(lambda *_: fired.append("forward"))
        norm.register_full_backward_hook(lambda *_: fired.append("backward"))
        patch(norm)
        assert fired == []
        norm(rows(torch.float32).requires_grad_()).sum().backward()
        assert fired == ["pre", "forward", "backward"]

    def test_no_state_of_the_caller_reaches_the_probes_or_is_changed_by_them(self):
        dropout = LookalikeNorm(LOOKALIKES["dropout"])
        state, threads = torch.get_rng_state(), torch.get_num_threads()
        with (
            torch.inference_mode(),
            torch.autocast("cpu", torch.bfloat16),
            torch.device("meta"),
        ):
            assert len(patch(make("llama")).replaced) == 1
            assert patch(dropout).replaced == ()
            assert torch.is_inference_mode_enabled()
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.get_num_threads() == threads

    def test_x_may_come_by_name_and_other_arguments_go_to_the_own_forward(self):
        model = nn.ModuleList([LlamaRMSNorm(N), Rescale(N)])
        x = rows(torch.float32)
        shifted = model[1](x, 2.0), model[1](x=x, shift=3.0)
        patch(model)
        assert same_bits(model[0](hidden_states=x), model[0](x))
        assert same_bits(model[1](x, 2.0), shifted[0])
        assert same_bits(model[1](x=x, shift=3.0), shifted[1])
        for arguments in ({}, {"y": x}):
            with pytest.raises(TypeError, match=r"Rescale\.forward\(\)"):
                model[1](**arguments)

    @pytest.mark.parametrize(
        "duplicate",
        [
            copy.deepcopy,
            copy.copy,
            lambda model: pickle.loads(pickle.dumps(model)),
            lambda model: pickle.loads(pickle.dumps(model, protocol=0)),
            lambda model: torch.load(saved(model), weights_only=False),
        ],
        ids=["deepcopy", "copy", "pickle", "pickle 0", "torch.save"],
    )
    def test_a_copy_of_a_patched_norm_is_patched(self, duplicate):
        norm = BaichuanRMSNorm(N).bfloat16()
        nn.init.normal_(norm.weight)
        x = rows(torch.bfloat16)
        own = norm(x)
        patch(norm)
        norm.eval()
        twin = duplicate(norm)
        assert "fused by rmsnorm" in repr(twin) and not twin.training
        assert list(twin.state_dict()) == ["weight"]
        assert same_bits(twin(x), norm(x))
        unpatch(twin)
        assert type(twin) is BaichuanRMSNorm
        assert same_bits(twin(x), own)
        assert type(norm) is not BaichuanRMSNorm

    def test_a_deep_copy_of_a_patched_model_shares_no_weight(self):
        model = llama(torch.float32)
        patch(model)
        twin = copy.deepcopy(model)
        with torch.no_grad():
            twin.model.norm.weight.zero_()
        assert model.model.norm.weight.eq(1).all()
        assert patch(twin).replaced == ()

    @every_model
    def test_unpatch_gives_back_every_bit_and_class(self, make_model, norms):
        model = make_model(torch.bfloat16)
        classes = [type(module) for module in model.modules()]
        logits, gradients = logits_and_gradients(model)
        patch(model)
        assert [type(module) for module in model.modules()] != classes
        unpatch(model)
        assert [type(module) for module in model.modules()] == classes
        again, gradients_again = logits_and_gradients(model)
        assert same_bits(again, logits)
        assert all(map(same_bits, gradients_again, gradients))

    def test_patch_twice_is_patch_once(self):
        model = nn.Sequential(LlamaRMSNorm(N), nn.LayerNorm(N))
        patch(model)
        fused = type(model[0])
        report = patch(model)
        assert report.replaced == ()
        assert [norm.reason[:13] for norm in report.left] == ["fused already", "holds weight,"]
        assert type(model[0]) is fused

    def test_unpatch_of_an_unpatched_model_does_nothing(self):
        model = llama(torch.float32)
        classes = [type(module) for module in model.modules()]
        unpatch(model)
        assert [type(module) for module in model.modules()] == classes


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return file


class TestReport:
    def test_the_report_reads_well(self):
        model = nn.Sequential(*(LlamaRMSNorm(N) for _ in range(6)), nn.LayerNorm(N)).bfloat16()
        lines = str(patch(model)).split("\n")
        assert lines[0] == "replaced 6 of 7 norms"
        assert lines[1] == "  6 × LlamaRMSNorm: epsilon 1e-06, gamma_offset 0"
        assert lines[2].startswith("      bfloat16 -> bfloat16  before_gamma  ")
        assert lines[3].startswith("      float32 -> float32    once          ")
        assert lines[4].startswith("      float16 -> float32    before_gamma  ")
        assert lines[5:] == [
            "      0, 1, …, 5",
            "left 1 as they are",
            "  1 × LayerNorm: holds weight, bias; a norm that can be fused holds one scale or "
            "nothing",
            "      6",
        ]

    def test_no_line_is_wider_than_100_columns(self):
        class ANormWithAnUnusuallyLongNameThatSomebodyThoughtWasAGoodIdea(LookalikeNorm):
            pass

        model = nn.ModuleDict({"deep" * 20 + str(i): make(name) for i, name in enumerate(NORMS)})
        model["left"] = nn.ModuleList(map(LookalikeNorm, LOOKALIKES.values()))
        model["long"] = ANormWithAnUnusuallyLongNameThatSomebodyThoughtWasAGoodIdea(None)
        assert max(map(len, str(patch(model)).split("\n"))) <= 100

    def test_the_largest_difference_is_that_of_the_probes(self):
        match = patch(nn.RMSNorm(4096)).replaced[0].matches[0]
        assert match.values == 24 * 4096
        assert 0 < match.differing < match.values
        assert 0 < match.max_difference <= 128 * 2.0**-17  # |y| < 64 sqrt(2) * 2 for n = 4096
