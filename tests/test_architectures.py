"""Every architecture of transformers with an RMSNorm gives the same results after rmsnorm.patch."""

import functools
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import logging

from architectures.choices import Choices
from architectures.compare import compare
from architectures.known import NOT_BUILT, WITHOUT
from architectures.models import NotBuilt, mentions_norm, tiny_model, with_model, with_norm_class
from architectures.plain import is_plain
from architectures.table import share_replaced
from lookalikes import divisor, scale
from norms import NORMS, N, make
from rmsnorm.patch import patch, unpatch

logging.set_verbosity_error()

MODEL_TYPES = sorted(name for name in with_model() if mentions_norm(name))
# Every second folder that defines a norm, for the time it takes; `make migrate-table` compares all.
BUILT = [name for name in with_norm_class() if name not in NOT_BUILT and name not in WITHOUT]
COMPARED = BUILT[::2]
compared = functools.cache(compare)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)  # the models are tiny


class TestArchitectures:
    @pytest.mark.parametrize("model_type", COMPARED)
    def test_every_norm_is_classified_and_all_results_agree(self, model_type):
        found = compared(model_type)
        assert found is not None, "no RMSNorm among its modules"
        assert found.broken == []

    def test_of_the_plain_norms_95_percent_are_replaced(self):
        found = [one for name in COMPARED if (one := compared(name)) is not None]
        assert share_replaced(found) >= 0.95

    @pytest.mark.parametrize("model_type", NOT_BUILT)
    def test_what_is_said_not_to_be_built_is_not(self, model_type):
        with pytest.raises(NotBuilt):
            compare(model_type)

    @pytest.mark.parametrize("model_type", WITHOUT)
    def test_what_is_said_to_have_no_norm_has_none(self, model_type):
        assert compare(model_type) is None


class TestPlain:
    @pytest.mark.parametrize("name", [name for name in NORMS if "axes" not in name])
    def test_a_norm_is_plain(self, name):
        assert is_plain(make(name)[0])

    @pytest.mark.parametrize(
        "look_alike",
        [
            divisor.MeanSubtractedNorm,
            divisor.PartialNorm,
            divisor.MeanAbsoluteNorm,
            divisor.OverRowsNorm,
            scale.ScaleBeforeNorm,
            scale.ConstantBiasNorm,
        ],
    )
    def test_a_norm_of_another_kind_is_not(self, look_alike):
        assert not is_plain(look_alike(N))

    def test_other_modules_are_not(self):
        for module in (nn.LayerNorm(8), nn.Identity(), nn.Linear(8, 8), nn.Tanh(), nn.Softmax(-1)):
            assert not is_plain(module)


class TestComparison:
    """What is wrong is noticed: each of these breaks a norm that patch makes, and no other."""

    @pytest.mark.parametrize(
        ("wrong", "noticed"),
        [
            (lambda y: y * (1 + 2.0**-15), "the bound of one norm"),
            (lambda y: y + 1e-3, "as far as rounding leads"),
            (lambda y: torch.cat([y[:1] * 1.01, y[1:]]), "apart, at most"),
        ],
    )
    def test_a_wrong_norm_is_noticed(self, monkeypatch, wrong, noticed):
        handles = []

        def patch_wrongly(model):
            report = patch(model)
            for norm in report.replaced:
                module = model.get_submodule(norm.name)
                handles.append(module.register_forward_hook(lambda module, args, y: wrong(y)))
            return report

        def unpatch_again(model):
            for handle in handles:
                handle.remove()
            unpatch(model)

        monkeypatch.setattr("architectures.compare.patch", patch_wrongly)
        monkeypatch.setattr("architectures.compare.unpatch", unpatch_again)
        assert any(noticed in text for text in compare("llama").broken)

    def test_choices_are_made_again(self):
        choices = Choices()
        x = torch.tensor([1.0, 2.0, 3.0])
        with choices:
            _, places = x.topk(2)
        choices.replay()
        with choices:
            again, same_places = (4 - x).topk(2)
        assert places.tolist() == same_places.tolist() == [2, 1]
        assert again.tolist() == [1.0, 2.0]

    def test_a_tiny_model_is_always_the_same(self):
        first, second = (tiny_model("llama").state_dict() for _ in range(2))
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_page_lists_every_architecture():
    page = (Path(__file__).parent.parent / "docs" / "architectures.md").read_text()
    rows = {line.split(" | ")[0].removeprefix("| ") for line in page.split("\n")}
    assert set(MODEL_TYPES) - set(WITHOUT) <= rows
