"""What reading a source finds: each norm in it, with what it computes or why it can't be told."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from enum import Enum


def first_line(node: ast.stmt | ast.expr) -> int:
    """That of its first decorator, or its own."""
    return min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", ()))])


class Kind(Enum):
    """What holds a norm, and so what a rewrite replaces."""

    CLASS = "class"  # the body of its forward; helper methods that nothing else calls go with it
    FUNCTION = "function"  # the body of a function of x, gamma and epsilon
    EXPRESSION = "expression"  # one expression inside a larger function


@dataclass(frozen=True)
class Span:
    """A place in a file, as Python's ast counts: lines from 1, columns from 0 in UTF-8 bytes."""

    line: int
    column: int
    end_line: int
    end_column: int

    @classmethod
    def of(cls, node: ast.stmt | ast.expr) -> Span:
        """From the first line of its decorators, where it has some, to its end."""
        end = node.end_lineno or 0, node.end_col_offset or 0
        return cls(first_line(node), node.col_offset, *end)


@dataclass(frozen=True)
class Description:
    """What a norm computes, in the words of its own source.

    Attributes:
        x: the argument that is normalized: a name, or the text of an expression.
        gamma: the text of the scale, such as "self.weight"; None where there is none.
        gamma_if: the text of the condition under which gamma scales, such as "self.with_scale";
            None: always.
        epsilon: text, such as "self.eps" or "1e-06".
        gamma_offset, rounding: as in rms_norm, where x and gamma have one dtype.
        keeps_dtype: True: y has x's dtype. False: y is float32, whatever x is.
        notes: for each mix of dtypes in which rms_norm with these arguments rounds otherwise or
            returns another dtype than the source: one sentence.
    """

    x: str
    gamma: str | None
    gamma_if: str | None
    epsilon: str
    gamma_offset: float
    rounding: str
    keeps_dtype: bool = True
    notes: tuple[str, ...] = ()


class Cause(Enum):
    """Why something is no norm that the operator computes."""

    OTHER_FORMULA = "other formula"  # a mean subtracted, a sum, a clamp, epsilon elsewhere, …
    OTHER_ROUNDING = "other rounding"  # the formula, but rounded to 16 bits where no form rounds
    GROUPED = "grouped"  # over a part of the columns that gamma spans
    GATED = "gated"  # another tensor takes part
    SIDE_EFFECT = "side effect"  # changes x or itself, draws random numbers, has no gradient
    UNREADABLE = "unreadable"  # calls or branches on something that reading can't follow


@dataclass(frozen=True)
class Finding:
    """A norm, or what looks like one.

    Attributes:
        name: of the class or function; of the enclosing one, for an expression.
        span: of the class's forward, with its decorators; of the function; of the expression.
        description: what it computes; None where that is nothing the operator computes.
        cause, reason: why not; None where it is.
    """

    kind: Kind
    name: str
    span: Span
    description: Description | None
    cause: Cause | None = None
    reason: str | None = None
