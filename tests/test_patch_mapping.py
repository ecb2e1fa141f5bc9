"""rmsnorm.patch_mapping has transformers build the norms of a model fused."""

import pickle
import types

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, GemmaConfig, GemmaForCausalLM, LlamaConfig
from transformers.models.gemma import modeling_gemma
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.gemma3n import modeling_gemma3n
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3_next import modeling_qwen3_next
from transformers.models.t5gemma import modeling_t5gemma
from transformers.monkey_patching import (
    apply_patches,
    clear_patch_mapping,
    register_patch_mapping,
    unregister_patch_mapping,
)

import norms
import rmsnorm
from norms import TOKENS, N, every_dtype, llama, rows
from operands import same_bits
from rmsnorm.patch import patch, unpatch

SMALL = {**norms.SMALL, "head_dim": 16}


@pytest.fixture(autouse=True)
def _nothing_stays_registered():
    yield
    clear_patch_mapping()


def fused_modules(model):
    modules = model.named_modules()
    return [name for name, module in modules if "fused by rmsnorm" in module.extra_repr()]


class TestModels:
    @every_dtype
    def test_a_model_is_built_as_patch_would_make_it(self, dtype):
        register_patch_mapping(rmsnorm.patch_mapping(modeling_llama))
        config = LlamaConfig(**SMALL)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        clear_patch_mapping()
        patched = AutoModelForCausalLM.from_config(config, dtype=dtype)
        patched.load_state_dict(model.state_dict())
        own = patched(input_ids=TOKENS).logits
        assert len(patch(patched).replaced) == 5
        classes = [type(module) for module in patched.modules()]
        assert [type(module) for module in model.modules()] == classes
        assert same_bits(model(input_ids=TOKENS).logits, patched(input_ids=TOKENS).logits)
        unpatch(model)
        assert same_bits(model(input_ids=TOKENS).logits, own)
        assert type(model.model.norm) is LlamaRMSNorm

    def test_a_pretrained_model_is_loaded_fused(self, tmp_path):
        saved = llama(torch.bfloat16)
        for parameter in saved.parameters():
            nn.init.normal_(parameter, std=0.1)
        saved.save_pretrained(tmp_path)
        patched = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
        patch(patched)
        register_patch_mapping(rmsnorm.patch_mapping(modeling_llama))
        model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
        assert fused_modules(model) == fused_modules(patched) and len(fused_modules(model)) == 5
        assert same_bits(model(input_ids=TOKENS).logits, patched(input_ids=TOKENS).logits)
        model.save_pretrained(tmp_path / "again")
        clear_patch_mapping()
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "again", dtype=torch.bfloat16)
        assert fused_modules(again) == []
        assert all(
            same_bits(*pair)
            for pair in zip(again.state_dict().values(), saved.state_dict().values(), strict=True)
        )

    def test_weights_start_as_the_model_starts_them(self):
        """Gemma's _init_weights asks whether a module is a GemmaRMSNorm, and zeroes its weight."""
        register_patch_mapping(rmsnorm.patch_mapping(modeling_gemma))
        with apply_patches():
            assert modeling_gemma.GemmaRMSNorm is not GemmaRMSNorm
            model = GemmaForCausalLM(GemmaConfig(**SMALL))
            assert isinstance(model.model.norm, modeling_gemma.GemmaRMSNorm)
            assert not isinstance(nn.RMSNorm(N), modeling_gemma.GemmaRMSNorm)
        assert len(fused_modules(model)) == 5 and modeling_gemma.GemmaRMSNorm is GemmaRMSNorm
        for name in fused_modules(model):
            assert not model.get_submodule(name).weight.any()

    def test_rounding_is_passed_on(self):
        register_patch_mapping(rmsnorm.patch_mapping(modeling_llama, rounding="fused"))
        with apply_patches():
            norm = modeling_llama.LlamaRMSNorm(N).bfloat16()
        nn.init.normal_(norm.weight)
        x = rows(torch.bfloat16)
        assert same_bits(norm(x), rmsnorm.rms_norm(x, norm.weight))
        with pytest.raises(ValueError, match="rounding: 'once'; expected None or 'fused'"):
            rmsnorm.patch_mapping(modeling_llama, rounding="once")


class TestClasses:
    def test_the_names_of_a_mapping_match_themselves_only(self):
        register_patch_mapping(rmsnorm.patch_mapping(modeling_gemma))
        own = modeling_t5gemma.T5GemmaRMSNorm
        with apply_patches():
            assert modeling_t5gemma.T5GemmaRMSNorm is own

    def test_what_computes_something_else_is_built_as_it_is(self):
        mapping = rmsnorm.patch_mapping(modeling_qwen3_next)
        assert set(mapping) == {"^Qwen3NextRMSNorm$", "^Qwen3NextRMSNormGated$"}
        register_patch_mapping(mapping)
        gated = modeling_qwen3_next.Qwen3NextRMSNormGated
        with apply_patches():
            built = modeling_qwen3_next.Qwen3NextRMSNormGated(N)
            assert fused_modules(modeling_qwen3_next.Qwen3NextRMSNorm(N)) == [""]
        assert type(built) is gated

    def test_each_module_is_judged_by_itself(self):
        """With a scale, without, and of another width or epsilon."""
        register_patch_mapping(rmsnorm.patch_mapping(modeling_gemma3n))
        arguments = ((N,), (N, 1e-3, False), (2 * N, 1e-5))
        with apply_patches():
            built = [modeling_gemma3n.Gemma3nRMSNorm(*each) for each in arguments]
        for norm, each in zip(built, arguments, strict=True):
            x = rows(torch.float32, n=each[0]) / 100
            own = modeling_gemma3n.Gemma3nRMSNorm(*each)
            assert fused_modules(norm) == [""]
            torch.testing.assert_close(norm(x), own(x), rtol=2.0**-17, atol=0)

    def test_norms_that_hold_more_than_plain_values_are_judged_each_time(self, monkeypatch):
        class ListNorm(nn.Module):
            def __init__(self, n, axes):
                super().__init__()
                self.weight = nn.Parameter(torch.ones(n))
                self.axes = axes

            def forward(self, x):
                mean = x.float().square().mean(-1, keepdim=True)
                return (x.float() * (mean + 1e-6) ** -0.5 * self.weight).to(x.dtype)

        monkeypatch.setattr(modeling_llama, "ListNorm", ListNorm, raising=False)
        build = rmsnorm.patch_mapping(modeling_llama)["^ListNorm$"]
        assert fused_modules(build(N, [-1])) == [""]
        assert vars(build)["_rmsnorm_built"] == {}

    def test_two_classes_of_one_name_are_refused(self):
        other = types.ModuleType("other")
        other.LlamaRMSNorm = type("LlamaRMSNorm", (nn.Module,), {})
        with pytest.raises(ValueError, match="different classes of the name LlamaRMSNorm"):
            rmsnorm.patch_mapping(modeling_llama, other)

    def test_a_class_derived_from_one_that_builds_is_an_ordinary_class(self):
        Base = rmsnorm.patch_mapping(modeling_llama)["^LlamaRMSNorm$"]

        class Derived(Base):
            def forward(self, x):
                return 2 * super().forward(x)

        norm = Derived(N)
        assert type(norm) is Derived and isinstance(norm, LlamaRMSNorm)
        assert not isinstance(LlamaRMSNorm(N), Derived)
        x = rows(torch.float32)
        assert same_bits(norm(x), 2 * LlamaRMSNorm(N)(x))

    def test_a_module_changes_its_dtype_and_is_pickled_as_patch_s_is(self):
        norm = rmsnorm.patch_mapping(modeling_llama)["^LlamaRMSNorm$"](N, eps=1e-5).half()
        x = rows(torch.float16)
        twin = pickle.loads(pickle.dumps(norm))
        expected = rmsnorm.rms_norm(x, norm.weight, 1e-5, rounding="before_gamma")
        assert same_bits(norm(x), expected) and same_bits(twin(x), expected)
        unpatch(twin)
        assert type(twin) is LlamaRMSNorm

    def test_a_mapping_can_be_unregistered(self):
        mapping = rmsnorm.patch_mapping(modeling_llama, modeling_gemma)
        register_patch_mapping(mapping)
        unregister_patch_mapping(list(mapping))
        with apply_patches():
            assert modeling_llama.LlamaRMSNorm is LlamaRMSNorm

    def test_what_holds_no_norms_is_refused(self):
        with pytest.raises(TypeError, match="modeling: 'llama'; expected modules such as"):
            rmsnorm.patch_mapping("llama")
        with pytest.raises(ValueError, match=r"modeling: transformers\.models\.llama has no class"):
            rmsnorm.patch_mapping(modeling_gemma, transformers.models.llama)
