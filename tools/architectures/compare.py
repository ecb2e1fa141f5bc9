"""A model of one type before and after patch: what was replaced, and whether all results agree."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from architectures.choices import Choices
from architectures.inputs import Inputs, inputs_of
from architectures.models import NotBuilt, summary, tiny_model
from architectures.norms import call_alone, recorded, synthetic_call, worst_excess
from architectures.plain import is_plain
from architectures.results import distances, relative, results_of, strays
from rmsnorm.patch import Left, Replaced, Report, patch, unpatch

DTYPES = (torch.float32, torch.bfloat16)
_NAMED = re.compile("RMS|Rms")


@dataclass
class Agreement:
    """How the results of one dtype compare.

    Attributes:
        report: of patch.
        reached: how many of the replaced norms the model ran.
        outputs, gradients: the largest norm-wise relative difference of an output, and that of all
            gradients together.
        broken: what doesn't hold.
    """

    report: Report
    reached: int = 0
    outputs: float = 0.0
    gradients: float = 0.0
    broken: list[str] = field(default_factory=list)


@dataclass
class Compared:
    """An architecture.

    Attributes:
        class_name: of the model.
        norms: name and class of each leaf that is a plain RMSNorm or has RMS in its class's name.
        plain: the names of those that are plain.
        agreements: by dtype; a text where the model itself doesn't run in it.
    """

    model_type: str
    class_name: str
    norms: dict[str, str]
    plain: set[str]
    agreements: dict[torch.dtype, Agreement | str]

    @property
    def replaced(self) -> dict[str, Replaced]:
        return {norm.name: norm for norm in self._float32.report.replaced}

    @property
    def left(self) -> dict[str, Left]:
        """The norms that patch left; not what it left of other kinds, such as LayerNorm."""
        return {norm.name: norm for norm in self._float32.report.left if norm.name in self.norms}

    @property
    def broken(self) -> list[str]:
        """What doesn't hold, in words."""
        classified = {*self.replaced, *self.left}
        found = [f"{n}: neither replaced nor left" for n in self.norms if n not in classified]
        found += [f"{n}: replaced, and isn't plain" for n in self.replaced if n not in self.plain]
        for dtype, agreement in self.agreements.items():
            if isinstance(agreement, Agreement):
                found += [f"{str(dtype)[6:]}: {text}" for text in agreement.broken]
        return found

    @property
    def _float32(self) -> Agreement:
        agreement = self.agreements[torch.float32]
        assert isinstance(agreement, Agreement)
        return agreement


def compare(model_type: str) -> Compared | None:
    """Builds, patches and compares; None where the architecture has no RMSNorm.

    Raises:
        NotBuilt: it can't be built tiny, or doesn't run in float32.
    """
    model = tiny_model(model_type)
    plain = {name for name, module in model.named_modules() if is_plain(module)}
    norms = {
        name: type(module).__name__
        for name, module in model.named_modules()
        if name in plain
        or (_NAMED.search(type(module).__name__) and next(module.children(), None) is None)
    }
    if not norms:
        return None
    inputs = inputs_of(model)
    agreements: dict[torch.dtype, Agreement | str] = {}
    for dtype in DTYPES:
        try:
            agreements[dtype] = _agreement(copy.deepcopy(model).to(dtype), inputs, norms)
        except NotBuilt as reason:
            if dtype == torch.float32:
                raise
            agreements[dtype] = str(reason)
    return Compared(model_type, type(model).__name__, norms, plain, agreements)


def _agreement(model: PreTrainedModel, inputs: Inputs, norms: dict[str, str]) -> Agreement:
    modules = {name: model.get_submodule(name) for name in norms}
    choices = Choices()
    try:
        with recorded(modules) as calls:
            own = results_of(model, inputs, choices)
    except Exception as error:
        raise NotBuilt(summary(error)) from error
    for name, module in modules.items():
        call = calls.setdefault(name, synthetic_call(module, model.dtype))
        try:
            call.results = call_alone(module, call)
        except Exception:
            del calls[name]  # takes more than x

    found = Agreement(patch(model))
    fused = results_of(model, inputs, choices)
    replaced = found.report.replaced
    for norm in replaced:
        if norm.name not in calls:
            found.broken.append(f"{norm.name}: replaced, though its class takes more than x")
            continue
        call, module = calls[norm.name], modules[norm.name]
        found.reached += call.reached
        if not (excess := worst_excess(norm, module, call, call_alone(module, call))) <= 1:
            found.broken.append(f"{norm.name}: {excess:.2g} × the bound of one norm")
    unpatch(model)

    apart = distances(fused, own)
    found.outputs, found.gradients = relative(apart, own)
    changed = [modules[norm.name] for norm in replaced if norm.name in modules]
    for name, share in strays(apart, own, model, inputs, choices, changed).items():
        if not share <= 1:
            found.broken.append(f"{name}: {share:.2g} × as far as rounding leads")
    if model.dtype == torch.float32:
        # Each norm moves a value by 2^-17 at most, forward, and as much backward; the layers
        # between pass a relative change on at about its size.
        for what, value, bound in (
            ("outputs", found.outputs, len(replaced) * 2.0**-16),
            ("gradients", found.gradients, len(replaced) * 2.0**-15),
        ):
            if not value <= bound:
                found.broken.append(f"{what}: {value:.2g} apart, at most {bound:.2g}")
    return found
