"""What a norm computes, found by running it on probe rows, whatever its name or code."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from rmsnorm.forms import Difference, Form, NotRmsNorm

# How far a norm that computes in binary32 may be from the formula before it rounds to 16 bits,
# relative to the value. In units of 2^-24: PyTorch's sum takes an element through at most 88
# additions (4 levels of 16, then 4 levels, 4 chains and 16 lanes); the square and the division by n
# make it 90, and the root halves that to 45. Rounding epsilon and adding it, rsqrt as a root and a
# division, gamma_offset + gamma and two products are 7 more. 64 is a power of two above these 52.
_BOUND = 2.0**-18

# The same for a gradient, relative to the sum of the sizes of its terms: rstd to the third power is
# 3 times 52, the mean of the terms 90 and products 8 more, 254 units of 2^-24.
_GRADIENT_BOUND = 2.0**-16

# Roundings to 16 bits on the longest path of a gradient. dx: of dy * gamma, of a part where a class
# casts x for each of three uses, of two sums of parts. dgamma: of xhat, dy * xhat, the sum, a cast.
_GRADIENT_ROUNDINGS = 4

_WIDTH_WITHOUT_GAMMA = 96  # any width would do: without gamma the formula holds for every n
_ORDINARY = 8  # rows of ordinary size, that come first

# Each run of the module sees the 24 rows with other leading axes, which shows a norm over a wrong
# axis, and in both modes, twice, which shows dropout and noise.
_RUNS = (((24,), True), ((4, 6), False), ((2, 3, 4), True), ((24,), False))


class Probe:
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

    def confirm(self, forms: list[Form]) -> Form:
        """The first of the forms that explains y and the gradient.

        Raises:
            NotRmsNorm: none does.
        """
        for form in forms:
            if form.out_dtype == self.y.dtype and self._is_explained(form):
                self._check_gradient(form)
                return form
        raise NotRmsNorm(self._reason(forms))

    def compare(self, own: Form, form: Form) -> tuple[Difference, ...]:
        """The results of a form beside those of the module, which computes `own`."""
        ends = torch.stack([self._ends(each, self.x.double()) for each in (own, form)])
        y = form(self.module, self.x).detach()
        differences = [_difference("y", self.y[0], y, ends.amax((0, 1)) - ends.amin((0, 1)))]
        results = zip(
            ("dx", "dgamma"),
            self._gradients(type(self.module).forward),
            self._gradients(form),
            self._exact_gradients(form, roundings=_GRADIENT_ROUNDINGS),
            self._exact_gradients(form, roundings=1),  # the fused gradient
            strict=False,
        )
        for name, own_gradient, gradient, (_, bound), (_, fused_bound) in results:
            differences.append(_difference(name, own_gradient, gradient, bound + fused_bound))
        return tuple(differences)

    def _run(self, leading: tuple[int, ...], training: bool) -> Tensor:
        self.module.training = training
        x = self.x.clone().view(*leading, *self.x.shape[1:])
        try:
            y = type(self.module).forward(self.module, x)
        except Exception as error:
            raise NotRmsNorm(f"its forward on a tensor raises {_first_line(error)}") from None
        if not torch.equal(x.view_as(self.x), self.x):
            raise NotRmsNorm("writes to x")
        if not isinstance(y, Tensor):
            raise NotRmsNorm(f"returns a {type(y).__name__} and not a tensor")
        if y.shape != x.shape:
            raise NotRmsNorm(f"returns shape {list(y.shape)} for x of {list(x.shape)}")
        if y.dtype not in (x.dtype, torch.float32):
            raise NotRmsNorm(f"returns {y.dtype} for x of {x.dtype}")
        return y

    def _is_explained(self, form: Form) -> bool:
        """Whether the module's y and the fused one are what the form allows."""
        fused = form(self.module, self.x).detach()
        ends = self._ends(form, self.x.double())
        return _excess(self.y, ends) <= 0 and _excess(fused, ends) <= 0

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
        try:
            gradients = self._gradients(type(self.module).forward)
        except Exception as error:
            raise NotRmsNorm(f"its gradient raises {_first_line(error)}") from None
        expected = self._exact_gradients(form, _GRADIENT_ROUNDINGS)
        for got, (exact, bound) in zip(gradients, expected, strict=False):
            if got is None or not ((got.double() - exact).abs() <= bound).all():
                raise NotRmsNorm("gives the values of RMSNorm, but not its gradient")

    def _gradients(self, run: Callable[[torch.nn.Module, Tensor], Tensor]) -> tuple[Tensor, ...]:
        """dx and, with a gamma, dgamma, on the ordinary rows."""
        x = self.x[:_ORDINARY].clone().requires_grad_()
        self.module.training = True
        y = run(self.module, x)
        inputs = [x] if self.gamma is None else [x, self.gamma]
        return torch.autograd.grad(y, inputs, self._dy(), allow_unused=True)

    def _dy(self) -> Tensor:
        """The gradient of the sum of squares, which has a large part along x."""
        return 2 * self.y[0, :_ORDINARY]

    def _exact_gradients(self, form: Form, roundings: int) -> list[tuple[Tensor, Tensor]]:
        """dx and dgamma in float64, each with a bound of the error of one that rounds so often."""
        x, dy = self.x[:_ORDINARY].double(), self._dy().double()
        rstd = self._rstd(form, x)
        xhat = x * rstd
        w = dy * self._scale(form)
        products = w * xhat
        dx = w * rstd - xhat * products.mean(self.axes, keepdim=True) * rstd
        along_x = xhat * products.abs().mean(self.axes, keepdim=True)
        dx_size = (w.abs() + along_x.abs()) * rstd
        dgamma, dgamma_size = (dy * xhat).sum(0), (dy * xhat).abs().sum(0)
        dtypes = [self.x.dtype, form.out_dtype]
        gamma_dtypes = dtypes if self.gamma is None else [*dtypes, self.gamma.dtype]
        # What rounds below the normal numbers is a term, which rstd may multiply.
        factor = 1 + float(rstd.max())
        return [
            (dx, _gradient_error(dx_size, dtypes, roundings, factor)),
            (dgamma, _gradient_error(dgamma_size, gamma_dtypes, roundings, factor)),
        ]

    def _reason(self, forms: list[Form]) -> str:
        by = min(_excess(self.y, self._ends(form, self.x.double())) for form in forms)
        read = "its source reads as RMSNorm, but on probe rows it gives"
        if math.isinf(by):
            return f"{read} infinity or NaN where that is finite, or the other way round"
        return f"{read} values that are off by {by:.2g} or more somewhere"


@contextlib.contextmanager
def neutral_state() -> Iterator[None]:
    """No mode or device of the caller reaches a probe; no random state or warning leaves it."""
    with (
        torch.inference_mode(False),  # which turns gradients on as well
        torch.autocast("cpu", enabled=False),
        torch.device("cpu"),
        torch.random.fork_rng(devices=[]),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
        # Rows are few: on a busy machine, threads would wait for each other.
        torch.set_num_threads(1)
        torch.set_default_dtype(torch.float32)  # a model may be built in another
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.set_default_dtype(dtype)


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


def _gradient_error(
    size: Tensor, dtypes: list[torch.dtype], roundings: int, factor: float
) -> Tensor:
    """The bound for a sum whose terms add up to `size`, rounded so often to one of the dtypes."""
    coarsest = max(map(torch.finfo, dtypes), key=lambda dtype: dtype.eps)
    unit = roundings * coarsest.eps / 2 if coarsest.bits == 16 else 0.0
    return (_GRADIENT_BOUND + unit) * size + unit * factor * coarsest.smallest_normal


def _differ(a: Tensor, b: Tensor) -> Tensor:
    """Where the bits differ; one NaN is as good as another."""
    integers = torch.int32 if a.element_size() == 4 else torch.int16
    return (a.view(integers) != b.view(integers)) & ~(a.isnan() & b.isnan())


def _difference(result: str, own: Tensor, fused: Tensor, bound: Tensor) -> Difference:
    """Raises NotRmsNorm where two results are further apart than right ones may be."""
    differ = _differ(own, fused)
    difference = (own.double() - fused.double()).abs().where(differ, 0)
    if not ((difference <= bound) | ~differ).all():
        raise NotRmsNorm(f"its {result} and the fused one differ by more than right ones may")
    largest, place = difference.flatten().max(dim=0)
    return Difference(
        result,
        values=differ.numel(),
        differing=int(differ.sum()),
        largest=float(largest),
        bound=float(bound.flatten()[place]),
    )


def _excess(y: Tensor, ends: Tensor) -> float:
    """By how much y leaves the interval at most; infinity for an infinity or NaN out of place."""
    low, high = ends
    y = y.double()
    inside = ((low <= y) & (y <= high)) | (y.isnan() & low.isnan())
    excess = torch.maximum(low - y, y - high).masked_fill(inside, 0)
    return float(excess.nan_to_num(math.inf, math.inf).max())
