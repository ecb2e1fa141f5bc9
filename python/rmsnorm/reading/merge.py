"""From what a source computes in each mix of dtypes and on each path to one description."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product

from rmsnorm.reading.describe import Meaning
from rmsnorm.reading.finding import Cause, Description, Finding, Kind, Span
from rmsnorm.reading.values import FLOATS, SIXTEEN_BITS, Unknown

Path = tuple[tuple[str, bool], ...]  # how conditions turn out, by their text
Found = dict[Path, Meaning | Unknown]


def finding(
    kind: Kind, name: str, node: ast.FunctionDef | ast.expr, what: Description | Unknown
) -> Finding:
    """What was found at a node of the source."""
    span = Span.of(node)
    if isinstance(what, Unknown):
        return Finding(kind, name, span, None, what.cause, what.reason)
    return Finding(kind, name, span, what)


def described(run: Callable[[str, str], Found], x: str) -> Description | Unknown:
    """The description that holds for x and gamma of one dtype; notes say where it doesn't.

    Args:
        run: what is computed on each path, for dtypes of x and gamma.
        x: the text of what is normalized.
    """
    found = {("float32", "float32"): run("float32", "float32")}
    if any(isinstance(each, Meaning) for each in found["float32", "float32"].values()):
        found |= {pair: run(*pair) for pair in product(FLOATS, FLOATS) if pair not in found}
        return _merged(found, x)
    (path, first), *_ = found["float32", "float32"].items()
    assert isinstance(first, Unknown)
    return replace(first, reason=_where(path) + first.reason)


def _merged(found: Mapping[tuple[str, str], Found], x: str) -> Description | Unknown:
    paths = list(found["float32", "float32"])
    if any(list(found[dtype, dtype]) != paths for dtype in SIXTEEN_BITS):
        return Unknown(Cause.UNREADABLE, "branches in one dtype and not in another")
    each_path = [_on_path(found, path, x) for path in paths]
    for path, each in zip(paths, each_path, strict=True):
        if isinstance(each, Unknown):
            return replace(each, reason=_where(path) + each.reason)
    descriptions = [each for each in each_path if isinstance(each, Description)]
    first = descriptions[0]
    if all(each == first for each in descriptions):
        return first
    return _optional_scale(paths, descriptions)


def _on_path(found: Mapping[tuple[str, str], Found], path: Path, x: str) -> Description | Unknown:
    equal = {dtype: found[dtype, dtype][path] for dtype in FLOATS}
    for each in equal.values():
        if isinstance(each, Unknown):
            return each
    in_32, bfloat16, float16 = (each for each in equal.values() if isinstance(each, Meaning))
    keeps_dtype = bfloat16.out_dtype == "bfloat16"
    if (bfloat16.rounding, keeps_dtype) != (float16.rounding, float16.out_dtype == "float16"):
        return Unknown(Cause.OTHER_ROUNDING, "rounds otherwise in bfloat16 than in float16")
    shared = {(each.gamma, each.epsilon, each.gamma_offset) for each in (in_32, bfloat16, float16)}
    if len(shared) > 1:
        return Unknown(Cause.OTHER_FORMULA, "computes other things in 16 bits than in float32")
    if in_32.axes not in (1, None):
        return Unknown(Cause.OTHER_FORMULA, f"takes the mean over {in_32.axes} axes")
    epsilon = in_32.epsilon
    if epsilon.text is None and epsilon.value is None:
        return Unknown(Cause.UNREADABLE, "leaves epsilon to F.rms_norm, which takes the dtype's")
    description = Description(
        x=x,
        gamma=in_32.gamma,
        gamma_if=None,
        epsilon=epsilon.text or repr(epsilon.value),
        gamma_offset=in_32.gamma_offset,
        rounding=bfloat16.rounding,
        keeps_dtype=keeps_dtype,
    )
    return replace(description, notes=tuple(_notes(found, path, description)))


def _optional_scale(paths: list[Path], found: list[Description]) -> Description | Unknown:
    """One description for two paths that differ in whether gamma scales."""
    scaled = next((each for each in found if each.gamma is not None), None)
    if len(paths) == 2 and scaled is not None:
        plain = found[1 - found.index(scaled)]
        without = replace(
            scaled, gamma=None, gamma_offset=0.0, rounding=plain.rounding, notes=plain.notes
        )
        ((condition, turn),) = paths[found.index(scaled)]
        if plain == without and plain.rounding in ("once", scaled.rounding):
            if condition == f"{scaled.gamma} is None":
                return scaled
            return replace(scaled, gamma_if=condition if turn else f"not ({condition})")
    conditions = " and ".join(f"`{condition}`" for condition, _ in paths[-1])
    return Unknown(Cause.UNREADABLE, f"computes different norms as {conditions} turns out")


def _notes(
    found: Mapping[tuple[str, str], Found], path: Path, description: Description
) -> list[str]:
    """In which mixes of dtypes the call does something else than the source."""
    notes: dict[str, str] = {}
    for (x, gamma), paths in found.items():
        if x == gamma or description.gamma is None:
            continue
        means = paths.get(path, Unknown(Cause.UNREADABLE, "branches"))
        mix = f"where {description.x} is {_bits(x)} and {description.gamma} {_bits(gamma)}"
        if {x, gamma} <= set(SIXTEEN_BITS):
            mix = f"where {description.x} and {description.gamma} mix bfloat16 and float16"
        now = x if description.keeps_dtype else "float32"
        if isinstance(means, Unknown):
            notes[mix] = f"{mix}, the source {means.reason}; the call returns {_short(x, now)}"
        elif means.out_dtype != now:
            notes[mix] = f"{mix}, y was {means.out_dtype} and is of {_short(x, now)} now"
        elif x in SIXTEEN_BITS and means.rounding != description.rounding:
            notes[mix] = f"{mix}, the source rounds {means.rounding}"
    return list(notes.values())


def _short(x: str, dtype: str) -> str:
    return "x's dtype" if dtype == x else dtype


def _bits(dtype: str) -> str:
    return "16-bit" if dtype in SIXTEEN_BITS else dtype


def _where(path: Path) -> str:
    if not path:
        return ""
    turns = (condition if turn else f"not ({condition})" for condition, turn in path)
    return f"where `{' and '.join(turns)}`, "
