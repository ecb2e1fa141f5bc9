"""rmsnorm.patch beside other tools: PEFT, FSDP2, DDP, torchao, torch.compile, remote code."""

import copy
import inspect
import json

import pytest
import torch
from peft import LNTuningConfig, LoraConfig, get_peft_model
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.profiler import ProfilerActivity, profile
from torchao.quantization import Int8Tensor, Int8WeightOnlyConfig, quantize_
from transformers import AutoConfig, AutoModel, dynamic_module_utils
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding
from transformers.models.llama4.modeling_llama4 import Llama4TextL2Norm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

import processes
import rmsnorm
import two_processes
from norms import (
    TOKENS,
    BaichuanRMSNorm,
    N,
    assert_close,
    every_dtype,
    llama,
    logits_and_gradients,
    make,
    qwen3,
    rows,
)
from operands import same_bits
from rmsnorm.patch import patch, unpatch


def is_fused(module):
    return "fused by rmsnorm" in repr(module)


def logits(model):
    with torch.no_grad():
        return model(input_ids=TOKENS, use_cache=False).logits


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("two_processes"))
    return processes.outcomes(2, two_processes.CASES, folder)


class TestTwoProcesses:
    @pytest.mark.parametrize("case", two_processes.CASES)
    def test_a_wrapped_model_is_fused_and_unpatched_like_one_that_is_not(self, outcomes, case):
        assert outcomes[case] == []


class TestPeft:
    @pytest.mark.parametrize("first", ["patch", "PEFT"])
    def test_lora_and_norms_that_are_trained(self, first):
        model = llama(torch.bfloat16)
        fused = copy.deepcopy(model)
        patch(fused)
        if first == "patch":
            patch(model)
        config = LoraConfig(target_modules=["q_proj", "v_proj"], modules_to_save=["norm"])
        wrapped = get_peft_model(model, config)
        if first == "PEFT":
            # "norm" is found in the names of all 5; each stands beside its trained copy.
            assert len(patch(wrapped).replaced) == 10
        norms = [m for m in wrapped.modules() if isinstance(m, LlamaRMSNorm)]
        assert len(norms) == 10 and all(map(is_fused, norms))
        assert same_bits(logits(wrapped), logits(fused))
        wrapped(input_ids=TOKENS, labels=TOKENS).loss.backward()
        last = wrapped.base_model.model.model.norm
        assert last.modules_to_save.default.weight.grad.any()
        assert last.original_module.weight.grad is None
        unpatch(wrapped)
        assert {type(norm) for norm in norms} == {LlamaRMSNorm}

    def test_tuned_norms(self):
        model = llama(torch.float32)
        fused = copy.deepcopy(model)
        patch(fused)
        wrapped = get_peft_model(model, LNTuningConfig(task_type="CAUSAL_LM"))
        assert len(patch(wrapped).replaced) == 10
        assert same_bits(logits(wrapped), logits(fused))
        assert all(map(is_fused, (wrapped.merge_and_unload().model.norm, fused.model.norm)))


class TestQuantised:
    def test_the_norms_of_a_quantised_model(self):
        model = llama(torch.bfloat16)
        quantize_(model, Int8WeightOnlyConfig())
        assert isinstance(model.model.layers[0].mlp.up_proj.weight, Int8Tensor)
        own = logits(model)
        norms = [module for module in model.modules() if isinstance(module, LlamaRMSNorm)]
        assert len(patch(model).replaced) == len(norms) == 5 and all(map(is_fused, norms))
        # Both round as LLaMA's class does: only a value near a tie could have other bits.
        assert same_bits(logits(model), own)


class TestMeta:
    def test_a_model_on_meta_is_patched_and_gets_its_weights_later(self):
        filled = llama(torch.bfloat16)
        for parameter in filled.parameters():
            nn.init.normal_(parameter, std=0.1)
        with torch.device("meta"):
            model = llama(torch.bfloat16)
        assert len(patch(model).replaced) == 5
        model.to_empty(device="cpu")
        model.load_state_dict(filled.state_dict())
        model.model.rotary_emb = LlamaRotaryEmbedding(model.config).bfloat16()
        patch(filled)
        assert is_fused(model.model.norm)
        assert same_bits(logits(model), logits(filled))


class TestCompiled:
    @pytest.mark.parametrize("patched", ["before compile", "before the first call", "after it"])
    def test_compiled_code_runs_the_fused_norms(self, patched):
        torch.compiler.reset()
        model = llama(torch.float32)
        own = logits(model)
        if patched == "before compile":
            patch(model)
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        if patched == "before the first call":
            patch(model)
        elif patched == "after it":
            assert same_bits(logits(compiled), own)
            patch(compiled)
        fused = logits(model)
        assert not same_bits(fused, own)
        assert same_bits(logits(compiled), fused)
        unpatch(model)
        assert same_bits(logits(compiled), own)

    def test_a_norm_that_was_compiled_in_place_runs_fused(self):
        torch.compiler.reset()
        model = make("llama")
        x = rows(torch.float32)
        model[0].compile(backend="aot_eager", fullgraph=True)
        own = model(x)
        patch(model)
        assert same_bits(model(x), rmsnorm.rms_norm(x, model[0].weight, 1e-5))
        unpatch(model)
        assert same_bits(model(x), own)


class TestStrides:
    @every_dtype
    @pytest.mark.parametrize(
        ("heads", "copies"),
        [
            # query, key and value of a head side by side: one step from row to row
            (lambda projected: projected.view(2, 7, 4, 3, 64)[:, :, :, 0], False),
            (lambda projected: projected.view(2, 7, 12, 64)[:, :, 5], False),
            # all queries, all keys, all values: the step is another after each fourth row
            (lambda projected: projected.view(2, 7, 12, 64)[:, :, 4:8], True),
            (lambda projected: projected.view(2, 7, 12, 64).transpose(1, 2), True),
        ],
        ids=["by head", "one head", "by kind", "transposed"],
    )
    def test_rows_of_a_wider_matrix_have_the_bits_of_packed_ones_and_evenly_spaced_are_not_copied(
        self, heads, copies, dtype
    ):
        norm = Qwen3RMSNorm(64).to(dtype)
        patch(norm)
        x = heads(torch.randn(2, 7, 3 * 4 * 64).to(dtype))
        assert not x.is_contiguous()
        with torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as profiled:
            y = norm(x)
        assert same_bits(y, norm(x.contiguous()))
        assert ("aten::copy_" in {event.key for event in profiled.key_averages()}) == copies

    @every_dtype
    def test_a_model_with_query_and_key_norms(self, dtype):
        model = qwen3(dtype)
        own, gradients = logits_and_gradients(model)
        with patch(model) as report:
            names = {norm.name.split(".")[-1] for norm in report.replaced}
            assert {"q_norm", "k_norm"} < names
            fused, fused_gradients = logits_and_gradients(model)
        assert not all(
            same_bits(*pair)
            for pair in zip([fused, *fused_gradients], [own, *gradients], strict=True)
        )
        again, _ = logits_and_gradients(model)
        assert same_bits(again, own)


class TestWeightless:
    @every_dtype
    def test_a_norm_without_a_weight_is_fused_for_every_width(self, dtype):
        norm = Llama4TextL2Norm(eps=1e-5)
        for n in (16, 4096):
            x = rows(dtype, n=n)
            own = norm(x)
            with patch(nn.ModuleList([norm, nn.Linear(2, 2).to(dtype)])) as report:
                assert report.replaced[0].epsilon == 1e-5
                assert [match.form.gamma for match in report.replaced[0].matches] == [None] * 3
                y = norm(x)
            assert same_bits(y, rmsnorm.rms_norm(x, None, 1e-5))
            assert_close(y, own, dtype)


REMOTE = """
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel


class RemoteConfig(PretrainedConfig):
    model_type = "remote"


{norm}

class RemoteModel(PreTrainedModel):
    config_class = RemoteConfig

    def __init__(self, config):
        super().__init__(config)
        self.norm = BaichuanRMSNorm(config.hidden_size)
        self.post_init()

    def forward(self, x):
        return self.norm(x)
"""


class TestRemoteCode:
    def test_a_norm_that_came_with_its_model_is_fused(self, tmp_path, monkeypatch):
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "modeling_remote.py").write_text(
            REMOTE.format(norm=inspect.getsource(BaichuanRMSNorm))
        )
        named = {"AutoConfig": "RemoteConfig", "AutoModel": "RemoteModel"}
        auto_map = {key: f"modeling_remote.{name}" for key, name in named.items()}
        (tmp_path / "model" / "config.json").write_text(
            json.dumps({"model_type": "remote", "hidden_size": N, "auto_map": auto_map})
        )
        monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "cache"))
        monkeypatch.syspath_prepend(tmp_path / "cache")
        config = AutoConfig.from_pretrained(tmp_path / "model", trust_remote_code=True)
        model = AutoModel.from_config(config, trust_remote_code=True).bfloat16()
        nn.init.normal_(model.norm.weight)
        assert type(model.norm).__module__.startswith("transformers_modules.")
        x = rows(torch.bfloat16)
        own = model(x)
        report = patch(model)
        assert [norm.class_name for norm in report.replaced] == ["BaichuanRMSNorm"]
        assert same_bits(model(x), own) and is_fused(model.norm)


class TestOtherToolsSubclasses:
    def test_a_parametrized_norm_is_unpatched_under_its_parametrization(self):
        model = make("llama")
        x = rows(torch.float32)
        own = model(x)
        patch(model)
        parametrizations.weight_norm(model[0], "weight", dim=None)
        parametrized = type(model[0])
        fused = model(x)
        assert not same_bits(fused, own)
        unpatch(model)
        assert type(model[0]) is not parametrized and not is_fused(model)
        assert type(model[0]).__name__ == "ParametrizedLlamaRMSNorm"
        assert type(model[0]).__bases__ == (LlamaRMSNorm,)
        assert_close(model(x), fused, torch.float32)
        assert not same_bits(model(x), fused)
        parametrize.remove_parametrizations(model[0], "weight")
        assert type(model[0]) is LlamaRMSNorm

    def test_a_copy_keeps_the_other_tools_class(self):
        model = make("llama")
        patch(model)
        model[0].__class__ = type("Tool", (type(model[0]),), {"mark": 1})
        twin = copy.deepcopy(model)
        assert twin[0].mark == 1 and is_fused(twin[0])
        unpatch(twin)
        assert twin[0].mark == 1 and not is_fused(twin[0])
