"""What PyTorch's operations make of the values of a norm. What isn't here isn't followed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from rmsnorm.reading.finding import Cause
from rmsnorm.reading.values import (
    Columns,
    Constant,
    Dtype,
    Epsilon,
    Number,
    Powers,
    Product,
    Root,
    Shape,
    Symbol,
    Unknown,
    Value,
    added,
    is_literal,
    multiplied,
    other_formula,
    scale,
    text_of,
    times_number,
)

NONE = Constant(None)
Operation = Callable[..., Value]


def as_scale(value: Value) -> Value:
    """A name that may be a scale, as one."""
    if isinstance(value, Symbol) and value.scale_dtype is not None:
        return scale(value.text, value.scale_dtype)
    return value


def unfollowed(*values: Value) -> Unknown:
    """The reason of the first value that has one."""
    for value in values:
        if isinstance(value, Unknown):
            return value
    others = [value.text for value in values if isinstance(value, Symbol)]
    if others and len(values) > len(others):
        return Unknown(Cause.GATED, f"computes with {', '.join(others)}")
    return other_formula(f"computes with {', '.join(map(text_of, values))}")


def power(a: Value, exponent: Value) -> Value:
    if not is_literal(exponent):
        return other_formula(f"raises to the power {text_of(exponent)}")
    if isinstance(a, Product):
        return a.raised(exponent.value)
    if isinstance(a, Columns):
        return Columns(a.power * exponent.value)
    if is_literal(a):
        try:
            return Number(float(a.value**exponent.value))
        except (ArithmeticError, TypeError):
            return other_formula("raises a number to a power that it has not")
    return unfollowed(a)


def times(a: Value, b: Value) -> Value:
    for one, other in ((a, b), (b, a)):
        if isinstance(one, Product):
            if isinstance(other, Symbol) and other.scale_dtype is None:
                return Unknown(
                    Cause.GATED, f"multiplies by {other.text}, which is no parameter of its own"
                )
            if isinstance(other, (Product, Symbol)):
                factor = as_scale(other)
                return multiplied(one, factor) if isinstance(factor, Product) else factor
            if is_literal(other):
                return times_number(one, other.value)
            if isinstance(other, Columns):
                return times_number(one, 1.0, other.power)
            if isinstance(other, Number):
                return other_formula(f"multiplies by {other.text}")
    if is_literal(a) and is_literal(b):
        return Number(a.value * b.value)
    if isinstance(a, Columns) and isinstance(b, Columns):
        return Columns(a.power + b.power)
    return unfollowed(a, b)


def over(a: Value, b: Value) -> Value:
    if isinstance(b, Number) and b.value == 0:
        return other_formula("divides by zero")
    return times(a, power(b, Number(-1.0)))


def plus(a: Value, b: Value) -> Value:
    if is_literal(a) and is_literal(b):
        return Number(a.value + b.value)
    if is_literal(a) and isinstance(b, (Product, Symbol)):
        a, b = b, a
    if isinstance(b, Product) and not b.powers.x and not isinstance(a, Product):
        a, b = b, a
    if is_literal(b):
        a = as_scale(a)
    return added(a, b) if isinstance(a, Product) else unfollowed(a, b)


def minus(a: Value, b: Value) -> Value:
    if isinstance(a, Product) and a.powers.x:
        return other_formula(f"subtracts {text_of(b)}") if isinstance(b, Product) else plus(a, b)
    return plus(a, Number(-b.value)) if is_literal(b) else unfollowed(a, b)


def negative(a: Value) -> Value:
    return times(a, Number(-1.0))


def square(input: Value) -> Value:
    return power(input, Number(2.0))


def sqrt(input: Value) -> Value:
    return power(input, Number(0.5))


def rsqrt(input: Value) -> Value:
    return power(input, Number(-0.5))


def reciprocal(input: Value) -> Value:
    return power(input, Number(-1.0))


def mean(input: Value, dim: Value = NONE, keepdim: Value = NONE, *, dtype: Value = NONE) -> Value:
    if dtype != NONE:
        input = to(input, dtype)
    if not isinstance(input, Product):
        return unfollowed(input)
    axes = _trailing_axes(dim)
    if isinstance(dim, Symbol):
        return Unknown(Cause.UNREADABLE, f"takes a mean over axis {dim.text}, which isn't known")
    if axes is None:
        return other_formula("takes a mean or sum over other axes than the last ones")
    if input.powers != Powers(x=2) or input.constant != 1 or input.columns:
        like = ", as LayerNorm does" if input.powers == Powers(x=1) else ""
        return other_formula(
            f"takes the mean of {_described(input)}{like}, not of the squares of x"
        )
    found = replace(
        input, powers=Powers(square=1), root=Root(axes), per_row=keepdim == Constant(True)
    )
    return found.computed(input.dtype)


def total(input: Value, dim: Value = NONE, keepdim: Value = NONE, *, dtype: Value = NONE) -> Value:
    """A sum: the mean times n."""
    found = mean(input, dim, keepdim, dtype=dtype)
    if not isinstance(found, Product):
        return found
    if found.root != Root(1):  # n is the length of the last axis
        return other_formula("takes a sum over several axes")
    return replace(found, columns=1.0)


def norm(
    input: Value,
    p: Value = Number(2.0),  # noqa: B008  (a constant)
    dim: Value = NONE,
    keepdim: Value = NONE,
    dtype: Value = NONE,
) -> Value:
    if p not in (Number(2.0), Constant("fro"), NONE):
        return other_formula("takes another norm than the Euclidean one")
    return sqrt(total(square(input), dim, keepdim, dtype=dtype))


def to(input: Value, *targets: Value, **options: Value) -> Value:
    """A cast; devices and copies change no value."""
    input = as_scale(input)
    if not isinstance(input, Product):
        return unfollowed(input)
    for target in (*targets, *(options[key] for key in ("dtype", "other") if key in options)):
        if isinstance(target, Dtype):
            return input.cast(target.name)
        if isinstance(target, Product):
            return input.cast(target.dtype)
        if isinstance(target, Unknown):
            return target
        if isinstance(target, Constant) and not isinstance(target.value, str):
            continue  # non_blocking, copy
        if not _is_device(target):
            return Unknown(Cause.UNREADABLE, f"casts to {text_of(target)}, which isn't followed")
    return input


def _is_device(target: Value) -> bool:
    if isinstance(target, Symbol):
        return target.text.endswith("device")
    devices = ("cpu", "cuda", "npu", "xpu", "mps", "meta")
    return isinstance(target, Constant) and str(target.value).partition(":")[0] in devices


def rms_norm(
    input: Value, normalized_shape: Value, weight: Value = NONE, eps: Value = NONE
) -> Value:
    """torch.nn.functional.rms_norm: float32 inside, one rounding at the end."""
    if not isinstance(input, Product) or input.powers != Powers(x=1):
        return unfollowed(input)
    axes = _axes_of(normalized_shape)
    if weight == NONE and axes is None:
        return Unknown(Cause.UNREADABLE, "normalizes over a shape that isn't known")
    if isinstance(eps, Symbol) and not eps.is_given:
        return Unknown(Cause.UNREADABLE, f"gives F.rms_norm {eps.text}, which may be None")
    if isinstance(eps, (Number, Symbol)):
        value = eps.value if isinstance(eps, Number) else None
        epsilon = Epsilon(eps.text, value)
    elif eps == NONE:
        epsilon = Epsilon(None, None)
    else:
        return unfollowed(eps)
    weight = as_scale(weight)
    wide = replace(input, dtype="float32", powers=Powers(1, -0.5), root=Root(axes, epsilon))
    if isinstance(weight, Product) and weight.powers == Powers(scale=1):
        scaled = multiplied(wide.computed("float32"), weight)
    elif weight == NONE:
        scaled = wide.computed("float32")
    else:
        return unfollowed(weight)
    return scaled.cast(input.dtype) if isinstance(scaled, Product) else scaled


def unsqueeze(input: Value, dim: Value) -> Value:
    if (
        isinstance(input, Product)
        and not input.per_row
        and input.root is not None
        and input.root.axes == 1  # several axes need as many
        and dim == Number(-1.0)
    ):
        return replace(input, per_row=True, fresh=False)
    return reshaped(input)


def unchanged(input: Value, *_: Value, **__: Value) -> Value:
    return input


def copied(input: Value, *_: Value, **__: Value) -> Value:
    return replace(input, fresh=True) if isinstance(input, Product) else input


def detached(*_: Value, **__: Value) -> Value:
    return Unknown(Cause.SIDE_EFFECT, "keeps a part of the gradient back")


def reshaped(*_: Value, **__: Value) -> Value:
    return Unknown(
        Cause.GROUPED, "changes the shape of a tensor: a norm over groups, or other axes"
    )


def random(*_: Value, **__: Value) -> Value:
    return Unknown(Cause.SIDE_EFFECT, "draws random numbers")


def size(input: Value, dim: Value = NONE) -> Value:
    if not isinstance(input, Product) or not input.powers.x:
        return Symbol("the size of another tensor", None)
    if dim == NONE:
        return Shape()
    return Columns() if dim == Number(-1.0) else Symbol("another size of x", None)


def _cast_to(name: str) -> Operation:
    def cast(input: Value, *_: Value, **__: Value) -> Value:
        return to(input, Dtype(name))

    return cast


def _refuses(reason: str) -> Operation:
    def refuse(*_: Value, **__: Value) -> Value:
        return other_formula(reason)

    return refuse


def _gate(name: str) -> Operation:
    def refuse(input: Value, *_: Value, **__: Value) -> Value:
        return input if isinstance(input, Unknown) else Unknown(Cause.GATED, f"goes through {name}")

    return refuse


# By the name of the method, or of the function without its module.
OPERATIONS: dict[str, Operation] = {
    **dict.fromkeys(("mul", "multiply"), times),
    **dict.fromkeys(("div", "divide", "true_divide", "truediv"), over),
    **dict.fromkeys(("add",), plus),
    **dict.fromkeys(("sub", "subtract"), minus),
    **dict.fromkeys(("neg", "negative"), negative),
    **dict.fromkeys(("pow",), power),
    "square": square,
    "sqrt": sqrt,
    "rsqrt": rsqrt,
    "reciprocal": reciprocal,
    "mean": mean,
    "sum": total,
    **dict.fromkeys(("norm", "vector_norm"), norm),
    **dict.fromkeys(("to", "type", "type_as", "astype"), to),
    "float": _cast_to("float32"),
    "double": _cast_to("float64"),
    "half": _cast_to("float16"),
    "bfloat16": _cast_to("bfloat16"),
    "rms_norm": rms_norm,
    "unsqueeze": unsqueeze,
    **dict.fromkeys(("contiguous", "cuda", "cpu"), unchanged),
    "clone": copied,
    **dict.fromkeys(("detach", "item", "tolist", "numpy"), detached),
    **dict.fromkeys(
        ("view", "reshape", "unflatten", "flatten", "permute", "transpose", "squeeze", "expand"),
        reshaped,
    ),
    **dict.fromkeys(("dropout", "rand", "randn", "rand_like", "randn_like", "bernoulli"), random),
    "size": size,
    **dict.fromkeys(("var", "std", "var_mean"), _refuses("takes a variance: subtracts the mean")),
    **dict.fromkeys(("layer_norm", "group_norm", "batch_norm"), _refuses("subtracts the mean")),
    "normalize": _refuses("calls F.normalize: the L2 norm, with a floor where epsilon would be"),
    **dict.fromkeys(
        ("clamp", "clip", "clamp_min", "clamp_max", "minimum", "maximum", "max"), _refuses("clamps")
    ),
    **dict.fromkeys(("abs", "absolute"), _refuses("takes absolute values")),
    **{
        name: _gate(name)
        for name in ("sigmoid", "tanh", "silu", "gelu", "relu", "softplus", "softmax", "exp")
    },
}


def _described(value: Product) -> str:
    if value.powers.scale:
        return "scaled x"
    return "x" if value.powers == Powers(x=1) else str(value.powers)


def _axes_of(shape: Value) -> int | None:
    """How many axes F.rms_norm goes over; None: as many as its weight has, or unknown."""
    if not isinstance(shape, Constant) or not isinstance(shape.value, (tuple, list)):
        return None
    known = all(isinstance(size, (int, float, Columns)) for size in shape.value)
    return len(shape.value) if known else None


def _trailing_axes(dim: Value) -> int | None:
    """How many last axes -1, (-1,), (-2, -1), … are."""
    axes = dim.value if isinstance(dim, (Number, Constant)) else None
    listed = sorted(axes) if isinstance(axes, (tuple, list)) else [axes]
    return len(listed) if listed == list(range(-len(listed), 0)) else None
