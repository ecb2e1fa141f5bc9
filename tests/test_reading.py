"""Reading a source says what a norm computes, and running it on probe rows agrees."""

import inspect
from pathlib import Path

import pytest
import tomllib
import torch

import lookalikes
from lookalikes import IN_16_BITS, LOOKALIKES, READER_ONLY
from lookalikes.scale import BiasNorm  # patch leaves what holds two parameters, before it runs it
from norms import NORMS, N, every_norm, make
from operands import DTYPES
from rmsnorm.forms import Form, NotRmsNorm
from rmsnorm.probe import Probe, neutral_state
from rmsnorm.reading.finding import Cause, Kind
from rmsnorm.reading.live import read
from rmsnorm.reading.source import find
from rmsnorm.reading.values import Unknown

READINGS = tomllib.loads((Path(__file__).parent / "readings.toml").read_text())
HEAD = "import math\nimport torch\nimport torch.nn.functional as F\nfrom torch import nn, rsqrt\n"
every_pair = pytest.mark.parametrize("x_dtype", DTYPES, ids=lambda dtype: "x_" + str(dtype)[6:])


def name_of(dtype):
    return str(dtype).removeprefix("torch.")


def only(text):
    """The one finding of a text."""
    (finding,) = find(HEAD + text)
    return finding


def function(body, arguments="x, weight, eps"):
    return only(f"def norm({arguments}):\n" + "".join(f"    {line}\n" for line in body.split("; ")))


def norm_class(forward, init="self.weight = nn.Parameter(torch.ones(n))", argument="x"):
    lines = "".join(f"        {line}\n" for line in forward.split("\n"))
    return only(
        "class SomeNorm(nn.Module):\n"
        "    def __init__(self, n, eps=1e-6):\n"
        "        super().__init__()\n"
        f"        {init}\n"
        "        self.eps = eps\n"
        f"    def forward(self, {argument}):\n{lines}"
    )


def probe(module, x_dtype, gamma_dtype):
    (name, _), *_ = [*module.named_parameters(), (None, None)]
    return Probe(module, name, x_dtype, None if name is None else gamma_dtype)


class TestModules:
    @every_norm
    @every_pair
    @pytest.mark.parametrize("gamma_dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
    def test_the_probes_confirm_what_is_read_and_nothing_where_nothing_is(
        self, name, x_dtype, gamma_dtype
    ):
        module = make(name, gamma_dtype)[0]
        _, _, gamma_offset, epsilon = NORMS[name]
        gamma = next((name for name, _ in module.named_parameters()), None)
        meaning = read(module, name_of(x_dtype), name_of(gamma_dtype))
        if isinstance(meaning, Unknown):
            for rounding in ("once", "before_gamma"):
                with neutral_state(), pytest.raises(NotRmsNorm):
                    seen = probe(module, x_dtype, gamma_dtype)
                    seen.confirm([Form(gamma, epsilon, gamma_offset, rounding, seen.y.dtype)])
            return
        out_dtype = getattr(torch, meaning.out_dtype)
        form = Form(gamma, epsilon, gamma_offset, meaning.rounding, out_dtype)
        with neutral_state():
            assert probe(module, x_dtype, gamma_dtype).confirm([form]) == form
        assert meaning.gamma_offset == gamma_offset
        assert meaning.epsilon.value == (None if name == "torch, no eps" else epsilon)

    @pytest.mark.parametrize("look_alike", (*LOOKALIKES, *READER_ONLY))
    def test_a_look_alike_is_read_as_none(self, look_alike):
        for dtype in DTYPES:
            assert isinstance(read(look_alike(N), name_of(dtype), name_of(dtype)), Unknown)

    @pytest.mark.parametrize("look_alike", IN_16_BITS)
    def test_a_look_alike_that_rounds_too_often_is_read_as_that(self, look_alike):
        found = read(look_alike(N), "bfloat16", "bfloat16")
        assert found.cause == Cause.OTHER_ROUNDING and "to bfloat16" in found.reason

    @pytest.mark.parametrize("look_alike", [norm for norm in LOOKALIKES if norm is not BiasNorm])
    @pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
    def test_the_probes_alone_tell_a_look_alike(self, look_alike, dtype):
        module = look_alike(N).to(dtype)
        with neutral_state(), pytest.raises(NotRmsNorm):
            seen = probe(module, dtype, dtype)
            seen.confirm(
                [
                    Form("weight", "eps", offset, rounding, seen.y.dtype)
                    for offset in (0.0, 1.0)
                    for rounding in ("once", "before_gamma")
                ]
            )


class _GroupedNorm(torch.nn.Module):
    """Over groups, where their size is given."""

    def __init__(self, group_size):
        super().__init__()
        self.group_size = group_size

    def forward(self, x):
        h = x.float()
        if self.group_size is not None:
            h = h.unflatten(-1, (-1, self.group_size))
        return (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def test_an_attribute_of_a_module_decides_a_branch():
    assert not isinstance(read(_GroupedNorm(None), "float32", "float32"), Unknown)
    assert read(_GroupedNorm(8), "float32", "float32").cause == Cause.GROUPED


class TestReadings:
    """Sources of a file of their own: what Python and PyTorch make of names, tensors and shapes."""

    @pytest.mark.parametrize("case", READINGS["left"], ids=lambda case: case["name"])
    def test_what_is_almost_a_norm_is_left(self, case):
        assert [found.name for found in find(HEAD + case["source"]) if found.description] == []

    @pytest.mark.parametrize("case", READINGS["read"], ids=lambda case: case["name"])
    def test_a_norm_is_read_as_people_write_it(self, case):
        assert [found.name for found in find(HEAD + case["source"]) if found.description] != []


class TestOddSources:
    @pytest.mark.parametrize(
        "text",
        [
            f"z = x * {10**400}",
            "z = (x * 0) ** -1 + (x * 1e200) ** 2",
            f"z = x ** ({'1 + ' * 800}1)",
            "z = x < x < x and [*x] or {**x}",
            "match x:\n        case [a, *b]: z = a",
            "async def z(): await x",
        ],
    )
    def test_a_norm_beside_something_odd_is_found(self, text):
        (found, *_) = find(
            f"{HEAD}def odd(x):\n    {text}\n    return z.mean() * torch.rsqrt(z)\n"
            "def norm(x, weight, eps):\n"
            "    return F.rms_norm(x, x.shape[-1:], weight, eps)\n"
        )
        assert found.name == "norm" and found.description is not None

    def test_many_norms_in_a_row_are_all_found(self):
        lines = "".join(
            f"    x{i + 1} = g((x{i}.float() * torch.rsqrt(x{i}.float().pow(2).mean(-1, True)"
            f" + 1e-6)).to(x{i}.dtype))\n"
            for i in range(150)
        )
        found = find(f"{HEAD}def f(x0, g):\n{lines}    return x150\n")
        assert len([each for each in found if each.description]) == 150


class TestFiles:
    @pytest.mark.parametrize("name", ["arithmetic", "behaviour", "divisor", "rare", "scale"])
    def test_nothing_in_a_file_of_look_alikes_is_a_norm(self, name):
        module = getattr(lookalikes, name)
        findings = find(inspect.getsource(module))
        assert [finding.name for finding in findings if finding.description] == []
        classes = [norm for norm in (*LOOKALIKES, *IN_16_BITS, *READER_ONLY)]
        names = [norm.__name__ for norm in classes if norm.__module__ == module.__name__]
        assert sorted(finding.name for finding in findings) == sorted(names)

    @pytest.mark.parametrize(
        "body",
        [
            "return x.float().mul(rsqrt(x.float().pow(2).mean(-1, True) + eps)).mul(weight).to(x)",
            "h = x.float(); r = (h * h).mean(dim=-1, keepdim=True).add(eps).sqrt()"
            "; return (h / r * weight).type_as(x)",
            "h = x.to(torch.float32); v = torch.mean(torch.square(h), axis=-1, keepdim=True)"
            "; return (weight * (h * (v + eps) ** -0.5)).to(dtype=x.dtype)",
            "h = x.float(); s = h.square().sum(-1, keepdim=True) / x.shape[-1]"
            "; return (h * (1 / torch.sqrt(s + eps)) * weight).to(x.dtype)",
            "h = x.float(); s = h.pow(2).mean(-1).unsqueeze(-1)"
            "; return (h * (s + eps).rsqrt() * weight).to(x.dtype)",
            "return F.rms_norm(x, x.shape[-1:], weight, eps)",
        ],
    )
    def test_one_formula_is_read_however_it_is_written(self, body):
        found = function(body)
        assert found.kind == Kind.FUNCTION and found.description is not None, found.reason
        described = found.description
        assert (described.x, described.gamma, described.epsilon) == ("x", "weight", "eps")
        assert (described.gamma_offset, described.rounding) == (0.0, "once")
        assert described.keeps_dtype and described.gamma_if is None

    def test_where_it_is_rounded_is_read(self):
        head = "h = x.float(); h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps)"
        before = function(f"{head}; return weight * h.to(x.dtype)").description
        assert (before.rounding, before.keeps_dtype) == ("before_gamma", True)
        assert [note[:32] for note in before.notes] == [
            "where x is 16-bit and weight flo",
            "where x and weight mix bfloat16 ",
            "weight must have one axis: the c",
        ]
        wide = function(f"{head}; return weight.float() * h").description
        assert (wide.rounding, wide.keeps_dtype, len(wide.notes)) == ("once", False, 1)

    def test_a_function_notes_that_its_weight_must_have_one_axis(self):
        (note,) = function("return F.rms_norm(x, x.shape[-1:], weight, eps)").description.notes
        assert note == "weight must have one axis: the call spans as many as it has"

    def test_an_epsilon_of_torch_that_may_be_none_is_left(self):
        forward = "return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)"
        assert norm_class(forward).description.epsilon == "self.eps"
        optional = HEAD + (
            "class SomeNorm(nn.Module):\n    def __init__(self, n, eps=None):\n"
            "        self.weight = nn.Parameter(torch.ones(n))\n        self.eps = eps\n"
            f"    def forward(self, x):\n        {forward}\n"
        )
        (found,) = find(optional)
        assert found.reason == "gives F.rms_norm self.eps, which may be None"

    def test_epsilon_and_offset_are_read(self):
        head = "h = x.float(); h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-5)"
        found = function(f"{head}; return (h * (1 + weight.float())).to(x.dtype)").description
        assert (found.epsilon, found.gamma_offset) == ("1e-05", 1.0)
        found = function(
            "h = x.float(); return (h / h.norm(dim=-1, keepdim=True)"
            " * math.sqrt(x.shape[-1])).to(x.dtype)",
            "x",
        ).description
        assert (found.epsilon, found.gamma) == ("0.0", None)

    def test_a_class_is_read_through_its_methods_and_bases(self):
        base = (
            "class Base(nn.Module):\n"
            "    def __init__(self, n):\n"
            "        self.weight = nn.Parameter(torch.ones(n))\n"
            "        self.eps = 1e-6\n"
            "    @staticmethod\n"
            "    def mean_square(h):\n"
            "        return h.pow(2).mean(-1, keepdim=True)\n"
            "    def normalized(self, h):\n"
            "        return h * torch.rsqrt(self.mean_square(h) + self.eps)\n"
        )
        found = only(
            f"{base}class Norm(Base):\n    def forward(self, x):\n"
            "        return (self.normalized(x.float()) * self.weight).to(x.dtype)\n"
        )
        assert (found.kind, found.name, found.span.line) == (Kind.CLASS, "Norm", 15)
        assert (found.description.gamma, found.description.epsilon) == ("self.weight", "self.eps")

    def test_a_scale_that_may_be_absent_is_told(self):
        head = "h = x.float()\nh = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.eps)\n"
        scaled = "    h = h * self.weight.float()\nreturn h.to(x.dtype)"
        optional = "self.weight = nn.Parameter(torch.ones(n)) if n else None"
        found = norm_class(f"{head}if self.weight is not None:\n{scaled}", optional).description
        assert (found.gamma, found.gamma_if) == ("self.weight", None)
        found = norm_class(f"{head}if self.affine:\n{scaled}").description
        assert (found.gamma, found.gamma_if) == ("self.weight", "self.affine")

    @pytest.mark.parametrize(
        ("forward", "cause", "reason"),
        [
            ("x += 1\nreturn x", Cause.SIDE_EFFECT, "changes x in place"),
            (
                "x = x.float()\nx *= rsqrt(x.pow(2).mean(-1, True))\nreturn x",
                Cause.SIDE_EFFECT,
                "changes x in place",
            ),
            ("print(x.pow(2))\nreturn x", Cause.SIDE_EFFECT, "runs `print(x.pow(2))` for"),
            ("self.x = x.pow(2)\nreturn x", Cause.SIDE_EFFECT, "assigns to self.x"),
            ("for _ in x.pow(2):\n    pass\nreturn x", Cause.UNREADABLE, "has a for statement"),
            ("return other(x.pow(2))", Cause.UNREADABLE, "other"),
            (
                "h = x.float()\nreturn (h * rsqrt(h.pow(2).mean(-1, True) + self.eps)).to(x.dtype)"
                " * self.scale",
                Cause.GATED,
                "multiplies by self.scale, which is no parameter of its own",
            ),
            (
                "h = x.view(-1, 4)\nreturn h * rsqrt(h.pow(2).mean(-1, True) + self.eps)",
                Cause.GROUPED,
                "changes the shape of a tensor",
            ),
            (
                "h = x * rsqrt(x.pow(2).mean(-1) + self.eps)\nreturn h",
                Cause.OTHER_FORMULA,
                "drops the axis of the mean",
            ),
        ],
    )
    def test_why_something_is_no_norm_is_told(self, forward, cause, reason):
        found = norm_class(forward)
        assert found.description is None and found.cause == cause
        assert reason in found.reason

    def test_a_parameter_of_another_shape_is_no_scale(self):
        forward = (
            "h = x.float()\nh = h * rsqrt(h.pow(2).mean(-1, True) + self.eps)\n"
            "return (h * self.weight).to(x.dtype)"
        )
        for shape, reason in (("1", "has one element"), ("4, n", "has several axes")):
            found = norm_class(forward, f"self.weight = nn.Parameter(torch.ones({shape}))")
            assert found.description is None and reason in found.reason
        assert norm_class(forward).description is not None

    def test_what_is_fused_already_and_what_is_no_norm_is_not_listed(self):
        text = (
            "import rmsnorm\nimport torch_npu\n"
            "class ANorm(nn.Module):\n"
            "    def forward(self, x):\n        return rmsnorm.rms_norm(x, self.weight, self.eps)\n"
            "class BNorm(nn.Module):\n"
            "    def forward(self, x):\n"
            "        return torch_npu.npu_rms_norm(x, self.weight, epsilon=self.eps)[0]\n"
            "class Block(nn.Module):\n"
            "    def forward(self, x):\n        return x + self.norm(x)\n"
        )
        assert find(HEAD + text) == []

    def test_branches_on_what_only_a_run_knows_have_to_agree(self):
        head = "h = x.float()\nh = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.eps)\n"
        same = f"{head}if self.a and self.b:\n    return h.to(x.dtype)\nreturn h.type_as(x)"
        assert norm_class(same).description is not None
        other = f"{head}if self.a:\n    return h.to(x.dtype)\nreturn 2 * h.type_as(x)"
        assert "where `not (self.a)`, is off by a factor" in norm_class(other).reason
        many = head + "".join(f"if self.a{i}:\n    h = h.float()\n" for i in range(9)) + "return h"
        assert norm_class(many).reason == "has too many branches to follow"

    def test_two_arguments_of_one_name_turn_out_by_themselves(self):
        text = (
            "def half(h, flag):\n    return h / 2 if flag else h\n"
            "def double(h, flag):\n    return h * 2 if flag else h\n"
            "def norm(x, eps, a, b):\n    h = x.float()\n"
            "    h = half(h * torch.rsqrt(h.pow(2).mean(-1, True) + eps), a)\n"
            "    return double(h, {}).to(x.dtype)\n"
        )
        assert only(text.format("a")).description is not None
        assert only(text.format("b")).description is None


class TestExpressions:
    HEAD = (
        "EPS = 1e-6\n"
        "class Attention(nn.Module):\n"
        "    def __init__(self, n):\n"
        "        self.scale = nn.Parameter(torch.ones(n))\n"
        "        self.proj = nn.Linear(n, n)\n"
        "    def forward(self, x, gate):\n"
    )

    def find(self, body):
        return find(HEAD + self.HEAD + "".join(f"        {line}\n" for line in body.split("\n")))

    def test_a_norm_inside_of_a_larger_function_is_found(self):
        (found,) = self.find(
            "q = self.proj(x)\n"
            "wide = q.float()\n"
            "square = wide.pow(2).mean(-1, keepdim=True)\n"
            "y = (wide * torch.rsqrt(square + EPS)).type_as(q) * self.scale\n"
            "return self.proj(y) + x"
        )
        assert (found.kind, found.name) == (Kind.EXPRESSION, "forward")
        described = found.description
        assert (described.x, described.gamma, described.epsilon) == ("q", "self.scale", "EPS")
        assert described.rounding == "before_gamma"

    def test_a_factor_of_unknown_shape_stays_outside(self):
        text = "(x.float() * rsqrt(x.float().pow(2).mean(-1, True) + EPS)).to(x.dtype)"
        (found,) = self.find(f"return {text} * gate")
        assert found.description.gamma is None
        assert found.span.end_column - found.span.column == len(text)

    def test_names_that_change_are_not_followed(self):
        body = (
            "q = self.proj(x)\n"
            "square = q.float().pow(2).mean(-1, keepdim=True)\n"
            "q = q + 1\n"
            "return (q.float() * torch.rsqrt(square + EPS)).type_as(q)"
        )
        assert [found for found in self.find(body) if found.description] == []

    def test_one_that_rounds_otherwise_in_16_bits_is_listed_with_the_reason(self):
        (found,) = self.find("return self.proj(x * rsqrt(x.pow(2).mean(-1, True) + EPS))")
        assert found.description is None and found.cause == Cause.OTHER_ROUNDING
