"""docs/architectures.md: which RMSNorm a model has, and what patch makes of it."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

import torch
import transformers

from architectures.compare import DTYPES, Agreement, Compared
from rmsnorm.patch import Replaced

_HEAD = """\
# Which RMSNorm is my model?

Every architecture of transformers {version} whose source has an RMSNorm, built tiny from its config
class with random weights, and compared before and after `rmsnorm.patch(model)`.
`make migrate-table` writes this page and fails where something of it doesn't hold.

- **norms**: the leaves of the model that are a plain RMSNorm, which is decided without
  rmsnorm by their values (y = scale · x / rms(x) for one scale, over the last axis, for rows of any
  size), or have RMS in the name of their class; what each class computes stands
  [below](#what-the-classes-compute).
- **fused**: how many of them `patch` replaced; why the others are left stands
  [below](#left-as-they-are).
- **float32**, **bfloat16**: the largest relative difference, norm-wise, of the outputs / of the
  gradients of all parameters, as the next power of ten. Each is within its bound: no output and no
  gradient moves more than {factor} times as far as it does where every value that a norm returns
  moves by one machine epsilon. Each norm by itself, at the inputs that the model gives it, agrees
  in every value of y, dx and dgamma, but for the two roundings by which they may differ.
"""


def page(found: Sequence[Compared], not_built: dict[str, str], without: Sequence[str]) -> str:
    """The page, of architectures in their order."""
    parts = [
        _HEAD.format(version=transformers.__version__, factor=4),
        *_architectures(found),
        *_classes(found),
        *_left(found),
        *_not_built(not_built),
        *_counts(found, not_built, without),
    ]
    return "\n".join(parts) + "\n"


def share_replaced(found: Sequence[Compared]) -> float:
    """Of the plain norms of all architectures."""
    plain = sum(len(one.plain) for one in found)
    return sum(len(one.plain & one.replaced.keys()) for one in found) / plain


def _architectures(found: Sequence[Compared]) -> list[str]:
    lines = [
        "## Architectures\n",
        "| model type | model | norms | fused | float32 | bfloat16 |",
        "|---|---|---|---|---|---|",
    ]
    for one in found:
        norms = ", ".join(
            f"{n} × {name}" for name, n in sorted(Counter(one.norms.values()).items())
        )
        fused = f"{len(one.replaced.keys() & one.norms.keys())} of {len(one.norms)}"
        agreements = " | ".join(_agreement(one, dtype) for dtype in DTYPES)
        lines.append(f"| {one.model_type} | {one.class_name} | {norms} | {fused} | {agreements} |")
    return [*lines, ""]


def _agreement(one: Compared, dtype: torch.dtype) -> str:
    agreement = one.agreements[dtype]
    if isinstance(agreement, str):
        return f"its own forward fails: {agreement}"
    fused = len(agreement.report.replaced)
    fewer = f"{fused} fused: " if fused != len(one.replaced) else ""
    broken = " **outside of its bound**" if agreement.broken else ""
    return f"{fewer}{_power(agreement.outputs)} / {_power(agreement.gradients)}{broken}"


def _power(value: float) -> str:
    return "0" if value == 0 else f"1e{math.ceil(math.log10(value)):d}"


def _classes(found: Sequence[Compared]) -> list[str]:
    """One row for each class and way to compute, with the number of architectures."""
    used: dict[tuple[str, str, str, str, str], set[str]] = defaultdict(set)
    for one in found:
        in_16_bits = one.agreements[torch.bfloat16]
        again = in_16_bits.report.replaced if isinstance(in_16_bits, Agreement) else ()
        rounding = {norm.name: _rounding(norm) for norm in again}
        for name, norm in one.replaced.items():
            form = norm.matches[0].form
            used[
                norm.class_name,
                "none" if form.gamma is None else f"`{form.gamma}`",
                f"{form.gamma_offset:g}",
                f"`{form.epsilon}`" if isinstance(form.epsilon, str) else f"{form.epsilon:g}",
                rounding.get(name, ""),
            ].add(one.model_type)
    lines = [
        "## What the classes compute\n",
        "| class | gamma | added to gamma | epsilon | rounding in bfloat16 | architectures |",
        "|---|---|---|---|---|---|",
    ]
    for row, types in sorted(used.items()):
        lines.append(f"| {' | '.join(row)} | {_few(types)} |")
    return [*lines, ""]


def _rounding(norm: Replaced) -> str:
    for match in norm.matches:
        if match.x_dtype == torch.bfloat16:
            return f"{match.form.rounding}, returns {str(match.form.out_dtype)[6:]}"
    return "its own forward"


def _few(types: set[str]) -> str:
    names = sorted(types)
    return (
        ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:2])} and {len(names) - 2} more"
    )


def _left(found: Sequence[Compared]) -> list[str]:
    reasons: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for one in found:
        for name, norm in one.left.items():
            kind = "plain" if name in one.plain else "other"
            reasons[norm.class_name, kind, norm.reason].append(one.model_type)
    lines = [
        "## Left as they are\n",
        "| class | kind | why | norms | architectures |",
        "|---|---|---|---|---|",
    ]
    for (class_name, kind, reason), types in sorted(reasons.items()):
        lines.append(f"| {class_name} | {kind} | {reason} | {len(types)} | {_few(set(types))} |")
    return [*lines, ""]


def _not_built(reasons: dict[str, str]) -> list[str]:
    lines = ["## Not built\n", "| model type | why |", "|---|---|"]
    lines += [f"| {name} | {reason} |" for name, reason in sorted(reasons.items())]
    return [*lines, ""]


def _counts(
    found: Sequence[Compared], not_built: dict[str, str], without: Sequence[str]
) -> list[str]:
    norms = sum(len(one.norms) for one in found)
    plain = sum(len(one.plain) for one in found)
    replaced = sum(len(one.plain & one.replaced.keys()) for one in found)
    left = sum(len(one.left) for one in found)
    reached = sum(_reached(one) for one in found)
    fused = sum(len(one.replaced) for one in found)
    in_16_bits = sum(isinstance(one.agreements[torch.bfloat16], Agreement) for one in found)
    broken = sum(bool(one.broken) for one in found)
    return [
        "## Counts\n",
        f"- {len(found)} architectures were built and compared in float32, {in_16_bits} of them in "
        f"bfloat16; {broken} are outside of a bound.",
        f"- {len(not_built)} can't be built here; {len(without)} more have no RMSNorm among their "
        "modules, though their source has one.",
        f"- {norms} norms: {fused} are fused, {left} are left.",
        f"- {plain} of them are plain: {replaced} are fused, {100 * share_replaced(found):.1f} %.",
        f"- {reached} of the fused norms ran in the model, at its own inputs; the others, mostly "
        "of vision and audio encoders that tokens alone don't reach, ran on random rows.",
    ]


def _reached(one: Compared) -> int:
    agreement = one.agreements[torch.float32]
    return agreement.reached if isinstance(agreement, Agreement) else 0
