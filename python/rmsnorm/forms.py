"""What a norm computes, found by running it on probe rows, whatever its name or code."""

from __future__ import annotations

import contextlib
import itertools
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rmsnorm.functional import rms_norm

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# How far a norm that computes in binary32 may be from the formula before it rounds to 16 bits,
# relative to the value. In units of 2^-24: PyTorch's sum takes an element through at most 88
# additions (4 levels of 16, then 4 levels, 4 chains and 16 lanes); the square and the division by n
# make it 90, and the root halves that to 45. Rounding epsilon and adding it, rsqrt as a root and a
# division, gamma_offset + gamma and two products are 7 more. 64 is a power of two above these 52.
_BOUND = 2.0**-18

# A right gradient in 16 bits is within 2^-7 of the formula, norm-wise; one that takes rstd or gamma
# for a constant misses a term as large as the gradient itself.
_GRADIENT_BOUND = 2.0**-5

_WIDTH_WITHOUT_GAMMA = 96  # any width would do: without gamma the formula holds for every n
_ORDINARY = 8  # rows of ordinary size, that come first

# Each run of the module sees the 24 rows with other leading axes, which shows a norm over a wrong
# axis, and in both modes, twice, which shows dropout and noise.
_RUNS = (((24,), True), ((4, 6), False), ((2, 3, 4), True), ((24,), False))


class NotRmsNorm(Exception):
    """The module computes something else; the text is the reason."""


@dataclass(frozen=True)
class Form:
    """One way to compute RMSNorm: what to call rms_norm with, for one dtype of x and of gamma.

    Attributes:
        gamma: the name of the module's parameter; None for a norm without one.
        epsilon: the name of the module's attribute, or the number where no attribute holds it.
        gamma_offset, rounding, out_dtype: as in rms_norm.
    """

    gamma: str | None
    epsilon: str | float
    gamma_offset: float
    rounding: str
    out_dtype: torch.dtype

    def epsilon_of(self, module: torch.nn.Module) -> float:
        return getattr(module, self.epsilon) if isinstance(self.epsilon, str) else self.epsilon

    def __call__(self, module: torch.nn.Module, x: Tensor) -> Tensor:
        return rms_norm(
            x,
            None if self.gamma is None else getattr(module, self.gamma),
            self.epsilon_of(module),
            gamma_offset=self.gamma_offset,
            rounding=self.rounding,
            out_dtype=self.out_dtype,
        )


@dataclass(frozen=True)
class Match:
    """A form that a module computes, and how the fused operator compares with it on the probes.

    Attributes:
        x_dtype, gamma_dtype: what the form holds for.
        values: how many values of y were compared.
        differing: how many of them differ in any bit.
        max_difference: the largest absolute difference; values of y are around 1.
    """

    x_dtype: torch.dtype
    gamma_dtype: torch.dtype | None
    form: Form
    values: int
    differing: int
    max_difference: float


def find_forms(
    module: torch.nn.Module, gamma_name: str | None, dtype: torch.dtype
) -> tuple[Match, ...]:
    """The form of RMSNorm that a module computes, for each pair of dtypes in which it computes one.

    Args:
        module: a leaf; it runs as a shallow copy, its weights are not read and its hooks don't run,
            so it may be on any device, meta included.
        gamma_name: its only parameter, of any shape; None if it has none.
        dtype: of gamma, or of the model where there is no gamma; x in this dtype has to match.

    Returns:
        The match for x and gamma of `dtype`, then those of other pairs with the same epsilon and
        gamma_offset.

    Raises:
        NotRmsNorm: no form matches; the text says why.

    Cost: some 10 passes over 24 rows for each of 9 pairs of dtypes, on the CPU; no random state of
    the caller is touched.
    """
    with _neutral_state():
        own_gamma_dtype = None if gamma_name is None else dtype
        gamma_offsets = (0.0,) if gamma_name is None else (0.0, 1.0)
        own = _Probe(module, gamma_name, dtype, own_gamma_dtype).find(
            _epsilons(module), gamma_offsets
        )
        matches = [own]
        gamma_dtypes = (None,) if gamma_name is None else DTYPES
        for x_dtype, gamma_dtype in itertools.product(DTYPES, gamma_dtypes):
            if (x_dtype, gamma_dtype) == (dtype, own_gamma_dtype):
                continue
            with contextlib.suppress(NotRmsNorm):
                probe = _Probe(module, gamma_name, x_dtype, gamma_dtype)
                matches.append(probe.find([own.form.epsilon], (own.form.gamma_offset,)))
        return tuple(matches)


class _Probe:
    """A module with a gamma of our own, the rows that it is run on, and what it made of them.

    Attributes:
        module: a copy that shares everything but its parameters.
        x: [24, *shape]; gamma: shape, or None.
        y: [4, 24, *shape], the module's outputs, one for each of _RUNS.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        gamma_name: str | None,
        x_dtype: torch.dtype,
        gamma_dtype: torch.dtype | None,
    ) -> None:
        generator = torch.Generator("cpu").manual_seed(0)
        self.gamma_name = gamma_name
        self.gamma: torch.nn.Parameter | None = None
        self.module = object.__new__(type(module))
        self.module.__dict__.update(vars(module), _parameters=dict(module._parameters))
        if gamma_name is None:
            declared = getattr(module, "normalized_shape", None)
            if isinstance(declared, tuple) and len(declared) > 1:
                raise NotRmsNorm("normalizes over several axes, without a weight to span them")
            shape = declared[-1:] if isinstance(declared, tuple) else (_WIDTH_WITHOUT_GAMMA,)
        else:
            shape = tuple(getattr(module, gamma_name).shape)
            gamma = _signs(shape, generator) * (0.5 + 1.5 * torch.rand(shape, generator=generator))
            self.gamma = torch.nn.Parameter(gamma.to(gamma_dtype))
            self.module._parameters[gamma_name] = self.gamma
        self.axes = tuple(range(-len(shape), 0))
        self.x = _rows(shape, x_dtype, generator)
        with torch.no_grad():
            self.y = torch.stack([self._run(*run).reshape(self.x.shape) for run in _RUNS])

    def find(self, epsilons: list[str | float], gamma_offsets: tuple[float, ...]) -> Match:
        """The first epsilon and gamma_offset that explain y, with the better of the roundings."""
        tried: list[Form] = []
        for epsilon, gamma_offset in itertools.product(epsilons, gamma_offsets):
            forms = [
                Form(self.gamma_name, epsilon, gamma_offset, rounding, self.y.dtype)
                for rounding in ("once", "before_gamma")
            ]
            tried += forms
            matches = [match for form in forms if (match := self._match(form)) is not None]
            if matches:
                best = min(matches, key=lambda match: match.differing)
                self._check_gradient(best.form)
                return best
        raise NotRmsNorm(self._reason(tried))

    def _run(self, leading: tuple[int, ...], training: bool) -> Tensor:
        self.module.training = training
        x = self.x.clone().view(*leading, *self.x.shape[1:])
        try:
            y = type(self.module).forward(self.module, x)
        except Exception as error:
            raise NotRmsNorm(f"its forward on a tensor raises {_first_line(error)}") from None
        if not isinstance(y, Tensor):
            raise NotRmsNorm(f"returns a {type(y).__name__} and not a tensor")
        if y.shape != x.shape:
            raise NotRmsNorm(f"returns shape {list(y.shape)} for x of {list(x.shape)}")
        if y.dtype not in (x.dtype, torch.float32):
            raise NotRmsNorm(f"returns {y.dtype} for x of {x.dtype}")
        return y

    def _match(self, form: Form) -> Match | None:
        fused = form(self.module, self.x).detach()
        ends = self._ends(form, self.x.double())
        if _excess(self.y, ends) > 0 or _excess(fused, ends) > 0:
            return None
        y = self.y[0]
        same = (y == fused) | (y.isnan() & fused.isnan())
        difference = (y.double() - fused.double()).masked_fill(same, 0).abs().max()
        return Match(
            self.x.dtype,
            None if self.gamma is None else self.gamma.dtype,
            form,
            values=same.numel(),
            differing=int((~same).sum()),
            max_difference=float(difference),
        )

    def _rstd(self, form: Form, x: Tensor) -> Tensor:
        mean_square = x.square().mean(self.axes, keepdim=True)
        return (mean_square + form.epsilon_of(self.module)).rsqrt()

    def _scale(self, form: Form) -> Tensor:
        if self.gamma is None:
            return torch.ones((), dtype=torch.float64)
        return form.gamma_offset + self.gamma.detach().double()

    def _ends(self, form: Form, x: Tensor) -> Tensor:
        """[2, *x.shape]: the least and the greatest y that the form allows, in float64 like x.

        Rounding is monotone: a value between two ends is rounded to one between the rounded ends.
        So the ends go through the form's own roundings, and those need no bound of their own.
        """
        xhat = x * self._rstd(form, x)
        ends = torch.stack([xhat, xhat])
        if form.rounding == "before_gamma":
            ends = _widened(xhat, xhat).to(self.x.dtype).double()
        low, high = (ends * self._scale(form)).aminmax(dim=0)
        return _widened(low, high).to(form.out_dtype).double()

    def _check_gradient(self, form: Form) -> None:
        """Raises NotRmsNorm unless the module's gradient is the formula's, on the ordinary rows."""
        x = self.x[:_ORDINARY].clone().requires_grad_()
        inputs = [x] if self.gamma is None else [x, self.gamma]
        self.module.training = True
        try:
            y = type(self.module).forward(self.module, x)
            dy = 2 * y.detach()  # the gradient of the sum of squares has a large part along x
            gradients = torch.autograd.grad(y, inputs, dy, allow_unused=True)
        except Exception as error:
            raise NotRmsNorm(f"its gradient raises {_first_line(error)}") from None
        rstd = self._rstd(form, x.detach().double())
        xhat = x.detach().double() * rstd
        w = dy.double() * self._scale(form)
        dx = (w - xhat * (w * xhat).mean(self.axes, keepdim=True)) * rstd
        dgamma = (dy.double() * xhat).sum(0)
        for got, expected, size in zip(gradients, (dx, dgamma), (w * rstd, dgamma), strict=False):
            if got is None or not (got - expected).norm() <= _GRADIENT_BOUND * size.norm():
                raise NotRmsNorm("gives the values of RMSNorm, but not its gradient")

    def _reason(self, tried: list[Form]) -> str:
        x = self.x.double()
        x_centred = x - x.mean(self.axes, keepdim=True)
        nearest = min(_excess(self.y, self._ends(form, x)) for form in tried)
        if min(_excess(self.y, self._ends(form, x_centred)) for form in tried) < nearest / 4:
            return "subtracts the mean, as LayerNorm does"
        if math.isinf(nearest):
            return "another formula: gives infinity or NaN where RMSNorm is finite"
        return f"another formula: every form of RMSNorm is off by {nearest:.2g} or more somewhere"


@contextlib.contextmanager
def _neutral_state() -> Iterator[None]:
    """No mode or device of the caller reaches a probe; no random state or warning leaves it."""
    with (
        torch.inference_mode(False),  # which turns gradients on as well
        torch.autocast("cpu", enabled=False),
        torch.device("cpu"),
        torch.random.fork_rng(devices=[]),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        threads = torch.get_num_threads()
        # Rows are few: on a busy machine, threads would wait for each other.
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def _epsilons(module: torch.nn.Module) -> list[str | float]:
    """What epsilon may be: attributes first, then what classes write into their code.

    torch.nn.RMSNorm without eps takes the machine epsilon, of float32 or in older versions of x.
    """
    attributes = [
        name
        for name, value in vars(module).items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1
    ]
    return [*attributes, 1e-6, 1e-5, *(torch.finfo(dtype).eps for dtype in DTYPES)]


def _signs(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, shape, generator=generator).mul(2).sub(1).float()


def _rows(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """[24, *shape]: rows that make each way to go wrong visible."""
    n = math.prod(shape)
    x = torch.randn(24, n, generator=generator)
    x[6:8] += 4  # a mean, for norms that subtract it
    # Ordinary rows end here. One value above the rest shows a clamp of y; large rows show a clamp
    # of x, or an overflow; zeros show a norm that has no epsilon but takes care not to divide by 0.
    x[8, n // 2] = 64
    x[9:11] *= 2.0**10 if dtype == torch.float16 else 2.0**40
    x[11] = 0
    # Mean squares from 0.1 to 1e-12, for epsilon: its value, and where it is added.
    x[12:] *= 10 ** -torch.linspace(0.5, 6, 12).unsqueeze(1)
    return x.view(24, *shape).to(dtype)


def _first_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split("\n")[0].split())


def _widened(low: Tensor, high: Tensor) -> Tensor:
    """[2, ...]: the ends of an interval, moved out by the bound of the arithmetic."""
    return torch.stack([low - _BOUND * low.abs(), high + _BOUND * high.abs()])


def _excess(y: Tensor, ends: Tensor) -> float:
    """By how much y leaves the interval at most; infinity for an infinity or NaN out of place."""
    low, high = ends
    y = y.double()
    inside = ((low <= y) & (y <= high)) | (y.isnan() & low.isnan())
    excess = torch.maximum(low - y, y - high).masked_fill(inside, 0)
    return float(excess.nan_to_num(math.inf, math.inf).max())
