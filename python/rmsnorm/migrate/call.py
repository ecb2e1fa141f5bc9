"""A norm's description as the call that replaces it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from rmsnorm.reading.finding import Description

_EPSILON = 1e-6  # the default of both calls


class Target(Enum):
    RMSNORM = "rmsnorm"
    TORCH_NPU = "torch_npu"


class CannotRewriteError(Exception):
    """Says why, in a sentence for the report."""


@dataclass(frozen=True)
class Call:
    """module.function(arguments)suffix; `modules` must be imported."""

    function: str
    arguments: tuple[str, ...]
    suffix: str
    modules: tuple[str, ...]
    notes: tuple[str, ...]

    def text(self, names: dict[str, str]) -> str:
        """On one line; names: what the file calls each module."""
        return f"{self._function(names)}({', '.join(self._arguments(names))}){self.suffix}"

    def statement(self, names: dict[str, str], indent: str, room: int) -> str:
        """`return` it, over three lines where it is wider than `room`, each `indent` deep."""
        text = f"return {self.text(names)}"
        if len(text) <= room:
            return text
        arguments = ", ".join(self._arguments(names))
        return f"return {self._function(names)}(\n{indent}{arguments}\n){self.suffix}"

    def _function(self, names: dict[str, str]) -> str:
        return f"{names[self.modules[0]]}.{self.function}"

    def _arguments(self, names: dict[str, str]) -> list[str]:
        torch = names.get("torch", "torch")
        return [
            f"out_dtype={torch}.float32" if argument == "out_dtype=torch.float32" else argument
            for argument in self.arguments
        ]


def call_of(norm: Description, target: Target) -> Call:
    """Raises CannotRewriteError where the target has no call that computes this."""
    return _rmsnorm(norm) if target is Target.RMSNORM else _torch_npu(norm)


def _rmsnorm(norm: Description) -> Call:
    arguments, modules = [norm.x], ["rmsnorm"]
    if norm.gamma is not None:
        condition = f" if {norm.gamma_if} else None" if norm.gamma_if else ""
        arguments.append(norm.gamma + condition)
    if not _is_default(norm.epsilon):
        arguments.append(norm.epsilon if norm.gamma is not None else f"epsilon={norm.epsilon}")
    if norm.gamma_offset:
        arguments.append(f"gamma_offset={norm.gamma_offset}")
    rounds_once = norm.rounding == "once" or (norm.gamma is None and norm.keeps_dtype)
    if not rounds_once:
        arguments.append(f'rounding="{norm.rounding}"')
    if not norm.keeps_dtype:
        arguments.append("out_dtype=torch.float32")
        modules.append("torch")
    return Call("rms_norm", tuple(arguments), "", tuple(modules), norm.notes)


def _torch_npu(norm: Description) -> Call:
    if norm.gamma is None:
        raise CannotRewriteError("torch_npu.npu_rms_norm needs a gamma; this has none")
    if norm.gamma_if is not None:
        raise CannotRewriteError(
            f"torch_npu.npu_rms_norm needs a gamma; this has one only if {norm.gamma_if}"
        )
    if not norm.keeps_dtype:
        raise CannotRewriteError(
            "torch_npu.npu_rms_norm returns the dtype of x; this returns float32"
        )
    gamma, notes = norm.gamma, list(norm.notes)
    if norm.gamma_offset:
        gamma = f"{norm.gamma_offset} + {gamma}"
        notes.append(f"in 16 bits {gamma} is rounded to gamma's dtype; the source may add in 32")
    if norm.rounding != "once":
        notes.append("torch_npu rounds once, at the end; the source in 16 bits also before gamma")
    arguments = [norm.x, gamma]
    if not _is_default(norm.epsilon):
        arguments.append(f"epsilon={norm.epsilon}")
    return Call("npu_rms_norm", tuple(arguments), "[0]", ("torch_npu",), tuple(notes))


def in_words(norm: Description) -> str:
    """What it computes, in a line."""
    scale = f"({norm.gamma_offset:g} + {norm.gamma})" if norm.gamma_offset else norm.gamma
    formula = f"{norm.x} / rms({norm.x})"
    if scale is not None:
        formula += f" * {scale}" + (f" if {norm.gamma_if}" if norm.gamma_if else "")
    words = [formula, f"epsilon {norm.epsilon}"]
    if norm.gamma is not None:
        words.append("rounded " + ("once" if norm.rounding == "once" else "before gamma"))
    words.append("in x's dtype" if norm.keeps_dtype else "in float32")
    return ", ".join(words)


def _is_default(epsilon: str) -> bool:
    try:
        return float(epsilon) == _EPSILON
    except ValueError:
        return False
