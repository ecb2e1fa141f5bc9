"""rmsnorm.compile_pass replaces every form of norm in a traced graph, in models and by inductor."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.utils import counters
from torch._inductor.utils import run_and_get_code

import rmsnorm
from norms import NORMS, N, assert_close, distance, every_dtype, every_norm, make, rows
from operands import dtype_pairs, same_bits
from traced import EPSILON, GAMMA, Traced, inline


@pytest.fixture(autouse=True)
def _no_graphs_of_other_tests():
    yield
    torch._dynamo.reset()


class TestEveryForm:
    @every_norm
    @every_dtype
    def test_a_norm_becomes_the_operator_with_its_arguments(self, name, dtype):
        model = make(name, dtype)
        x = rows(dtype, norm=model[0])
        traced = Traced(model, fullgraph=True)
        _, rounding, gamma_offset, epsilon = NORMS[name]
        expected = rmsnorm.rms_norm(
            x,
            getattr(model[0], "weight", getattr(model[0], "g", None)),
            epsilon,
            gamma_offset=gamma_offset,
            rounding=rounding,
        )
        assert same_bits(traced(x), expected)
        assert traced.norms() == 1 and not traced.compile_pass.left
        assert traced.count("rsqrt") == traced.count("mean") == traced.count("pow") == 0

    @every_norm
    def test_mixed_dtypes_keep_the_roundings_and_the_dtype_of_the_source(self, name):
        for x_dtype, gamma_dtype in dtype_pairs():
            if x_dtype == gamma_dtype:
                continue
            model = make(name, gamma_dtype)
            x = rows(x_dtype, norm=model[0])
            rounding_dtype = max(x_dtype, gamma_dtype, key=lambda dtype: torch.finfo(dtype).eps)
            assert_close(Traced(model)(x), model(x), rounding_dtype)

    @pytest.mark.parametrize(
        "form",
        [
            lambda x: x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + EPSILON) * GAMMA,
            lambda x: GAMMA * (x * ((x**2).sum(-1, keepdim=True) / N + EPSILON) ** -0.5),
            lambda x: x * (x.mul(x).mean(2) + EPSILON).rsqrt()[..., None] * GAMMA,
            lambda x: x.div((x * x).mean(dim=[-1]).add(EPSILON).sqrt().unsqueeze(2)).mul(GAMMA),
            lambda x: (x.float() * x.float()).mean(-1, True).add(EPSILON).rsqrt() * GAMMA * x,
            lambda x: F.rms_norm(x, [N], GAMMA, EPSILON),
            lambda x: (1 + (GAMMA - 1)) * inline(x),
        ],
    )
    def test_inline_ways_to_write_it_become_the_operator(self, form):
        x = rows(torch.float32, 2, 3)
        traced = Traced(form, fullgraph=True)
        assert_close(traced(x), rmsnorm.rms_norm(x, GAMMA, EPSILON), torch.float32)
        assert traced.norms() == 1
        assert traced.count("sqrt") == traced.count("mean") == traced.count("sum") == 0

    def test_the_euclidean_norm_is_the_root_mean_square_times_the_root_of_n(self):
        x = rows(torch.float32)
        for form in (
            lambda x: x * N**0.5 / x.norm(2, dim=-1, keepdim=True),
            lambda x: x / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) / math.sqrt(N)),
        ):
            traced = Traced(form, fullgraph=True)
            assert_close(traced(x), rmsnorm.rms_norm(x, None, 0.0), torch.float32)
            assert traced.norms() == 1

    def test_the_mean_may_span_the_axes_of_gamma(self):
        def two_axes(x, gamma):
            return x * torch.rsqrt(x.square().mean((-2, -1), keepdim=True) + EPSILON) * gamma

        x, gamma = torch.randn(2, 3, 8), torch.randn(3, 8)
        traced = Traced(two_axes)
        assert same_bits(traced(x, gamma), rmsnorm.rms_norm(x, gamma, EPSILON))
        assert traced.norms() == 1

    def test_y_keeps_the_strides_that_views_of_it_rely_on(self):
        def heads(x, gamma):
            return inline(x.view(2, 5, 3, 8).transpose(1, 2), gamma).transpose(1, 2).view(2, 5, 24)

        for dynamic in (False, True):
            x, gamma = torch.randn(2, 5, 24), torch.randn(8)
            traced = Traced(heads, dynamic=dynamic)
            expected = rmsnorm.rms_norm(x.view(2, 5, 3, 8), gamma, EPSILON).view(2, 5, 24)
            assert same_bits(traced(x, gamma), expected)
            assert traced.norms() == 1

    def test_one_graph_holds_for_changing_sizes(self):
        traced = Traced(inline, dynamic=True, fullgraph=True)
        for shape in ((3, 5, 16), (2, 7, 16), (4, 2, 24)):
            x = torch.randn(shape)
            assert same_bits(traced(x), rmsnorm.rms_norm(x, None, EPSILON))
        assert len(traced.graphs) == traced.norms() == 1

    @pytest.mark.parametrize("backend", [None, "aot_eager"])
    def test_an_epsilon_that_changes_is_the_one_of_the_call(self, backend):
        traced = Traced(inline, then=backend, dynamic=True)
        x = torch.randn(5, N)
        for epsilon in (0.5, 0.25):
            y = traced(x, GAMMA, epsilon)
            assert same_bits(y, rmsnorm.rms_norm(x, GAMMA, epsilon))
        assert traced.norms() == (1 if backend is None else 3)

    def test_the_width_may_be_a_symbol_that_a_sum_is_divided_by(self):
        def by_sum(x):
            return x * torch.rsqrt(x.square().sum(-1, keepdim=True) / x.shape[-1] + EPSILON)

        traced = Traced(by_sum, dynamic=True, fullgraph=True)
        for shape in ((3, 16), (2, 24)):
            x = torch.randn(shape)
            assert same_bits(traced(x), rmsnorm.rms_norm(x, None, EPSILON))
        assert len(traced.graphs) == traced.norms() == 1


def tiny_models():
    import transformers as tf

    sizes = {
        "vocab_size": 32,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }
    t5 = tf.T5Config(
        vocab_size=32, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, dropout_rate=0.0
    )
    t5.decoder_start_token_id = 0
    return {
        "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**sizes)),
        "gemma": lambda: tf.GemmaForCausalLM(tf.GemmaConfig(**sizes)),
        "gemma3": lambda: tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(**sizes)),
        "olmo2": lambda: tf.Olmo2ForCausalLM(tf.Olmo2Config(**sizes)),
        "qwen3": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**sizes)),
        "t5": lambda: tf.T5ForConditionalGeneration(t5),
    }


MODELS = tiny_models()
TOKENS = torch.arange(2, 24).view(2, 11)


def model_with_random_scales(name, dtype):
    torch.manual_seed(0)
    model = MODELS[name]().to(dtype)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, mean=1.0, std=0.2)
    return model.train()


def logits_and_gradients(call, model, tokens=TOKENS):
    output = call(input_ids=tokens, labels=tokens)
    return output.logits.detach(), torch.autograd.grad(output.loss, list(model.parameters()))


def count_norms(model):
    return sum("Norm" in type(module).__name__ for module in model.modules())


class TestModels:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("name", MODELS)
    def test_every_norm_of_a_model_is_replaced_and_training_goes_on_as_before(self, name, dtype):
        model = model_with_random_scales(name, dtype)
        traced = Traced(model)
        logits, gradients = logits_and_gradients(traced, model)
        assert traced.norms() == count_norms(model) and traced.count("rsqrt") == 0

        patched = copy.deepcopy(model)
        rmsnorm.patch(patched)
        assert same_bits(logits, logits_and_gradients(patched, patched)[0])

        own_logits, own_gradients = logits_and_gradients(model, model)
        bound = 1e-5 if dtype == torch.float32 else 0.05
        assert distance(logits, own_logits) < bound
        for got, expected in zip(gradients, own_gradients, strict=True):
            assert distance(got, expected) < bound

    def test_one_graph_of_a_model_holds_for_changing_batches(self):
        model = model_with_random_scales("qwen3", torch.float32)
        traced = Traced(model, dynamic=True)
        for batch, length in ((2, 11), (4, 5), (3, 7)):
            tokens = torch.arange(batch * length).view(batch, length)
            logits, _ = logits_and_gradients(traced, model, tokens)
            assert distance(logits, logits_and_gradients(model, model, tokens)[0]) < 1e-5
        assert traced.norms() == count_norms(model) * len(traced.graphs)


class TestInductor:
    def test_caches_keep_graphs_with_and_without_the_pass_apart(self, tmp_path, monkeypatch):
        """The pass runs once; then its graph comes from the cache."""
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
        x = torch.randn(5, N)
        fused, hits, replaced = [], [], []
        for use in (True, False, True, False):
            torch._dynamo.reset()
            counters.clear()
            compile_pass = rmsnorm.compile_pass()
            options = {"pre_grad_custom_pass": compile_pass} if use else {}
            y, code = run_and_get_code(torch.compile(inline, options=options), x)
            assert_close(y, rmsnorm.rms_norm(x, None, EPSILON), torch.float32)
            fused.append("rmsnorm.rms_norm" in "".join(code))
            hits.append(counters["inductor"]["fxgraph_cache_hit"])
            replaced.append(compile_pass.replaced.total())
        assert fused == [True, False, True, False]
        assert hits == [0, 0, 1, 1] and replaced == [1, 0, 0, 0]

    def test_a_model_trains_with_the_operator_in_its_compiled_code(self):
        model = nn.Sequential(nn.Linear(N, N), make("llama"), nn.Linear(N, N), make("torch"))
        compile_pass = rmsnorm.compile_pass()
        options = {"pre_grad_custom_pass": compile_pass, "fx_graph_cache": False}
        compiled = torch.compile(model, options=options)
        x = torch.randn(5, N)
        results = []
        with torch._functorch.config.patch(enable_autograd_cache=False):
            for call in (compiled, model):
                y = call(x)
                loss = y.sigmoid().square().sum()
                results.append([y, *torch.autograd.grad(loss, list(model.parameters()))])
        assert compile_pass.replaced.total() == 2
        for got, expected in zip(*results, strict=True):
            assert distance(got, expected) < 1e-5
