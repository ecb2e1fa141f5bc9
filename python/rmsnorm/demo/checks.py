"""All that the demo measures, and what of it has to hold."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

import rmsnorm
from rmsnorm.bench.harness import Seconds, name_of
from rmsnorm.demo.bits import Bits
from rmsnorm.demo.migration import Compiled
from rmsnorm.demo.training import Trained

STRAY_FACTOR = 4  # how far the fused run may stray, as a multiple of the nudged one, rms
_STRAY_LIMIT = {torch.float32: 0.01, torch.bfloat16: 0.1}  # nats, in any step
_FALL = 1.0  # nats that training has to gain


@dataclass(frozen=True)
class Check:
    """A claim about a part of the demo, whether it holds, and the numbers that say so."""

    part: str
    claim: str
    holds: bool
    figures: str


@dataclass(frozen=True)
class Outcome:
    """All that is measured in one dtype. Pairs of numbers are by "own" and "fused".

    Attributes:
        compiled: the model with its own norms, after compile_pass.
        rewritten_differs: values of a norm that the rewritten class gives other bits than patch.
        own, fused, nudged: training with the model's norms, with ours, and with the model's after
            every gamma moved by one unit in the last place: how far rounding alone leads.
        operators: how often a forward pass of the fused model runs each operator.
        calls: of bench.measure.pytorch(), by shape.
        targets: the instruction sets that the bits were compared on.
        bits: by result.
    """

    dtype: torch.dtype
    report: rmsnorm.Report
    norms: int
    rows: int
    operators: dict[str, int]
    compiled: Compiled
    rewritten_differs: int
    own: Trained
    fused: Trained
    nudged: Trained
    norm_seconds: dict[str, float]
    norm_bytes: dict[str, int]
    step_bytes: dict[str, int]
    calls: dict[tuple[int, int], dict[str, Seconds]]
    targets: list[str]
    bits: dict[str, Bits]

    @property
    def name(self) -> str:
        return name_of(self.dtype)

    def strays(self, trained: Trained) -> list[float]:
        """How far the losses are from those of the model's own norms, step by step."""
        return apart(trained.losses, self.own.losses)

    def figures(self) -> dict[str, Any]:
        """What demo.json says of it."""
        runs = {"own": self.own, "fused": self.fused, "nudged": self.nudged}
        return {
            "report": str(self.report),
            "losses": {name: trained.losses for name, trained in runs.items()},
            "step_seconds": {name: trained.step_seconds for name, trained in runs.items()},
            "norm_seconds": self.norm_seconds,
            "norm_bytes": self.norm_bytes,
            "step_bytes": self.step_bytes,
            "norm_calls": [
                {"shape": shape, "pass": part, "seconds": seconds}
                for shape, parts in self.calls.items()
                for part, seconds in parts.items()
            ],
            "bits": {name: found.figures() for name, found in self.bits.items()},
        }


def check(outcome: Outcome) -> list[Check]:
    """What has to hold in one dtype. Times are shown, not checked: machines are shared."""
    return [
        _all_replaced(outcome),
        _first_loss_equal(outcome),
        _compiled_alike(outcome),
        _rewritten_alike(outcome),
        *_curves_agree(outcome),
        _loss_fell(outcome),
        *_less_memory(outcome),
        _bits_equal(outcome),
    ]


def _all_replaced(outcome: Outcome) -> Check:
    replaced = len(outcome.report.replaced)
    ran = outcome.operators.get("rmsnorm::rms_norm", 0)
    roots = outcome.operators.get("aten::rsqrt", 0)
    return Check(
        outcome.name,
        "every norm was replaced",
        replaced == ran == outcome.norms and roots == 0,
        f"{replaced} of {outcome.norms}; a forward runs rms_norm {ran} ×, rsqrt {roots} ×",
    )


def _first_loss_equal(outcome: Outcome) -> Check:
    """Before any step, only the forward pass differs, by rounding."""
    bound = _bound_of_first_loss(outcome)
    difference = outcome.strays(outcome.fused)[0]
    return Check(
        outcome.name,
        "the first loss is equal but for rounding",
        difference <= bound,
        f"{difference:.1e} nats apart, at most {bound:.1e}",
    )


def _bound_of_first_loss(outcome: Outcome) -> float:
    """How far the first losses of two ways to compute the norms may be apart.

    Each norm may round its values the other way, by eps. Through the model these add up like a
    random walk, and average out over the tokens. The loss itself is a float32 mean: 4 eps of that.
    """
    walk = math.sqrt(outcome.norms / outcome.rows) * torch.finfo(outcome.dtype).eps
    return outcome.own.losses[0] * (walk + 4 * torch.finfo(torch.float32).eps)


def _compiled_alike(outcome: Outcome) -> Check:
    """torch.compile's graph of the model with its own norms, after the pass."""
    seen, bound = outcome.compiled, _bound_of_first_loss(outcome)
    difference = abs(seen.loss - outcome.own.losses[0])
    return Check(
        outcome.name,
        "compile_pass moves the compiled model over",
        seen.replaced == outcome.norms and not seen.roots and difference <= bound,
        f"{seen.replaced} of {outcome.norms}, rsqrt {seen.roots} ×; "
        f"{difference:.1e} nats, at most {bound:.1e}",
    )


def _rewritten_alike(outcome: Outcome) -> Check:
    differing = outcome.rewritten_differs
    return Check(
        outcome.name,
        "the class that migrate rewrote has patch's bits",
        differing == 0,
        f"{differing} values differ",
    )


def _curves_agree(outcome: Outcome) -> list[Check]:
    """Rounding grows in training, whoever rounds. The nudged run shows by how much."""
    fused, nudged = outcome.strays(outcome.fused), outcome.strays(outcome.nudged)
    allowed = allowed_stray(nudged, outcome.own.losses[0])
    stray, limit = root_mean_square(fused), _STRAY_LIMIT[outcome.dtype]
    return [
        Check(
            outcome.name,
            "losses stray no further than by rounding",
            stray <= allowed,
            f"{stray:.1e} nats rms, at most {allowed:.1e} ({STRAY_FACTOR} × nudged)",
        ),
        Check(
            outcome.name,
            "no loss is far away",
            all(apart <= limit for apart in fused),
            f"{max(fused):.1e} nats, at most {limit:g}",
        ),
    ]


def _loss_fell(outcome: Outcome) -> Check:
    first, last = outcome.fused.losses[0], outcome.fused.losses[-1]
    return Check(
        outcome.name,
        "the model learned",
        first - last >= _FALL,
        f"loss {first:.2f} to {last:.2f}, at least {_FALL:g} nat down",
    )


def _less_memory(outcome: Outcome) -> list[Check]:
    found = []
    for what, kept in (("the norms", outcome.norm_bytes), ("a step", outcome.step_bytes)):
        own, fused = kept["own"], kept["fused"]
        figures = f"{fused / 2**20:.1f} MiB, below {own / 2**20:.1f} with own norms"
        claim = f"less memory is kept for backward by {what}"
        found.append(Check(outcome.name, claim, fused < own, figures))
    return found


def _bits_equal(outcome: Outcome) -> Check:
    broken = [name for name, bits in outcome.bits.items() if not bits.same]
    runs = sum(bits.runs for bits in outcome.bits.values())
    figures = f"{runs} results"
    if broken:
        rarest = min(outcome.bits[broken[0]].variants.values(), key=len)
        figures = f"{', '.join(broken)} differ; {broken[0]} with {rarest[0]}"
    return Check(outcome.name, "a row has the same bits everywhere", not broken, figures)


def apart(losses: list[float], others: list[float]) -> list[float]:
    return [abs(a - b) for a, b in zip(losses, others, strict=True)]


def allowed_stray(nudged: list[float], loss: float) -> float:
    """How far two runs that only round differently may be apart, rms; nudged: how far that is."""
    floor = torch.finfo(torch.float32).eps * loss  # a loss is no finer than this
    return STRAY_FACTOR * max(root_mean_square(nudged), floor)


def root_mean_square(values: list[float]) -> float:
    return math.sqrt(sum(value * value for value in values) / len(values))
