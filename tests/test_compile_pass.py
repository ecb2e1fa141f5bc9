"""rmsnorm.compile_pass replaces the norms of a traced graph, and nothing else."""

import contextlib
import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo import lookup_backend
from torch._dynamo.utils import counters
from torch._inductor.utils import run_and_get_code

import rmsnorm
from lookalikes import (
    IN_16_BITS,
    LOOKALIKES,
    READER_ONLY,
    arithmetic,
    behaviour,
    divisor,
    scale,
)
from norms import NORMS, N, assert_close, distance, every_dtype, every_norm, make, rows
from operands import dtype_pairs, same_bits

EPSILON = 1e-6
GAMMA = torch.linspace(0.5, 1.5, N)


class Traced:
    """A function or module as the pass leaves it: run node by node, or by a backend, `then`."""

    def __init__(self, function, then=None, **options):
        self.then = then
        torch._dynamo.reset()
        self.compile_pass = rmsnorm.compile_pass()
        self.graphs = []
        self.compiled = torch.compile(function, backend=self._backend, **options)

    def _backend(self, module, inputs):
        self.compile_pass(module.graph)
        module.graph.lint()
        module.recompile()
        self.graphs.append(module.graph)
        return module if self.then is None else lookup_backend(self.then)(module, inputs)

    def __call__(self, *args, **kwargs):
        return self.compiled(*args, **kwargs)

    def count(self, name):
        """How many nodes call a function or method."""
        targets = [str(node.target) for graph in self.graphs for node in graph.nodes]
        return sum(name in target for target in targets)

    def norms(self):
        """How many norms were replaced."""
        assert self.then or self.count("rmsnorm.rms_norm") == self.compile_pass.replaced.total()
        return self.compile_pass.replaced.total()


@pytest.fixture(autouse=True)
def _no_graphs_of_other_tests():
    yield
    torch._dynamo.reset()


def inline(x, gamma=None, epsilon=EPSILON):
    y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon)
    return y if gamma is None else y * gamma


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


# Each holds no RMSNorm of any tensor, or changes x in place after it. The others hold one, of
# another x, with another scale or epsilon, or with something after it: the graph says so exactly,
# and that part may be replaced.
WITHOUT_NORM = (
    divisor.SumNorm,
    divisor.UnbiasedNorm,
    divisor.PartialNorm,
    divisor.MeanAbsoluteNorm,
    divisor.LargestValueNorm,
    divisor.L2Norm,
    divisor.ScaledL2Norm,
    divisor.CubicNorm,
    divisor.CubeRootNorm,
    divisor.WrongPowerNorm,
    divisor.NoRootNorm,
    divisor.StandardDeviationNorm,
    divisor.FunctionalLayerNorm,
    divisor.OverRowsNorm,
    divisor.OverAxis1Norm,
    divisor.OverAllButTheFirstNorm,
    divisor.WeightUsedTwiceNorm,
    arithmetic.EpsilonOutsideNorm,
    arithmetic.EpsilonFloorNorm,
    arithmetic.EpsilonInTheSumNorm,
    arithmetic.EpsilonTwiceNorm,
    arithmetic.MeanSquareInBfloat16Norm,
    arithmetic.RsqrtOfBfloat16Norm,
    arithmetic.SquaresInBfloat16Norm,
    behaviour.StoppedAtTheRootNorm,
    behaviour.InPlaceNorm,
    behaviour.InPlaceSquareNorm,
)


def decades(dtype):
    """Rows whose mean squares go from 1 to 1e-12, so that epsilon shows."""
    return (torch.randn(4, 6, N) * 10 ** -torch.linspace(0, 6, 6)[:, None]).to(dtype)


def calls(look_alike, dtype):
    """A function that calls a new one, and its parameters."""
    norm = look_alike(N).to(dtype)
    torch.manual_seed(0)
    for parameter in norm.parameters():
        nn.init.normal_(parameter, mean=0.5)
    gated = look_alike is scale.GatedNorm
    return lambda x: norm(x, x) if gated else norm(x), list(norm.parameters())


def results_and_gradients(call, parameters, x):
    """y, what became of x, and the gradients of x and the parameters, where there are any."""
    own = x.clone().requires_grad_()
    changed = own * 1
    torch.manual_seed(1)
    y = call(changed)
    if not y.requires_grad:
        return [y, changed]
    dy = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape)
    return [y, changed, *torch.autograd.grad(y, [own, *parameters], dy, allow_unused=True)]


class TestLookAlikes:
    @pytest.mark.parametrize("look_alike", [*LOOKALIKES, *IN_16_BITS, *READER_ONLY])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_a_look_alike_is_left_or_holds_a_norm_and_computes_what_it_did(self, look_alike, dtype):
        x = decades(dtype)
        call, parameters = calls(look_alike, dtype)
        traced, got = Traced(call), []
        with contextlib.suppress(RuntimeError):  # x is needed and was changed in place
            got = results_and_gradients(traced, parameters, x)
        left = look_alike in WITHOUT_NORM or (
            look_alike in IN_16_BITS[:2] and dtype != torch.float32
        )
        assert traced.norms() == (0 if left else 1)
        if left:
            return
        expected = results_and_gradients(*calls(look_alike, dtype), x)
        for one, other in zip(got, expected, strict=True):
            assert (one is None) == (other is None)
            if one is not None and other.count_nonzero():
                assert one.dtype == other.dtype
                assert distance(one, other) < (1e-5 if dtype == torch.float32 else 0.01)

    @pytest.mark.parametrize("look_alike", IN_16_BITS[:2])
    def test_what_rounds_in_other_places_is_left_and_the_report_says_so(self, look_alike):
        traced = Traced(look_alike(N).bfloat16())
        traced(decades(torch.bfloat16))
        (reason,) = traced.compile_pass.left
        assert traced.norms() == 0 and "to bfloat16, where no form does" in reason


def mutates_x_inside(x, gamma):
    rstd = torch.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON)
    x.mul_(2)
    return x * rstd * gamma


def mutates_an_alias_of_x_inside(x, gamma):
    wide = x.float()
    rstd = torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPSILON)
    x[0] = 3
    return wide * rstd * gamma


def mutates_x_after(x, gamma):
    y = inline(x, gamma)
    x.view(-1)[:3] += 1
    return y


def mutates_gamma_after(x, gamma):
    gamma = gamma * 2
    y = F.rms_norm(x, [N], gamma)
    gamma.mul_(2)
    return y


def mutates_rstd(x, gamma):
    rstd = torch.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON)
    rstd += 1
    return x * rstd * gamma


def writes_into_out(x, gamma):
    square = x.square()
    torch.mul(x, x, out=square)
    return x * torch.rsqrt(square.mean(-1, keepdim=True) + EPSILON) * gamma


def clamps_in_place(x, gamma):
    rstd = torch.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON)
    F.relu(x, inplace=True)
    return x * rstd * gamma


def stops_the_gradient_inside(x, gamma):
    with torch.no_grad():
        rstd = torch.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON)
    return x * rstd * gamma


def autocasts(x, gamma):
    with torch.autocast("cpu"):
        return inline(x, gamma)


def autocasts_inside(x, gamma):
    with torch.autocast("cpu"):
        rstd = torch.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON)
    return x * rstd * gamma


def in_float64(x, gamma):
    return inline(x.double(), gamma.double())


def with_a_gamma_for_each_row(x, gamma):
    return x * (torch.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON) * x[:, :1])


def divides_by_zero(x, gamma):
    return x / (x.square().mean(-1, keepdim=True) * 0)


def with_a_negative_epsilon(x, gamma):
    return inline(x, gamma, -1e-6)


LEFT = {
    mutates_x_inside: "has mul_ between its operations",
    mutates_an_alias_of_x_inside: "has setitem between its operations",
    mutates_x_after: "is changed in place later",
    mutates_gamma_after: "is changed in place later",
    mutates_rstd: "computes something other than x times rstd",
    writes_into_out: "has mul between its operations",
    clamps_in_place: "between its operations",
    stops_the_gradient_inside: "has _set_grad_enabled between its operations",
    autocasts: "is in a block of torch.autocast",
    autocasts_inside: "has _exit_autocast between its operations",
    in_float64: "x is float64",
    with_a_gamma_for_each_row: "takes a part of a tensor",
    divides_by_zero: "a power that it has not",
    with_a_negative_epsilon: "spans other axes",
}


class TestLeft:
    @pytest.mark.parametrize("function", LEFT, ids=lambda function: function.__name__)
    def test_what_is_changed_or_computed_otherwise_is_left_with_its_reason(self, function):
        x = torch.randn(5, N)
        expected = function(x.clone(), GAMMA)
        traced = Traced(function)
        assert same_bits(traced(x.clone(), GAMMA).nan_to_num(), expected.nan_to_num())
        assert traced.norms() == 0 and LEFT[function] in str(traced.compile_pass)

    def test_a_step_that_was_traced_in_another_dtype_than_it_should_have_is_left(self):
        compile_pass = rmsnorm.compile_pass()

        def backend(module, inputs):
            (step,) = (node for node in module.graph.nodes if node.name == "rsqrt")
            seen = step.meta["example_value"]
            with seen.fake_mode:
                step.meta["example_value"] = seen.double()
            compile_pass(module.graph)
            return module

        torch._dynamo.reset()
        torch.compile(lambda x: inline(x), backend=backend)(torch.randn(5, N))
        assert not compile_pass.replaced
        assert list(compile_pass.left) == ["has an unusual dtype or shape in rsqrt"]

    def test_a_hook_on_a_part_of_the_norm_is_run_with_its_whole_gradient(self):
        def hooked(x):
            xhat = inline(x)  # is replaced, and not y
            y = xhat * GAMMA
            xhat.register_hook(lambda gradient: 2 * gradient)
            return y

        x = torch.randn(5, N, requires_grad=True)
        with torch._dynamo.config.patch(compiled_autograd=True):
            traced = Traced(hooked)
            (got,) = torch.autograd.grad(traced(x).sum(), x)
        assert distance(got, torch.autograd.grad(hooked(x).sum(), x)[0]) < 1e-6
        assert traced.norms() == 1

    @pytest.mark.parametrize(
        "transform",
        [
            torch.func.vmap,
            lambda f: torch.func.grad(lambda x: f(x).sum()),
            lambda f: lambda x: torch.func.jvp(f, (x,), (x,))[1],
        ],
        ids=["vmap", "grad", "jvp"],
    )
    def test_the_inside_of_a_transform_is_left(self, transform):
        x = torch.randn(5, N)
        traced = Traced(transform(lambda x: inline(x, GAMMA)))
        assert_close(traced(x), transform(lambda x: inline(x, GAMMA))(x), torch.float32)
        assert traced.norms() == 0


class TestNeighbours:
    def test_changes_in_place_before_and_after_a_norm_keep_their_order(self):
        def changes(x, gamma, other):
            x.mul_(2)
            y = inline(x, gamma)
            other.add_(1)
            return y.mul_(3)

        x, other = torch.randn(5, N), torch.zeros(5, N)
        expected = 3 * rmsnorm.rms_norm(2 * x, GAMMA, EPSILON)
        traced = Traced(changes)
        assert same_bits(traced(x.clone(), GAMMA, other), expected) and traced.norms() == 1
        assert other.eq(1).all()

    def test_parts_of_a_norm_that_are_used_elsewhere_stay(self):
        def parts(x, gamma):
            wide = x.float()
            rstd = torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPSILON)
            return (wide * rstd * gamma).to(x.dtype), wide, rstd

        x = torch.randn(5, N).bfloat16()
        traced = Traced(parts)
        y, wide, rstd = traced(x, GAMMA)
        assert traced.norms() == 1
        assert same_bits(y, rmsnorm.rms_norm(x, GAMMA, EPSILON))
        assert same_bits(wide, x.float()) and same_bits(rstd, parts(x, GAMMA)[2])

    def test_a_norm_whose_x_times_rstd_is_used_too_is_two_norms(self):
        def two(x, gamma):
            xhat = inline(x)
            return xhat, xhat * gamma, xhat.abs()

        x = torch.randn(5, N)
        traced = Traced(two)
        xhat, y, absolute = traced(x, GAMMA)
        assert traced.norms() == 2 and traced.count("rsqrt") == 0
        assert same_bits(xhat, rmsnorm.rms_norm(x, None, EPSILON))
        assert same_bits(y, rmsnorm.rms_norm(x, GAMMA, EPSILON))
        assert same_bits(absolute, xhat.abs())

    def test_two_scales_of_one_x_are_two_norms(self):
        def two(x, gamma):
            xhat = inline(x)
            return xhat * gamma, xhat * (1 + gamma)

        x = torch.randn(5, N)
        traced = Traced(two)
        y, z = traced(x, GAMMA)
        assert traced.norms() == 2 and traced.count("rsqrt") == 0
        assert same_bits(y, rmsnorm.rms_norm(x, GAMMA, EPSILON))
        assert same_bits(z, rmsnorm.rms_norm(x, GAMMA, EPSILON, gamma_offset=1.0))

    def test_a_gamma_of_any_strides_will_do(self):
        x, wide = torch.randn(5, N), torch.randn(N, 2)
        for gamma in (wide[:, 1], wide[0, :1].expand(N)):
            traced = Traced(inline)
            assert same_bits(traced(x, gamma), rmsnorm.rms_norm(x, gamma, EPSILON))
            assert traced.norms() == 1

    def test_a_tensor_by_two_names_stays_one_tensor(self):
        def renamed(x):
            y = inline(x)
            same = y.to(x.dtype)
            same.mul_(2)
            return y, same

        x = torch.randn(5, N)
        traced = Traced(renamed)
        expected = 2 * rmsnorm.rms_norm(x, None, EPSILON)
        assert all(same_bits(each, expected) for each in traced(x)) and traced.norms() == 1

    def test_a_norm_of_a_norm_is_two(self):
        x = torch.randn(5, N)
        traced = Traced(lambda x: inline(inline(x, GAMMA), GAMMA))
        expected = rmsnorm.rms_norm(rmsnorm.rms_norm(x, GAMMA, EPSILON), GAMMA, EPSILON)
        assert same_bits(traced(x), expected) and traced.norms() == 2

    def test_a_norm_with_autocast_turned_off_around_it_is_replaced(self):
        def wide(x, gamma):
            with torch.autocast("cpu", enabled=False):
                return inline(x.float(), gamma)

        x = torch.randn(5, N).bfloat16()
        with torch.autocast("cpu"):
            traced = Traced(wide)
            y = traced(x, GAMMA)
        assert traced.norms() == 1
        assert same_bits(y, rmsnorm.rms_norm(x, GAMMA, EPSILON, out_dtype=torch.float32))

    def test_a_model_under_autocast_keeps_the_dtypes_that_it_gives(self):
        model = nn.Sequential(nn.Linear(N, N), make("llama"), nn.Linear(N, N))
        x = torch.randn(5, N)
        with torch.autocast("cpu"):
            traced = Traced(model)
            got, expected = traced(x), model(x)
        assert got.dtype == expected.dtype == torch.bfloat16
        assert distance(got, expected) < 0.01 and traced.norms() == 1

    def test_the_report_counts_the_norms_of_a_form_and_the_reasons(self):
        def several(x, gamma):
            y = inline(inline(x, gamma), gamma)
            return F.rms_norm(y, [N], eps=1e-5) + inline(y.double())

        traced = Traced(several)
        traced(torch.randn(5, N), GAMMA)
        assert str(traced.compile_pass).split("\n") == [
            "replaced 3 norms",
            "  2 × float32 -> float32, epsilon 1e-06, gamma_offset 0, rounding once",
            "  1 × float32 -> float32, epsilon 1e-05, gamma_offset 0, rounding once",
            "left 1 norm",
            "  1 × x is float64",
        ]


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
