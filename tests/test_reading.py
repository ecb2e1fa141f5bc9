"""Reading a source says what a norm computes, without running it."""

import inspect
import itertools

import pytest
import torch
from torch import nn

import lookalikes
from lookalikes import IN_16_BITS, LOOKALIKES, READER_ONLY
from norms import NORMS, every_norm
from operands import DTYPES
from rmsnorm.evidence import find_forms
from rmsnorm.forms import Form
from rmsnorm.probe import Probe, neutral_state
from rmsnorm.forms import NotRmsNorm
from rmsnorm.reading.finding import Cause, Kind
from rmsnorm.reading.live import read
from rmsnorm.reading.source import find
from rmsnorm.reading.values import Unknown

HEAD = "import torch\nimport torch.nn.functional as F\nfrom torch import nn\n"


def name(dtype):
    return str(dtype).removeprefix("torch.")


def describe(text):
    """The one finding of a text."""
    (finding,) = find(HEAD + text)
    return finding


def function(body, arguments="x, weight, eps"):
    return describe(f"def norm({arguments}):\n    {body}\n")


class TestModules:
    @every_norm
    @pytest.mark.parametrize("dtypes", itertools.product(DTYPES, DTYPES), ids=str)
    def test_what_is_read_is_what_the_probes_confirm(self, name_of_dtype, dtypes):
        pass
