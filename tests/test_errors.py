"""Bad calls: each is refused with a text that names the argument, before anything is written."""

import pytest
import torch

import rmsnorm

X = torch.ones(8, 64)
GAMMA = torch.ones(64)
INFINITY = float("inf")
NAN = float("nan")


def overlapping() -> tuple[torch.Tensor, torch.Tensor]:
    memory = torch.ones(8 * 64 + 1)
    return memory[:-1].view(8, 64), memory[1:].view(8, 64)


# Arguments of rms_norm, and how the message begins.
FORWARD = {
    "gamma longer than a row": ((X, torch.ones(65)), "gamma: shape [65] is not the tail of x's"),
    "gamma of another tail": (
        (torch.ones(8, 5120), torch.ones(4096)),
        "gamma: shape [4096] is not the tail of x's [8, 5120]",
    ),
    "gamma that would broadcast": ((X, torch.ones(1)), "gamma: shape [1] is not the tail"),
    "gamma with more axes than x": ((GAMMA, X), "gamma: shape [8, 64] is not the tail of x's [64]"),
    "gamma without axes": ((X, torch.tensor(1.0)), "gamma: 0 dimensions; expected 1 to x's 2"),
    "x without axes": ((torch.tensor(1.0),), "x: 0 dimensions; expected 1 or more"),
    "x without columns": ((torch.ones(8, 0), torch.ones(0)), "x: shape [8, 0] has no element"),
    "int32 x": ((X.int(), GAMMA), "x: dtype int; expected float32, float16 or bfloat16"),
    "float64 x alone": ((X.double(), GAMMA), "gamma: dtype float32; expected float32, float16 or"),
    "boolean x": ((X.bool(),), "x: dtype bool; expected float32"),
    "complex x": ((X.cfloat(),), "x: dtype"),
    "float64 gamma": ((X, GAMMA.double()), "gamma: dtype float64; expected float32"),
    "integer gamma": ((X, GAMMA.long()), "gamma: dtype"),
    "negative epsilon": ((X, GAMMA, -1.0), "epsilon: -1; expected a finite number >= 0"),
    "NaN epsilon": ((X, GAMMA, NAN), "epsilon: nan; expected a finite number >= 0"),
    "infinite epsilon": ((X, GAMMA, INFINITY), "epsilon: inf; expected a finite number >= 0"),
    "epsilon beyond float32": ((X, GAMMA, 1e39), "epsilon: 1e+39; expected a finite number"),
    "gamma on another device": ((X, GAMMA.to("meta")), "gamma: device meta; expected x's, cpu"),
}

KEYWORDS = {
    "NaN offset": (dict(gamma_offset=NAN), "gamma_offset: nan; expected a finite number"),
    "infinite offset": (dict(gamma_offset=INFINITY), "gamma_offset: inf; expected"),
    "offset without gamma": (
        dict(gamma=None, gamma_offset=1.0),
        "gamma_offset: 1 without gamma; expected 0",
    ),
    "unknown rounding": (dict(rounding="twice"), "rounding: twice; expected once or before_gamma"),
    "narrowing out_dtype": (
        dict(out_dtype=torch.float16),
        "out_dtype: half; expected x's dtype or float32",
    ),
    "float64 out_dtype": (
        dict(out_dtype=torch.float64),
        "out_dtype: double; expected",
    ),
    "out of another shape": (dict(out=torch.ones(64, 8)), "out: shape [64, 8]; expected x's"),
    "out of another dtype": (
        dict(out=torch.ones(8, 64).half()),
        "out: dtype float16; expected x's",
    ),
    "float64 out": (dict(out=torch.ones(8, 64).double()), "out: dtype float64; expected"),
    "out with rows that overlap": (
        dict(out=torch.ones(64).expand(8, 64)),
        "out: row_stride 0; expected >= 64, so that its rows don't overlap",
    ),
    "out against out_dtype": (
        dict(out=torch.ones(8, 64), out_dtype=torch.float16),
        "out_dtype: torch.float16; expected out's, torch.float32",
    ),
    "out on another device": (dict(out=X.to("meta")), "out: device meta; expected x's, cpu"),
}

RSTD = torch.ones(8, 1)
BACKWARD = {
    "dy of another shape": ((torch.ones(64, 8), X, GAMMA, RSTD), "dy: shape [64, 8]; expected x's"),
    "dy of another dtype": (
        (X.half(), X, GAMMA, RSTD),
        "dy: dtype float16; expected x's or float32",
    ),
    "float64 dy": ((X.double(), X, GAMMA, RSTD), "dy: dtype float64; expected x's or float32"),
    "gamma of another shape": ((X, X, torch.ones(63), RSTD), "gamma: shape [63] is not the tail"),
    "rstd of another size": ((X, X, GAMMA, torch.ones(7, 1)), "rstd: shape [7, 1]"),
    "rstd of another dtype": ((X, X, GAMMA, RSTD.half()), "rstd: shape [8, 1], dtype Half"),
    "rstd on another device": ((X, X, GAMMA, RSTD.to("meta")), "rstd: device meta; expected x's"),
}


def expect_refusal(message: str, call, *args, **kwargs) -> None:
    with pytest.raises(ValueError) as error:
        call(*args, **kwargs)
    text = str(error.value).lower()
    assert text.startswith(message.lower()), text


@pytest.mark.parametrize("case", FORWARD.values(), ids=FORWARD)
def test_forward_refuses(case):
    args, message = case
    expect_refusal(message, rmsnorm.rms_norm, *args)


def test_none_in_place_of_a_tensor_is_named():
    expect_refusal("x: None; expected a tensor", rmsnorm.rms_norm, None, GAMMA)
    rstd = torch.ones(8, 1)
    for i, name in enumerate(("dy", "x", "gamma", "rstd")):
        args = [argument if j != i else None for j, argument in enumerate((X, X, GAMMA, rstd))]
        if name != "gamma":  # which may be absent
            expect_refusal(f"{name}: None; expected", rmsnorm.npu_rms_norm_backward, *args)


@pytest.mark.parametrize("case", KEYWORDS.values(), ids=KEYWORDS)
def test_forward_refuses_by_keyword(case):
    kwargs, message = case
    before = kwargs["out"].clone() if "out" in kwargs else None
    expect_refusal(message, rmsnorm.rms_norm, X, **{"gamma": GAMMA, **kwargs})
    if before is not None and before.device.type == "cpu":
        assert torch.equal(kwargs["out"], before), "something was written"


@pytest.mark.parametrize("case", BACKWARD.values(), ids=BACKWARD)
def test_backward_refuses(case):
    args, message = case
    expect_refusal(message, rmsnorm.npu_rms_norm_backward, *args)


def test_out_that_overlaps_x_is_refused_and_nothing_is_written():
    x, out = overlapping()
    expect_refusal(
        "out: overlaps x; expected x itself or memory apart", rmsnorm.rms_norm, x, out=out
    )
    assert torch.equal(x, torch.ones(8, 64))


def test_out_of_other_strides_that_overlaps_is_refused_and_nothing_is_written():
    square = torch.ones(8, 8)
    expect_refusal("out: overlaps x", rmsnorm.rms_norm, square, out=square.t())
    expect_refusal("out: overlaps x", rmsnorm.rms_norm, square.t(), out=square)
    gapped = torch.ones(16)
    expect_refusal(
        "out: overlaps gamma", rmsnorm.rms_norm, X[:2, :8], gapped[::2], out=gapped.view(2, 8)
    )
    memory = torch.ones(12)
    x, out = memory[:8].view(2, 4), memory[4:].view(4, 2).t()
    expect_refusal("out: overlaps x", rmsnorm.rms_norm, x, out=out)
    gamma_memory = torch.ones(16)
    out = gamma_memory.view(4, 4).t()
    expect_refusal("out: overlaps gamma", rmsnorm.rms_norm, X[:4, :4], gamma_memory[:4], out=out)
    for untouched in (square, gapped, memory, gamma_memory):
        assert torch.equal(untouched, torch.ones_like(untouched))


def test_inference_mode_refuses_a_gamma_on_another_device():
    with torch.inference_mode():
        expect_refusal("gamma: device meta", rmsnorm.rms_norm, X, GAMMA.to("meta"))


# Numbers and emptiness are the kernels' to check.
OF_TENSORS = [case for case in FORWARD if "epsilon" not in case and "columns" not in case]


@pytest.mark.parametrize("case", OF_TENSORS)
def test_meta_tensors_are_refused_like_real_ones(case):
    args, message = FORWARD[case]
    meta = [arg.to("meta") if isinstance(arg, torch.Tensor) else arg for arg in args]
    if case == "gamma on another device":
        meta[1] = GAMMA
    expect_refusal(message.split(":")[0] + ": ", rmsnorm.rms_norm, *meta)


def test_module_with_an_offset_but_no_weight_is_refused():
    with pytest.raises(ValueError, match="gamma_offset: 1"):
        rmsnorm.RMSNorm(8, elementwise_affine=False, gamma_offset=1.0)


def test_module_refuses_an_input_of_another_shape():
    norm = rmsnorm.RMSNorm([4, 8], elementwise_affine=False)
    expect_refusal("x: shape [2, 8, 4] does not end in [4, 8]", norm, torch.ones(2, 8, 4))


def test_an_unknown_cpu_target_is_refused():
    expect_refusal("name: z80; expected one of", rmsnorm.use_cpu_target, "Z80")
