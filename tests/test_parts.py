"""Rows whose elements are spread over several calls: the bits of one call."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

import rmsnorm
from operands import DTYPES, same_bits
from rmsnorm import composite

pytestmark = pytest.mark.usefixtures("device")

OPS = torch.ops.rmsnorm
LEAF = 512  # columns

X, GAMMA, ROWS = torch.ones(8, 64), torch.ones(64), torch.ones(8, 1)


def cuts(n: int, parts: int) -> list[int]:
    """The columns where rows of n are cut, between leaves: [0, …, n]."""
    leaves = -(-n // LEAF)
    return [LEAF * (leaves * part // parts) for part in range(parts)] + [n]


def added(cut: Sequence[int], columns: slice, sums_of: Callable[[slice], Tensor]) -> Tensor:
    """The sums of subtrees that no cut divides, added as the canonical tree adds them."""
    begin, end = columns.start, columns.stop
    if not any(begin < at < end for at in cut):
        return sums_of(columns)
    leaves = 1
    while 2 * leaves * LEAF < end - begin:
        leaves *= 2
    middle = begin + leaves * LEAF
    left, right = slice(begin, middle), slice(middle, end)
    return added(cut, left, sums_of) + added(cut, right, sums_of)


def operands(n: int, dtype: torch.dtype, rows: int = 5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dy, x, gamma and the rstd of the forward call."""
    x, dy = torch.randn(rows, n).to(dtype), torch.randn(rows, n).to(dtype)
    gamma = torch.randn(n).to(dtype)
    return dy, x, gamma, rmsnorm.npu_rms_norm(x, gamma)[1]


@pytest.mark.parametrize("parts", [2, 3, 4])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_sums_of_runs_of_columns_add_up_to_the_bits_of_whole_rows(dtype, parts):
    for n in (512 * leaves + extra for leaves in range(1, 10) for extra in (0, 100)):
        dy, x, gamma, rstd = operands(n, dtype)

        def of_columns(c: slice, dy=dy, x=x, gamma=gamma, rstd=rstd) -> Tensor:
            return OPS.rms_norm_row_sums(dy[:, c], x[:, c], gamma[c], rstd, 1.0)

        whole = OPS.rms_norm_row_sums(dy, x, gamma, rstd, 1.0)
        assert same_bits(added(cuts(n, parts), slice(0, n), of_columns), whole), n


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_the_sum_of_squares_gives_the_bits_of_rstd(dtype):
    x = torch.randn(5, 1100).to(dtype)
    _, rstd = OPS.rms_norm(x, None)
    sums = OPS.rms_norm_row_sums(x, x, None, torch.ones_like(rstd))
    mean = sums / 1100 + torch.tensor(1e-6, dtype=sums.dtype)
    assert same_bits(1 / torch.sqrt(mean), rstd)


def test_float64_sums_of_squares_give_the_rstd_of_rows_out_of_range():
    x = torch.randn(4, 1100)
    x[0] *= 1e25
    x[1] *= 1e-30
    x[2, 7] = 1e30
    _, rstd = OPS.rms_norm(x, None, 0.0)
    ones = torch.ones_like(rstd)
    in_float32 = OPS.rms_norm_row_sums(x, x, None, ones).flatten().tolist()
    assert in_float32[:3] == [torch.inf, 0, torch.inf]
    wide = x.double()
    sums = OPS.rms_norm_row_sums(wide, wide, None, ones.double())
    assert same_bits((1 / torch.sqrt(sums / 1100)).float()[:3], rstd[:3])


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_gradients_of_columns_from_whole_sums_are_the_columns_of_one_call(dtype):
    n = 2660
    dy, x, gamma, rstd = operands(n, dtype, rows=40)
    whole = OPS.rms_norm_backward(dy, x, gamma, rstd, 1.0)
    sums = OPS.rms_norm_row_sums(dy, x, gamma, rstd, 1.0)
    for begin, end in ((0, n), (0, 512), (512, 2048), (2048, n), (77, 1000)):
        c = slice(begin, end)
        part = (dy[:, c], x[:, c], gamma[c], rstd, sums, n, 1.0)
        dx, dgamma = OPS.rms_norm_backward_from_sums(*part)
        assert same_bits(dx, whole[0][:, c]) and same_bits(dgamma, whole[1][c])
        assert same_bits(OPS.rms_norm_backward_from_sums(*part, [True, False])[0], dx)
        assert same_bits(OPS.rms_norm_backward_from_sums(*part, [False, True])[1], dgamma)


def test_sums_have_the_shape_of_rstd():
    x, gamma = torch.randn(2, 3, 4, 8), torch.randn(4, 8)
    _, rstd = rmsnorm.npu_rms_norm(x, gamma)
    assert OPS.rms_norm_row_sums(x, x, gamma, rstd).shape == rstd.shape == (2, 3, 1, 1)
    empty = OPS.rms_norm_row_sums(x[:0], x[:0], gamma, rstd[:0])
    assert empty.shape == (0, 3, 1, 1)
    dx, dgamma = OPS.rms_norm_backward_from_sums(x[:0], x[:0], gamma, rstd[:0], empty, 64)
    assert dx.shape == (0, 3, 4, 8) and torch.equal(dgamma, torch.zeros(4, 8))


@pytest.mark.skipif(not hasattr(torch.library, "opcheck"), reason="needs PyTorch 2.4: opcheck")
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_opcheck_accepts_the_operators(dtype):
    dy, x, gamma, rstd = operands(600, dtype)
    torch.library.opcheck(OPS.rms_norm_row_sums.default, (dy[:, :512], x[:, :512], None, rstd))
    sums = OPS.rms_norm_row_sums(dy, x, gamma, rstd)
    part = (dy[:, :512], x[:, :512], gamma[:512], rstd, sums, 600)
    torch.library.opcheck(OPS.rms_norm_backward_from_sums.default, part)
    torch.library.opcheck(OPS.rms_norm_backward_from_sums.default, (*part, 1.0, [False, True]))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_the_composite_of_other_devices_gives_sums_and_gradients_within_their_bounds(dtype):
    dy, x, gamma, rstd = operands(600, dtype)
    sums = OPS.rms_norm_row_sums(dy, x, gamma, rstd, 1.0)
    w, xhat = dy.double() * (1 + gamma.double()), x.double() * rstd.double()
    u = torch.finfo(rstd.dtype).eps / 2

    def differ(a: Tensor, b: Tensor, bound: Tensor) -> bool:
        return not ((a.double() - b.double()).abs() <= bound).all()

    # Of either sum, a term meets 3 roundings and at most 600 additions.
    own = composite.rms_norm_row_sums(dy, x, gamma, rstd, 1.0)
    assert not differ(own, sums, 2 * 603 * u * (w * xhat).abs().sum(-1, keepdim=True))
    dx, dgamma = composite.rms_norm_backward_from_sums(dy, x, gamma, rstd, sums, 600, 1.0)
    expected = OPS.rms_norm_backward_from_sums(dy, x, gamma, rstd, sums, 600, 1.0)
    # A term of dx meets at most 5 roundings, and dx its own; one of dgamma 2 and those of 5 rows.
    terms = rstd.double() * (w.abs() + (xhat * sums.double() / 600).abs())
    end = torch.finfo(dtype).eps * expected[0].double().abs()
    assert not differ(dx, expected[0], 2 * 5 * u * terms + end)
    assert not differ(dgamma, expected[1], 2 * 7 * u * (dy.double() * xhat).abs().sum(0))


def test_the_composite_refuses_what_the_kernels_refuse():
    with pytest.raises(ValueError, match=r"^n: 63; expected 64 or more, the elements of a whole"):
        composite.rms_norm_backward_from_sums(X, X, GAMMA, ROWS, ROWS, 63)
    with pytest.raises(ValueError, match=r"^sums: shape \[7, 1\]; expected \[8, 1\]"):
        composite.rms_norm_backward_from_sums(X, X, GAMMA, ROWS, ROWS[:7], 64)


def test_a_gradient_through_a_part_is_an_error_and_never_lost():
    dy, x, gamma, rstd = operands(64, torch.float32)
    x.requires_grad_()
    sums = OPS.rms_norm_row_sums(dy, x, gamma, rstd)
    with pytest.raises(RuntimeError, match="rms_norm_row_sums is not implemented"):
        sums.sum().backward()
    for result in OPS.rms_norm_backward_from_sums(dy, x, gamma, rstd, sums.detach(), 64):
        with pytest.raises(RuntimeError, match="rms_norm_backward_from_sums is not implemented"):
            result.sum().backward()


REFUSED = {
    "n of less than the columns": ((ROWS, 63), "n: 63; expected 64 or more"),
    "no n": ((ROWS, 0), "n: 0; expected 64 or more"),
    "n beyond all sizes": ((ROWS, 2**60), "n: 1152921504606846976; expected 64 to 2^48"),
    "sums of another size": ((ROWS[:7], 64), "sums: shape [7, 1], dtype Float; expected [8, 1]"),
    "sums of another dtype": ((ROWS.double(), 64), "sums: shape [8, 1], dtype Double; expected"),
    "sums on another device": ((ROWS.to("meta"), 64), "sums: device meta; expected x's"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_backward_from_sums_refuses(case):
    (sums, n), message = case
    with pytest.raises(ValueError) as error:
        OPS.rms_norm_backward_from_sums(X, X, GAMMA, ROWS, sums, n)
    assert str(error.value).startswith(message)


def test_row_sums_refuse_what_backward_refuses():
    with pytest.raises(ValueError, match="dy: shape"):
        OPS.rms_norm_row_sums(X[:7], X, GAMMA, ROWS)
    with pytest.raises(ValueError, match="gamma_offset: 1 without gamma"):
        OPS.rms_norm_row_sums(X, X, None, ROWS, 1.0)
