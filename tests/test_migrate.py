"""rmsnorm migrate: what a source becomes, and that it computes what it did."""

import inspect
import textwrap

import pytest
import torch
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.gemma3n.modeling_gemma3n import Gemma3nRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

from norms import BaichuanRMSNorm, N, assert_close, rows
from rmsnorm.migrate.call import Target
from rmsnorm.migrate.codes import Code
from rmsnorm.migrate.rewrite import rewrite

HEAD = """\
import torch
import torch.nn.functional as F
from torch import nn
from transformers.integrations import use_kernel_forward_from_hub


"""
# As printed on the operator page, the class and what it says to write in its place.
PAGE = '''\
class RMSNorm(torch.nn.Module):
    def __init__(self, dim: int, eps: float = 1e-6):
        """
        Initialize the RMSNorm normalization layer.
        """
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def _norm(self, x):
        """
        Apply the RMSNorm normalization to the input tensor.
        """
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)

    def forward(self, x):
        """
        Forward pass through the RMSNorm layer.

        Args:
            x (torch.Tensor): The input tensor.
        """
        output = self._norm(x.float()).type_as(x)
        return output * self.weight
'''
PAGE_AFTER = '''\
class RMSNorm(torch.nn.Module):
    def __init__(self, dim: int, eps: float = 1e-6):
        """
        Initialize the RMSNorm normalization layer.
        """
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        """
        Forward pass through the RMSNorm layer.

        Args:
            x (torch.Tensor): The input tensor.
        """
        return torch_npu.npu_rms_norm(x, self.weight, epsilon=self.eps)[0]
'''
SOURCES = {
    "operator page": (PAGE, "RMSNorm"),
    **{
        each.__name__: (inspect.getsource(each), each.__name__)
        for each in (
            LlamaRMSNorm,
            T5LayerNorm,
            GemmaRMSNorm,
            Gemma3nRMSNorm,
            Olmo2RMSNorm,
            BaichuanRMSNorm,
        )
    },
}


def migrated(text, target=Target.RMSNORM):
    return rewrite(text, target).text


def codes(text, target=Target.RMSNORM):
    return [item.code.name for item in rewrite(text, target).items]


def executed(text, name):
    names = {"__name__": "migrated"}
    exec(compile(text, "migrated.py", "exec", dont_inherit=True), names)
    return names[name]


def norm_class(body, helpers="", base="nn.Module"):
    """A file with a norm whose forward is `body`."""
    text = HEAD + f"class Norm({base}):\n    def __init__(self, n, eps=1e-6):\n"
    text += "        super().__init__()\n        self.eps = eps\n"
    text += "        self.weight = nn.Parameter(torch.ones(n))\n\n"
    text += textwrap.indent(helpers, "    ")
    return text + textwrap.indent(body, "    ")


FORWARD = """\
def forward(self, x):
    xhat = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.eps)
    return (xhat * self.weight).type_as(x)
"""


class TestEqual:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("source", SOURCES)
    def test_a_migrated_class_computes_what_it_did(self, source, dtype):
        text, name = SOURCES[source]
        after = migrated(HEAD + text)
        assert "rmsnorm.rms_norm(" in after and "rsqrt" not in after
        norms = [executed(each, name)(N).to(dtype) for each in (HEAD + text, after)]
        nn.init.normal_(norms[0].weight, mean=0.5)
        norms[1].load_state_dict(norms[0].state_dict())
        inputs = [rows(dtype).requires_grad_()]
        inputs.append(inputs[0].detach().clone().requires_grad_())
        outputs = [norm(x) for norm, x in zip(norms, inputs, strict=True)]
        assert_close(outputs[1], outputs[0], dtype)
        dy = torch.randn(outputs[0].shape).to(dtype)
        for y in outputs:
            y.backward(dy)
        got, expected = inputs[1].grad.double(), inputs[0].grad.double()
        assert (got - expected).norm() <= 8 * torch.finfo(dtype).eps * expected.norm()

    def test_a_norm_without_scale_keeps_its_condition(self):
        text, name = SOURCES["Gemma3nRMSNorm"]
        before, after = (executed(each, name) for each in (HEAD + text, migrated(HEAD + text)))
        x = rows(torch.float32)
        assert_close(after(N, with_scale=False)(x), before(N, with_scale=False)(x), x.dtype)

    def test_a_migrated_function_computes_what_it_did(self):
        text = HEAD + (
            "def norm(x, weight, eps=1e-5):\n"
            "    dtype = x.dtype\n"
            "    x = x.float()\n"
            "    x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)\n"
            "    return x.to(dtype) * weight\n"
        )
        after = migrated(text)
        assert 'return rmsnorm.rms_norm(x, weight, eps, rounding="before_gamma")' in after
        x, weight = rows(torch.bfloat16), torch.randn(N).bfloat16()
        got, expected = (executed(each, "norm")(x, weight) for each in (after, text))
        assert_close(got, expected, torch.bfloat16)

    def test_a_migrated_expression_computes_what_it_did(self):
        text = HEAD + (
            "def attention(q, k):\n"
            "    q = q.float() * torch.rsqrt(\n"
            "        q.float().pow(2).mean(-1, keepdim=True) + 1e-6\n"
            "    )  # per head\n"
            "    return q @ k\n"
        )
        after = migrated(text)
        assert "    q = rmsnorm.rms_norm(q, out_dtype=torch.float32)  # per head\n" in after
        q, k = rows(torch.bfloat16), torch.randn(N, 3)
        got, expected = (executed(each, "attention")(q, k) for each in (after, text))
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


class TestText:
    def test_torch_npu_is_what_the_operator_page_says(self):
        after = migrated(HEAD + PAGE, Target.TORCH_NPU)
        head = HEAD.replace("import torch\n", "import torch\nimport torch_npu\n", 1)
        assert after == head + PAGE_AFTER

    def test_torch_npu_adds_the_offset_to_gamma(self):
        text = HEAD + SOURCES["GemmaRMSNorm"][0]
        after = migrated(text, Target.TORCH_NPU)
        assert "npu_rms_norm(x, 1.0 + self.weight, epsilon=self.eps)[0]" in after
        (item,) = rewrite(text, Target.TORCH_NPU).items
        assert "rounded to gamma's dtype" in item.notes[-1]

    def test_torch_npu_notes_that_it_rounds_once(self):
        (item,) = rewrite(HEAD + PAGE, Target.TORCH_NPU).items
        assert item.notes[-1].startswith("torch_npu rounds once, at the end")

    @pytest.mark.parametrize(
        "source, reason",
        [
            ("Gemma3nRMSNorm", "this has one only if self.with_scale"),
            ("def norm(x):\n    return F.rms_norm(x, x.shape[-1:], eps=1e-6)\n", "this has none"),
        ],
    )
    def test_torch_npu_leaves_a_norm_without_gamma(self, source, reason):
        text = HEAD + SOURCES.get(source, (source,))[0]
        (item,) = rewrite(text, Target.TORCH_NPU).items
        assert item.code is Code.RN107 and reason in item.text
        assert migrated(text, Target.TORCH_NPU) == text

    def test_docstring_checks_and_their_comments_stay(self):
        forward = '''\
def forward(self, x):  # of a layer
    """Normalizes."""  # well

    # only rows
    if x.dim() < 2:
        raise ValueError("x")  # why
    assert x.shape[-1] > 1

    # upcast
    xhat = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.eps)
    return (xhat * self.weight).type_as(x)  # downcast

# after
'''
        after = forward.replace(
            forward[forward.index("    # upcast") : forward.index("\n# after")],
            "    return rmsnorm.rms_norm(x, self.weight, self.eps)\n",
        )
        imported = HEAD.replace("import torch\n", "import torch\nimport rmsnorm\n", 1)
        assert migrated(norm_class(forward)) == norm_class(after).replace(HEAD, imported)

    def test_a_one_line_function_stays_one(self):
        text = HEAD + "def norm(x): 'Norm.'; return F.rms_norm(x, x.shape[-1:], eps=1e-5)\n"
        assert migrated(text).endswith(
            "def norm(x): 'Norm.'; return rmsnorm.rms_norm(x, epsilon=1e-05)\n"
        )

    def test_a_wide_call_is_broken_as_black_does(self):
        after = migrated(HEAD + SOURCES["LlamaRMSNorm"][0])
        assert (
            "        return rmsnorm.rms_norm(\n"
            "            hidden_states, self.weight, self.variance_epsilon, "
            'rounding="before_gamma"\n'
            "        )\n"
        ) in after

    @pytest.mark.parametrize("end", ["\r\n", "\r"], ids=["CRLF", "CR"])
    def test_a_call_over_several_lines_has_the_line_ends_of_the_file(self, end):
        text = HEAD + SOURCES["LlamaRMSNorm"][0]
        assert migrated(text.replace("\n", end)) == migrated(text).replace("\n", end)

    def test_tabs_stay_tabs(self):
        text = norm_class(FORWARD).replace("    ", "\t")
        after = migrated(text)
        assert "\n\t\treturn rmsnorm.rms_norm(x, self.weight, self.eps)\n" in after
        assert "    " not in after

    @pytest.mark.parametrize("source", SOURCES)
    def test_what_is_migrated_has_nothing_more_to_migrate(self, source):
        for target in Target:
            once = migrated(HEAD + SOURCES[source][0], target)
            assert migrated(once, target) == once
