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
        imported = HEAD.replace("import torch\n", "import rmsnorm\nimport torch\n", 1)
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


class TestHelpers:
    HELPER = """\
# the norm itself
def _norm(self, x):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)

"""
    CALL = "def forward(self, x):\n    return self._norm(x.float()).type_as(x) * self.weight\n"

    def test_a_helper_goes_with_its_comment(self):
        after = migrated(norm_class(self.CALL, self.HELPER))
        assert "_norm(self" not in after and "# the norm itself" not in after

    @pytest.mark.parametrize(
        "use",
        [
            "\n\ndef other(norm, x):\n    return norm._norm(x)\n",
            "\n\nname = '_norm'\n",
            "\n\n    def extra(self, x):\n        return self._norm(x)\n",
            "\n\nclass Heir(Norm):\n    def extra(self, x):\n        return self._norm(x)\n",
        ],
        ids=["by an object", "by a string", "by a method", "by an heir"],
    )
    def test_a_helper_that_is_used_otherwise_stays(self, use):
        after = migrated(norm_class(self.CALL, self.HELPER) + use)
        assert "def _norm(self, x):" in after
        assert migrated(after) == after

    def test_a_helper_that_stays_is_rewritten_as_a_norm_of_its_own(self):
        helper = self.HELPER.replace("x.pow", "x.float().pow").replace("x * ", "x.float() * ")
        text = norm_class(self.CALL, helper) + "\n\ndef other(norm, x):\n    return norm._norm(x)\n"
        late = rewrite(text, Target.RMSNORM).items[-1]
        assert (late.code, late.name) == (Code.RN003, "_norm")
        assert "found once the others are rewritten" in late.notes[-1]

    def test_two_classes_with_a_helper_of_the_same_name_lose_both(self):
        text = norm_class(self.CALL, self.HELPER)
        after = migrated(text + "\n\n" + text[len(HEAD) :].replace("class Norm", "class Other"))
        assert after.count("rmsnorm.rms_norm(") == 2
        assert "_norm(self" not in after

    def test_a_class_whose_heir_overrides_a_helper_is_left(self):
        text = norm_class(self.CALL, self.HELPER)
        text += "\n\nclass Heir(Norm):\n    def _norm(self, x):\n        return x\n"
        (item,) = rewrite(text, Target.RMSNORM).items
        assert item.code is Code.RN107
        assert item.text.endswith("Heir overrides _norm, which forward calls")
        assert migrated(text) == text


class TestLeft:
    @pytest.mark.parametrize(
        "mark",
        [
            ("class Norm(nn.Module):", "class Norm(nn.Module):  # rmsnorm: skip"),
            ("class Norm(nn.Module):", "# rmsnorm: skip\nclass Norm(nn.Module):"),
            ("def forward(self, x):", "def forward(self, x):  # rmsnorm: skip"),
            ("    def forward(self, x):", "    # rmsnorm: skip\n    def forward(self, x):"),
        ],
        ids=["class", "above class", "def", "above def"],
    )
    def test_a_class_is_skipped_where_a_comment_asks(self, mark):
        text = norm_class(FORWARD)
        assert codes(text) == ["RN001"]
        assert codes(text.replace(*mark)) == ["RN201"]
        assert migrated(text.replace(*mark)) == text.replace(*mark)

    @pytest.mark.parametrize("mark", ["{}  # rmsnorm: skip", "# rmsnorm: skip\n    {}"])
    def test_an_expression_is_skipped_where_a_comment_asks(self, mark):
        line = "return a + q.float() * torch.rsqrt(q.float().pow(2).mean(-1, keepdim=True) + 1e-6)"
        text = f"import torch\ndef f(a, q):\n    {line}\n"
        assert codes(text) == ["RN003"]
        skipped = text.replace(line, mark.format(line))
        assert codes(skipped) == ["RN201"]
        assert migrated(skipped) == skipped

    def test_a_script_function_is_left(self):
        text = (
            HEAD
            + "@torch.jit.script\n"
            + FORWARD.replace("self, x", "x, weight, eps").replace("self.", "")
        )
        assert codes(text) == ["RN107"]
        assert migrated(text) == text

    def test_checks_between_other_statements_are_not_lost(self):
        forward = FORWARD.replace("    return", "    assert x.dim() > 1\n    return")
        text = norm_class(forward)
        assert codes(text) == ["RN107"]
        assert migrated(text) == text

    def test_checks_of_a_helper_are_not_lost(self):
        helper = TestHelpers.HELPER.replace("    return", "    assert x.dim() > 1\n    return")
        text = norm_class(TestHelpers.CALL, helper)
        assert codes(text) == ["RN107"]
        assert migrated(text) == text

    def test_another_formula_is_left_with_its_reason(self):
        text = norm_class(FORWARD.replace(".mean(", ".sum("))
        (item,) = rewrite(text, Target.RMSNORM).items
        assert (item.code, item.replacement) == (Code.RN101, None)
        assert item.text
        assert migrated(text) == text


class TestImports:
    @pytest.mark.parametrize(
        "head, expected",
        [
            ("import torch\n", "import rmsnorm\nimport torch\n"),
            ("import rmsnorm\nimport torch\n", "import rmsnorm\nimport torch\n"),
            (
                '"""Doc."""\nfrom __future__ import annotations\nimport torch\n',
                '"""Doc."""\nfrom __future__ import annotations\nimport rmsnorm\nimport torch\n',
            ),
            (
                "from torch import nn\nimport math; import torch as t  # t\nx = 1\nimport torch\n",
                "from torch import nn\nimport math; import torch as t  # t\nimport rmsnorm\n"
                "x = 1\nimport torch\n",
            ),
            (
                "from torch import nn; import math  # both\nx = 1\nimport torch\n",
                "from torch import nn; import math  # both\nimport rmsnorm\nx = 1\nimport torch\n",
            ),
            ("import rmsnorm as rn\nimport torch\n", "import rmsnorm as rn\nimport torch\n"),
            (
                "from . import rmsnorm\nimport torch\n",
                "from . import rmsnorm\nimport rmsnorm as fused_rmsnorm\nimport torch\n",
            ),
            (
                "from .rmsnorm import rmsnorm\nimport torch\n",
                "from .rmsnorm import rmsnorm\nimport rmsnorm as fused_rmsnorm\nimport torch\n",
            ),
            (
                "import torch\ndef rmsnorm(x): return x\n",
                "import rmsnorm as fused_rmsnorm\nimport torch\ndef rmsnorm(x): return x\n",
            ),
        ],
    )
    def test_the_import_is_added_once_among_the_others(self, head, expected):
        norm = (
            "def norm(x, weight, eps):\n"
            "    x = x.float()\n"
            "    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps) * weight\n"
        )
        after = migrated(head + norm)
        assert after.startswith(expected + "def norm(x, weight, eps):\n    return ")
        name = (
            "fused_rmsnorm" if "fused" in expected else "rn" if "as rn" in expected else "rmsnorm"
        )
        assert f" {name}.rms_norm(" in after

    def test_a_file_without_imports_gets_one_before_its_code(self):
        text = "# head\n\ndef norm(x, w, eps):\n    x = x.float()\n"
        text += "    return x * ((x * x).mean(-1, keepdim=True) + eps) ** -0.5 * w\n"
        after = migrated(text)
        assert after.startswith("# head\n\nimport rmsnorm\nimport torch\n\n\ndef norm")


NPU = {
    "module": ("import torch_npu\n", "torch_npu.npu_rms_norm"),
    "alias": ("import torch_npu as npu\n", "npu.npu_rms_norm"),
    "function": ("from torch_npu import npu_rms_norm\n", "npu_rms_norm"),
    "renamed function": ("from torch_npu import npu_rms_norm as fused\n", "fused"),
    "operator": ("import torch_npu\n", "torch.ops.npu.npu_rms_norm"),
    "overload": ("import torch_npu\n", "torch.ops.npu.npu_rms_norm.default"),
}


class TestFromTorchNpu:
    @pytest.mark.parametrize("way", NPU)
    def test_every_way_to_call_it_becomes_a_call_that_runs_here(self, way):
        imported, function = NPU[way]
        text = (
            f"import torch\n{imported}def f(x, w):\n    return {function}(x, w, epsilon=1e-5)[0]\n"
        )
        after = migrated(text)
        assert after == (
            "import rmsnorm\nimport torch\ndef f(x, w):\n"
            "    return rmsnorm.npu_rms_norm(x, w, epsilon=1e-5)[0]\n"
        )
        assert codes(text) == ["RN004"]
        x, w = rows(torch.float32), torch.ones(N)
        expected = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)
        assert_close(executed(after, "f")(x, w), expected, x.dtype)

    def test_the_gradient_moves_too(self):
        text = "import torch_npu\ng = torch_npu.npu_rms_norm_backward(dy, x, w, rstd)\n"
        assert (
            migrated(text) == "import rmsnorm\ng = rmsnorm.npu_rms_norm_backward(dy, x, w, rstd)\n"
        )

    @pytest.mark.parametrize("name", ["input", "x"])
    def test_a_name_that_rmsnorm_does_not_take_is_changed(self, name):
        text = f"import torch_npu\ny = torch_npu.npu_rms_norm(gamma=w, {name}=a)\n"
        assert migrated(text).endswith("y = rmsnorm.npu_rms_norm(gamma=w, self=a)\n")

    @pytest.mark.parametrize(
        "rest",
        [
            "x = x.to('npu:0')\n",
            "torch.npu.synchronize()\n",
            "y = torch_npu.npu_swiglu(x)\n",
            "if torch_npu is None:\n    pass\n",
        ],
    )
    def test_the_import_stays_where_an_npu_is_used_otherwise(self, rest):
        text = "import torch\nimport torch_npu\ny = torch_npu.npu_rms_norm(x, w)\n" + rest
        after = migrated(text)
        assert "import torch_npu\n" in after
        assert after.endswith("y = rmsnorm.npu_rms_norm(x, w)\n" + rest)

    def test_the_last_import_stays_where_an_npu_is_used_otherwise(self):
        text = "from torch_npu import npu_rms_norm\ny = npu_rms_norm(x.to('npu'), w)\n"
        assert migrated(text) == "from torch_npu import npu_rms_norm\nimport rmsnorm\n" + (
            "y = rmsnorm.npu_rms_norm(x.to('npu'), w)\n"
        )

    def test_other_names_of_the_import_stay(self):
        text = "from torch_npu import (  # all\n    npu_swiglu,\n    npu_rms_norm,  # ours\n)\n"
        text += "y = npu_rms_norm(npu_swiglu(x), w)\n"
        after = migrated(text)
        assert "npu_swiglu" in after.split("y =")[0] and "npu_rms_norm" not in after.split("y =")[0]
        assert after.endswith("y = rmsnorm.npu_rms_norm(npu_swiglu(x), w)\n")

    def test_a_guarded_import_stays(self):
        text = "try:\n    import torch_npu\nexcept ImportError:\n    pass\n"
        text += "y = torch_npu.npu_rms_norm(x, w)\n"
        assert migrated(text) == "import rmsnorm\n" + "\n\n" + text.replace(
            "torch_npu.npu_rms", "rmsnorm.npu_rms"
        )

    def test_a_name_that_the_file_also_gives_away_is_left(self):
        text = "from torch_npu import npu_rms_norm\ndef f(npu_rms_norm):\n    npu_rms_norm(x, w)\n"
        assert migrated(text) == text
        assert codes(text) == ["RN107"]

    def test_a_skipped_call_keeps_its_import(self):
        text = "import torch_npu\ny = torch_npu.npu_rms_norm(x, w)  # rmsnorm: skip\n"
        assert migrated(text) == text
        assert codes(text) == ["RN201"]

    def test_the_page_s_class_there_and_back_rounds_once(self):
        there = migrated(HEAD + PAGE, Target.TORCH_NPU)
        back = migrated(there)
        assert "return rmsnorm.npu_rms_norm(x, self.weight, epsilon=self.eps)[0]" in back
        assert "torch_npu" not in back
