"""rmsnorm migrate: what is left as it is, and why; the helpers of what isn't."""

import pytest

from rmsnorm.migrate.call import Target
from rmsnorm.migrate.codes import Code
from rmsnorm.migrate.rewrite import rewrite
from test_migrate import FORWARD, HEAD, codes, migrated, norm_class


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
