"""The values that a norm's arithmetic goes through, and what rounding has done to them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeGuard

from rmsnorm.reading.finding import Cause

SIXTEEN_BITS = ("bfloat16", "float16")
FLOATS = ("float32", *SIXTEEN_BITS)


class Value:
    """Anything that an expression may stand for."""


@dataclass(frozen=True)
class Unknown(Value):
    """What reading can't follow, or what no norm has; whatever it goes into is Unknown too."""

    cause: Cause
    reason: str


class Refused(Exception):
    """The whole function is no norm: it has an effect besides its result, or can't be followed."""

    def __init__(self, cause: Cause, reason: str) -> None:
        super().__init__(reason)
        self.unknown = Unknown(cause, reason)


@dataclass(frozen=True)
class Dtype(Value):
    name: str


@dataclass(frozen=True)
class Number(Value):
    """A number of Python's. `text` is how the source calls it, where it has a name there."""

    value: float
    text: str | None = None


@dataclass(frozen=True)
class Constant(Value):
    """None, True, a string, a tuple: what conditions and arguments are made of."""

    value: object


@dataclass(frozen=True)
class Columns(Value):
    """n to a power: the width of x."""

    power: float = 1.0


@dataclass(frozen=True)
class Self(Value):
    """The module itself."""


@dataclass(frozen=True)
class Shape(Value):
    """The shape of x, or of what was computed from it element by element."""


@dataclass(frozen=True)
class Symbol(Value):
    """A name whose value isn't known: a scale where it meets x, epsilon where it meets the mean.

    Attributes:
        text: as in the source.
        scale_dtype: the dtype that it has as a scale; None: it is no scale.
        is_number: whether it may be epsilon: an attribute, or an argument that is a number.
        is_given: it is a number, and never None.
    """

    text: str
    scale_dtype: str | None
    is_number: bool = False
    is_given: bool = False


@dataclass(frozen=True)
class Named(Value):
    """A module, class or function outside of the source, by its dotted name."""

    path: str


@dataclass(frozen=True)
class Epsilon:
    """What is added to the mean square: `text` of an attribute or name, or a number, or both."""

    text: str | None
    value: float | None


@dataclass(frozen=True)
class Root:
    """The mean square that a product holds a power of.

    Attributes:
        axes: how many trailing axes of x it goes over; None: as many as gamma has.
    """

    axes: int | None
    epsilon: Epsilon | None = None


@dataclass(frozen=True)
class Powers:
    """Powers of x, of the mean square with epsilon, and of the scale."""

    x: float = 0.0
    square: float = 0.0
    scale: float = 0.0

    def __add__(self, other: Powers) -> Powers:
        return Powers(self.x + other.x, self.square + other.square, self.scale + other.scale)

    def times(self, factor: float) -> Powers:
        return Powers(factor * self.x, factor * self.square, factor * self.scale)

    def __str__(self) -> str:
        named: dict[tuple[float, float, float], str] = {
            (1, 0, 0): "x",
            (2, 0, 0): "the squares",
            (0, 1, 0): "the mean square",
            (0, 0.5, 0): "the root mean square",
            (0, -0.5, 0): "rstd",
            (0, 0, 1): "the scale",
            (1, -0.5, 0): "x * rstd",
            (1, -0.5, 1): "the result",
        }
        return named.get((self.x, self.square, self.scale), "a part of the formula")


@dataclass(frozen=True)
class Rounding:
    """That something was rounded to 16 bits.

    Attributes:
        is_exact: no factor was on it: a constant, or a power of n.
    """

    powers: Powers
    dtype: str
    is_exact: bool


@dataclass(frozen=True)
class Product(Value):
    """A tensor: x ** a * (mean(x ** 2) + epsilon) ** b * (offset + gamma) ** c * n ** d * constant.

    Attributes:
        dtype: of the tensor.
        holds: a dtype that holds its values exactly, `dtype` or a narrower one.
        powers: a, b and c; columns: d.
        gamma: text of the scale.
        offset: what is added to gamma.
        per_row: False where the mean's axis was dropped, and not put back yet.
        fresh: no other tensor shares its memory, so that it may be changed in place.
        roundings: to 16 bits, in order.
    """

    dtype: str
    holds: str
    powers: Powers
    columns: float = 0.0
    constant: float = 1.0
    root: Root | None = None
    gamma: str | None = None
    offset: float = 0.0
    per_row: bool = True
    fresh: bool = False
    roundings: tuple[Rounding, ...] = ()

    def computed(self, dtype: str) -> Product:
        """The same as a result of arithmetic in `dtype`."""
        return replace(self, dtype=dtype, holds=dtype, fresh=True)._rounded(dtype)

    def cast(self, dtype: str) -> Product:
        if dtype == self.dtype:
            return self
        if dtype in (self.holds, "float64") or (dtype == "float32" and self.holds != "float64"):
            return replace(self, dtype=dtype, fresh=True)
        return self.computed(dtype)

    def _rounded(self, dtype: str) -> Product:
        if dtype not in SIXTEEN_BITS:
            return self
        step = Rounding(self.powers, dtype, self.constant == 1 and not self.columns)
        return replace(self, roundings=(*self.roundings, step))

    def raised(self, power: float) -> Value:
        if power <= 0 and (self.powers.x or self.powers.scale):
            return other_formula("divides by x or by the scale")
        if power != int(power) and (self.powers.x or self.powers.scale or self.constant < 0):
            return other_formula("takes a root of x or of the scale")
        try:
            constant = self.constant**power
        except ArithmeticError:  # 0 to a negative power, or too large
            return other_formula("raises a number to a power that it has not")
        return replace(
            self,
            powers=self.powers.times(power),
            columns=self.columns * power,
            constant=constant,
        ).computed(self.dtype)

    def is_mean_square(self) -> bool:
        return self.powers == Powers(square=1) and not self.columns and self.constant == 1


def dtype_name(dtype: object) -> str:
    """The name of one of PyTorch's dtypes, layouts, …, without its module."""
    return str(dtype).removeprefix("torch.")


def tensor_x(dtype: str) -> Product:
    return Product(dtype, dtype, Powers(x=1))


def scale(text: str, dtype: str) -> Product:
    return Product(dtype, dtype, Powers(scale=1), gamma=text)


def other_formula(reason: str) -> Unknown:
    return Unknown(Cause.OTHER_FORMULA, reason)


def is_literal(value: Value) -> TypeGuard[Number]:
    """A number whose value stands in the source; one with a name may change, and is epsilon."""
    return isinstance(value, Number) and value.text is None


def promoted(a: str, b: str) -> str:
    """The dtype of an operation on tensors of two dtypes."""
    if a == b:
        return a
    return "float64" if "float64" in (a, b) else "float32"


def multiplied(a: Product, b: Product) -> Value:
    for one, other in ((a, b), (b, a)):
        if not one.per_row and other.powers.x:
            return other_formula("drops the axis of the mean, so that rows and columns mix")
    if a.root and b.root and a.root != b.root:
        return other_formula("divides by two different means")
    if a.gamma and b.gamma and (a.gamma, a.offset) != (b.gamma, b.offset):
        return other_formula(f"scales by {a.gamma} and by {b.gamma}")
    return Product(
        dtype=a.dtype,
        holds=a.dtype,
        powers=a.powers + b.powers,
        columns=a.columns + b.columns,
        constant=a.constant * b.constant,
        root=a.root or b.root,
        gamma=a.gamma or b.gamma,
        offset=a.offset if a.gamma else b.offset,
        per_row=a.per_row and b.per_row,
        roundings=(*a.roundings, *(each for each in b.roundings if each not in a.roundings)),
    ).computed(promoted(a.dtype, b.dtype))


def times_number(a: Product, factor: float, columns: float = 0.0) -> Value:
    if factor == 1 and not columns:
        return replace(a, fresh=True)
    changed = replace(a, constant=a.constant * factor, columns=a.columns + columns)
    return changed.computed(a.dtype)


def added(a: Product, other: Value) -> Value:
    """a + other, where that is epsilon added to the mean square or an offset to the scale."""
    if isinstance(other, Unknown):
        return other
    if a.powers == Powers(scale=1) and a.constant == 1 and not a.columns and is_literal(other):
        return replace(a, offset=a.offset + other.value).computed(a.dtype)
    if is_literal(other) and other.value == 0:
        return a.computed(a.dtype)
    if a.powers.x:
        return other_formula(f"adds {text_of(other)}")
    if not isinstance(other, Number) and not (isinstance(other, Symbol) and other.is_number):
        return other_formula(f"adds {text_of(other)}, which may be no number")
    if a.powers.square and not a.is_mean_square():
        where = "outside of the root" if a.powers.square != 1 else "to a multiple of the mean"
        return other_formula(f"adds {text_of(other)} {where}")
    if not a.is_mean_square() or a.root is None:
        return other_formula(f"adds {text_of(other)} to something other than the mean square")
    if a.root.epsilon is not None:
        return other_formula("adds two numbers to the mean square")
    value = other.value if isinstance(other, Number) else None
    root = replace(a.root, epsilon=Epsilon(other.text, value))
    return replace(a, root=root).computed(a.dtype)


def text_of(value: Value) -> str:
    if isinstance(value, Symbol):
        return value.text
    if isinstance(value, Number):
        return value.text or f"{value.value:g}"
    if isinstance(value, Product) and value.gamma and not value.powers.x:
        return value.gamma
    if isinstance(value, Constant):
        return repr(value.value)
    return "another tensor"
