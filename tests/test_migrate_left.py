"""rmsnorm migrate: what is left as it is, and why; the helpers of what isn't."""

import pytest

from rmsnorm.migrate.call import Target
from rmsnorm.migrate.codes import Code
from rmsnorm.migrate.rewrite import rewrite
from test_migrate import FORWARD, HEAD, codes, migrated, norm_class

OVERRIDE = "def _norm(self, x):\n        return x\n"


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

    def test_a_removed_helper_is_named(self):
        (item,) = rewrite(norm_class(self.CALL, self.HELPER), Target.RMSNORM).items
        assert item.notes[0].startswith("the method _norm is removed")

    @pytest.mark.parametrize("name", ["norm", "__norm", "__norm__"])
    def test_a_helper_that_another_file_may_use_stays(self, name):
        text = norm_class(self.CALL, self.HELPER).replace("_norm(", f"{name}(")
        assert f"def {name}(self, x):" in migrated(text)
        if name == "norm":
            item = rewrite(text, Target.RMSNORM).items[0]
            assert item.notes[0] == (
                "forward doesn't call norm any more, which another file might override"
            )

    def test_two_classes_with_a_helper_of_the_same_name_lose_both(self):
        text = norm_class(self.CALL, self.HELPER)
        after = migrated(text + "\n\n" + text[len(HEAD) :].replace("class Norm", "class Other"))
        assert after.count("rmsnorm.rms_norm(") == 2
        assert "_norm(self" not in after

    @pytest.mark.parametrize(
        "rest, reason",
        [
            (f"class Heir(Norm):\n    {OVERRIDE}", "Heir overrides _norm, which forward calls"),
            (
                f"class Mix:\n    {OVERRIDE}\n\nclass Heir(Mix, Norm):\n    pass\n",
                "Mix overrides _norm, which forward calls",
            ),
            (
                f"class Top:\n    {OVERRIDE}\n\nclass Mix(Top):\n    pass\n\n"
                "class Heir(Mix, Norm):\n    pass\n",
                "Top overrides _norm, which forward calls",
            ),
            (
                f"Base = Norm\n\nclass Heir(Base):\n    {OVERRIDE}",
                "Heir overrides _norm, which forward calls",
            ),
            (
                f"class Heir(Norm):\n    {OVERRIDE}\n    def forward(self, x):\n"
                "        return super().forward(x)\n",
                "Heir overrides _norm, which forward calls",
            ),
            (
                "from other import Mix\n\nclass Heir(Mix, Norm):\n    pass\n",
                "Heir inherits from Mix, too, which isn't in the file",
            ),
            ('Heir = type("Heir", (Mix, Norm), {})\n', "type() makes an heir of Norm"),
            (
                "def change(norm):\n    norm._norm = abs\n",
                "the file assigns to _norm, which forward calls",
            ),
            (
                "class Heir(Norm):\n    def __init__(self):\n"
                "        self.weight = nn.Parameter(torch.ones(2, 64))\n",
                "Heir sets weight, which forward reads",
            ),
            ("class Heir(Norm[int]):\n    eps = 1\n", "Heir sets eps, which forward reads"),
        ],
        ids=[
            "a method",
            "a mixin",
            "a mixin's base",
            "another name",
            "super",
            "an unseen mixin",
            "type()",
            "from outside",
            "gamma",
            "epsilon",
        ],
    )
    def test_a_class_whose_heir_may_change_what_forward_reads_is_left(self, rest, reason):
        text = norm_class(self.CALL, self.HELPER) + "\n\n" + rest
        item = rewrite(text, Target.RMSNORM).items[0]
        assert item.code is Code.RN107
        assert item.text.endswith(reason)
        assert "return self._norm(x.float()).type_as(x) * self.weight" in migrated(text)

    def test_an_expression_whose_factor_an_heir_sets_is_left(self):
        method = FORWARD.replace("forward", "scaled").replace("    return (", "    return 1 + (")
        text = norm_class(method)
        heir = "\n\nclass Heir(Norm):\n    def __init__(self):\n        self.eps = 1\n"
        assert set(codes(text)) == {"RN003"}
        assert set(codes(text + heir)) == {"RN107"}

    @pytest.mark.parametrize(
        "rest",
        [
            "class Heir(Norm):\n    def extra(self, x):\n        return x\n",
            "class Layer:\n    def __init__(self):\n        self._norm = Norm(64)\n",
            "class Mix:\n    eps = 1\n\nclass Heir(Norm, Mix):\n    pass\n",
            "class Heir(Norm):\n    eps = 1\n    def forward(self, x):\n        return x\n",
        ],
        ids=[
            "adds a method",
            "another's attribute",
            "a mixin that comes later",
            "a forward of its own",
        ],
    )
    def test_a_class_whose_heir_changes_nothing_is_rewritten(self, rest):
        after = migrated(norm_class(self.CALL, self.HELPER) + "\n\n" + rest)
        assert "return rmsnorm.rms_norm(" in after


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

    ROW = "    y = q.float() * torch.rsqrt(q.float().pow(2).mean(-1, keepdim=True) + 1e-6)\n"

    @pytest.mark.parametrize(
        "text",
        [
            "def f(q):  # rmsnorm: skip\n{}",
            "# rmsnorm: skip\n@wrapped\ndef f(q):\n{}",
            "@wrapped  # rmsnorm: skip\ndef f(q):\n{}",
            "def f(\n    q,\n):  # rmsnorm: skip\n{}",
            "def f(q):\n    # rmsnorm: skip\n    y = (\n        1,\n    {}    )\n",
            "def f(q):\n    y = (\n        1,\n    {}    )  # rmsnorm: skip\n",
            "def outer():  # rmsnorm: skip\n  def f(q):\n{}",
            "class C:  # rmsnorm: skip\n  def f(self, q):\n{}",
        ],
        ids=[
            "def",
            "above the decorator",
            "decorator",
            "end of the signature",
            "above the statement",
            "end of the statement",
            "outer def",
            "class",
        ],
    )
    def test_an_expression_is_skipped_where_the_statement_or_what_is_around_asks(self, text):
        row = self.ROW.replace("y = ", "") if "y = (" in text else self.ROW
        text = "import torch\n" + text.format(row) + "    return y, q\n"
        assert codes(text.replace("skip", "keep")) == ["RN003"]
        assert codes(text) == ["RN201"]
        assert migrated(text) == text

    @pytest.mark.parametrize(
        "line",
        [
            "    # rmsnorm: skip-not\n",
            '    """# rmsnorm: skip"""\n',
            "    a = '# rmsnorm: skip'\n",
            "    a = 1  # rmsnorm: skip\n",
        ],
        ids=["another word", "a docstring", "a string", "another statement"],
    )
    def test_what_only_looks_like_the_comment_skips_nothing(self, line):
        text = "import torch\ndef f(q):\n" + line + self.ROW + "    return y, q\n"
        assert codes(text) == ["RN003"]

    def test_a_class_is_skipped_where_its_helper_asks(self):
        helper = TestHelpers.HELPER.replace("    return", "    # rmsnorm: skip\n    return")
        text = norm_class(TestHelpers.CALL, helper)
        assert migrated(text) == text

    @pytest.mark.parametrize(
        "rest",
        [
            "script = torch.jit.script(Norm(64))\n",
            "norm = Norm(64)\nscript = torch.jit.script(norm)\n",
            "from torch.jit import script as compiled\nf = compiled(Norm(64))\n",
            "import torch.jit as tj\ntraced = tj.trace(Norm(64), torch.ones(64))\n",
            "def save(model):\n    torch.jit.script(model).save('a')\n",
            "class Layer(nn.Module):\n    def __init__(self):\n        self.norm = Norm(64)\n\n"
            "torch.jit.script(Layer())\n",
            "class Layer(torch.jit.ScriptModule):\n    def __init__(self):\n"
            "        self.norm = Norm(64)\n",
            "fuse = torch.jit.script\n\n@fuse\ndef f(x, norm: Norm):\n    return norm(x)\n",
        ],
        ids=["call", "name", "alias", "trace", "unknown", "layer", "module", "decorator"],
    )
    def test_a_class_that_torch_jit_compiles_is_left(self, rest):
        text = norm_class(FORWARD) + "\n\n" + rest
        assert codes(text) == ["RN107"]
        assert migrated(text) == text

    def test_a_class_beside_what_torch_jit_compiles_is_rewritten(self):
        text = norm_class(FORWARD) + "\n\n@torch.jit.script\ndef f(x):\n    return x + 1\n"
        assert codes(text) == ["RN001"]

    @pytest.mark.parametrize("name", ["torch.jit.script", "torch.jit.script_if_tracing"])
    def test_an_expression_in_a_script_function_is_left(self, name):
        text = f"import torch\n@{name}\ndef f(q):\n{self.ROW}    return y, q\n"
        assert codes(text) == ["RN107"]
        assert migrated(text) == text

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
