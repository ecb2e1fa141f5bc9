"""From the value that a function returns to the form of RMSNorm that it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rmsnorm.reading.finding import Cause
from rmsnorm.reading.interpreter import Interpreter, Undecided
from rmsnorm.reading.values import (
    Epsilon,
    Powers,
    Product,
    Refused,
    Unknown,
    Value,
    other_formula,
)

_PATHS = 16  # of branches that are followed


@dataclass(frozen=True)
class Meaning:
    """What a function computes in one mix of dtypes: the arguments of rms_norm, in the source's
    words.

    Attributes:
        axes: how many trailing axes the mean goes over; None: as many as gamma has.
    """

    gamma: str | None
    epsilon: Epsilon
    gamma_offset: float
    rounding: str
    out_dtype: str
    axes: int | None


def meaning(value: Value, x_dtype: str) -> Meaning | Unknown:
    """The form of RMSNorm that `value` is, for x of a dtype."""
    if isinstance(value, Unknown):
        return value
    if not isinstance(value, Product):
        return Unknown(Cause.UNREADABLE, "returns something other than one tensor")
    if isinstance(wrong := _wrong_formula(value), Unknown):
        return wrong
    if value.dtype not in (x_dtype, "float32"):
        return Unknown(Cause.OTHER_ROUNDING, f"returns {value.dtype} for x of {x_dtype}")
    result = value.powers
    rounding = "once"
    for step in value.roundings:
        if step.powers == result and step.dtype == value.dtype and step.is_exact:
            continue
        if step.powers != Powers(1, -0.5) or step.dtype != x_dtype or not step.is_exact:
            what = step.powers if step.is_exact else f"a multiple of {step.powers}"
            reason = f"rounds {what} to {step.dtype}, where no form does"
            return Unknown(Cause.OTHER_ROUNDING, reason)
        rounding = "before_gamma"
    assert value.root is not None
    epsilon = value.root.epsilon or Epsilon(None, 0.0)
    return Meaning(value.gamma, epsilon, value.offset, rounding, value.dtype, value.root.axes)


def by_path(
    run: Callable[[Interpreter], Value], x_dtype: str
) -> dict[tuple[tuple[str, bool], ...], Meaning | Unknown]:
    """What is computed, by how the conditions turn out that only a run knows."""
    found: dict[tuple[tuple[str, bool], ...], Meaning | Unknown] = {}
    waiting: list[dict[str, bool]] = [{}]
    while waiting:
        decisions = waiting.pop()
        if len(found) + len(waiting) > _PATHS:
            return {(): Unknown(Cause.UNREADABLE, "has too many branches to follow")}
        key = tuple(decisions.items())
        try:
            found[key] = meaning(run(Interpreter(decisions)), x_dtype)
        except Undecided as undecided:
            waiting += [{**decisions, undecided.condition: turn} for turn in (False, True)]
        except Refused as refused:
            found[key] = refused.unknown
        except RecursionError:
            found[key] = Unknown(Cause.UNREADABLE, "is nested too deep to follow")
    return found


def _wrong_formula(value: Product) -> Unknown | None:
    powers = value.powers
    if powers.x != 1 or powers.square != -0.5:
        return other_formula("computes something other than x times rstd")
    if powers.scale != (0 if value.gamma is None else 1):
        return other_formula(f"scales by a power of {value.gamma}")
    if value.offset not in (0, 1):
        return other_formula(f"adds {value.offset:g} to {value.gamma}")
    if value.columns or value.constant != 1:
        return other_formula("is off by a factor: a sum in place of a mean, or a constant")
    if not value.per_row:
        return other_formula("drops the axis of the mean")
    return None
