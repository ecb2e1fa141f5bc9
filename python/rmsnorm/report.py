"""What patch did, made to be printed; as a context manager it undoes that."""

from __future__ import annotations

import textwrap
import weakref
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from rmsnorm.forms import Difference, Match
from rmsnorm.fused import restore
from rmsnorm.reading.values import dtype_name


@dataclass(frozen=True)
class Replaced:
    """A norm that is fused now.

    Attributes:
        name: as in named_modules() of the model.
        class_name: of the model's own class.
        epsilon: its value.
        matches: one for each dtype of x that is fused; with others the own forward runs.
    """

    name: str
    class_name: str
    epsilon: float
    matches: tuple[Match, ...]

    def lines(self) -> list[str]:
        """What is the same for all modules of one kind."""
        form = self.matches[0].form
        scale = "no weight" if form.gamma is None else f"gamma_offset {form.gamma_offset:g}"
        lines = [f"{self.class_name}: epsilon {self.epsilon:g}, {scale}"]
        for match in self.matches:
            dtypes = f"{dtype_name(match.x_dtype)} -> {dtype_name(match.form.out_dtype)}"
            rounding = match.form.rounding
            if rounding != match.own_rounding:
                rounding += f", its own was {match.own_rounding}"
            lines.append(f"  {dtypes:20}  {rounding}")
            lines += [f"    {_in_words(difference)}" for difference in match.differences]
            if not match.differences:
                lines[-1] += "; not compared"
        return lines


@dataclass(frozen=True)
class Left:
    """A module with "norm" in the name of its class that stays as it is, and why."""

    name: str
    class_name: str
    reason: str

    def lines(self) -> list[str]:
        return textwrap.wrap(f"{self.class_name}: {self.reason}", 90)


@dataclass(frozen=True)
class Report:
    """What patch did: printed, modules of one kind stand together, in at most 100 columns.

    As a context manager it undoes at the end what its call of patch did, and nothing else. It
    doesn't keep the model alive.
    """

    replaced: tuple[Replaced, ...]
    left: tuple[Left, ...]
    _modules: tuple[weakref.ref[torch.nn.Module], ...] = field(
        default=(), repr=False, compare=False
    )

    def __str__(self) -> str:
        total = len(self.replaced) + len(self.left)
        lines = [f"replaced {len(self.replaced)} of {total} norms", *_grouped(self.replaced)]
        if self.left:
            lines += [f"left {len(self.left)} as they are", *_grouped(self.left)]
        return "\n".join(lines)

    def __enter__(self) -> Report:
        return self

    def __exit__(self, *_: object) -> None:
        for reference in self._modules:
            if (module := reference()) is not None:
                restore(module)

    def __reduce__(self) -> Any:
        """For pickle, which takes no weak references: modules don't travel with a report."""
        return Report, (self.replaced, self.left)


def _in_words(difference: Difference) -> str:
    if difference.differing == 0:
        return f"{difference.result}: equal bits in all {difference.values} values"
    return (
        f"{difference.result}: {difference.differing} of {difference.values} values differ, by "
        f"{difference.largest:.2g} at most; bound {difference.bound:.2g}"
    )


def _grouped(norms: Sequence[Replaced | Left]) -> list[str]:
    """Lines for all modules of one kind together: how many, what they share, their names."""
    groups = defaultdict(list)
    for norm in norms:
        groups["\n    ".join(norm.lines())].append(norm.name or "(the model itself)")
    lines = []
    for text, names in groups.items():
        lines += f"  {len(names)} × {text}".split("\n")
        listed = names if len(names) <= 4 else [*names[:2], "…", names[-1]]
        lines += textwrap.wrap(
            ", ".join(listed), 94, initial_indent="      ", subsequent_indent="      "
        )
    return lines
