"""The codes of what is found; docs/codes.md has a section for each."""

from __future__ import annotations

from enum import Enum

from rmsnorm.reading.finding import Cause, Kind


class Code(Enum):
    """A code's value is its title."""

    RN001 = "a class computes RMSNorm by small operators"
    RN002 = "a function computes RMSNorm by small operators"
    RN003 = "an expression computes RMSNorm by small operators"
    RN004 = "a call of torch_npu, which needs an NPU"
    RN101 = "close to RMSNorm, with another formula"
    RN102 = "RMSNorm, rounded where the operator doesn't round"
    RN103 = "RMSNorm over a part of the columns that gamma spans"
    RN104 = "RMSNorm with a gate"
    RN105 = "RMSNorm with a side effect"
    RN106 = "reading can't tell what it computes"
    RN107 = "the operator computes it, but the source can't be rewritten here"
    RN201 = "skipped, as a comment asks"
    RN202 = "a symbolic link out of the tree"
    RN901 = "a file can't be read"
    RN902 = "a file can't be written"
    RN903 = "the rewritten file fails its check"

    @property
    def is_error(self) -> bool:
        return self.name.startswith("RN9")


OF_KIND = {Kind.CLASS: Code.RN001, Kind.FUNCTION: Code.RN002, Kind.EXPRESSION: Code.RN003}
OF_CAUSE = {
    Cause.OTHER_FORMULA: Code.RN101,
    Cause.OTHER_ROUNDING: Code.RN102,
    Cause.GROUPED: Code.RN103,
    Cause.GATED: Code.RN104,
    Cause.SIDE_EFFECT: Code.RN105,
    Cause.UNREADABLE: Code.RN106,
}
