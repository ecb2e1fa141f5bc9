"""rmsnorm.patch replaces what computes RMSNorm, and changes nothing else."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm

import rmsnorm
from lookalikes.behaviour import DropoutNorm
from norms import (
    DTYPES,
    NORMS,
    TOKENS,
    BaichuanRMSNorm,
    N,
    OperatorPageRMSNorm,
    Rescale,
    assert_close,
    distance,
    every_dtype,
    every_norm,
    llama,
    logits_and_gradients,
    make,
    qwen3,
    rows,
)
from operands import bits, same_bits
from rmsnorm.patch import patch, unpatch


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
        assert own.own_rounding == own.form.rounding
        y, *gradients = own.differences
        assert y.differing <= y.values / 2 and y.largest < 0.1
        parameters = list(model.parameters())
        assert [one.result for one in gradients] == ["dx", "dgamma"][: 1 + len(parameters)]
        assert all(one.largest <= one.bound for one in own.differences)

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

    @pytest.mark.parametrize("change", ["forward", "epsilon", "rank of the weight"])
    def test_a_norm_that_is_not_what_it_was_runs_its_own_forward(self, change, monkeypatch):
        class Norm(OperatorPageRMSNorm):
            def forward(self, x):
                return self._norm(x.float()).type_as(x) * self.weight

        norm, x = Norm(N), rows(torch.float32, 5, 4)
        assert len(patch(norm).replaced) == 1
        if change == "forward":
            monkeypatch.setattr(Norm, "forward", lambda self, x: x + 1)
        elif change == "epsilon":
            norm.eps = torch.tensor(0.5)
        else:
            norm.weight = nn.Parameter(torch.ones(4, N))
        fused = norm(x)
        unpatch(norm)
        assert same_bits(fused, norm(x))

    def test_a_buffer_that_the_forward_does_not_use_is_no_obstacle(self):
        norm = nn.RMSNorm(N, 1e-6, elementwise_affine=False)
        norm.register_buffer("inverse", torch.ones(N))
        report = patch(norm)
        assert [each.name for each in report.replaced] == [""]
        assert report.replaced[0].matches[0].form.gamma is None

    def test_a_class_that_nothing_can_be_derived_from_is_left_and_the_rest_replaced(self):
        class Registered:
            def __init_subclass__(cls, *, key):
                pass

        class RegisteredNorm(OperatorPageRMSNorm, Registered, key=1):
            pass

        report = patch(nn.Sequential(RegisteredNorm(N), LlamaRMSNorm(N)))
        assert [norm.name for norm in report.replaced] == ["1"]
        assert "no class can be derived from it: TypeError" in report.left[0].reason

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


every_model = pytest.mark.parametrize(("make_model", "norms"), [(llama, 5), (qwen3, 9)])


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
        assert all(same_bits(*pair) for pair in zip(results, expected, strict=True))


class TestNothingElseChanges:
    def test_parameters_state_dict_mode_and_classes_stay(self):
        model = llama(torch.float32)
        model.model.norm.eval()
        model.model.norm.weight.requires_grad_(False)
        before = [
            list(model.state_dict()),
            [id(parameter) for parameter in model.parameters()],
            [bits(parameter).tolist() for parameter in model.parameters()],
            [parameter.requires_grad for parameter in model.parameters()],
            [module.training for module in model.modules()],
            [type(module).__name__ for module in model.modules()],
            [name for name, _ in model.named_modules()],
        ]
        patch(model)
        assert before == [
            list(model.state_dict()),
            [id(parameter) for parameter in model.parameters()],
            [bits(parameter).tolist() for parameter in model.parameters()],
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
        dropout = DropoutNorm(N)
        state, threads = torch.get_rng_state(), torch.get_num_threads()
        expected = patch(LlamaRMSNorm(N))
        torch.set_default_dtype(torch.bfloat16)
        try:
            assert patch(LlamaRMSNorm(N).float()) == expected
            assert torch.get_default_dtype() == torch.bfloat16
        finally:
            torch.set_default_dtype(torch.float32)
        with (
            torch.inference_mode(),
            torch.autocast("cpu", torch.bfloat16),
            torch.device("meta"),
        ):
            assert len(patch(LlamaRMSNorm(N)).replaced) == 1
            assert patch(dropout).replaced == ()
            assert torch.is_inference_mode_enabled()
        with torch.no_grad():
            assert len(patch(LlamaRMSNorm(N)).replaced) == 1
            assert not torch.is_grad_enabled()
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
        assert all(same_bits(*pair) for pair in zip(gradients_again, gradients, strict=True))

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
