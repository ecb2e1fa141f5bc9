"""A model of one type before and after patch: what was replaced, and whether all results agree."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

import rmsnorm
from architectures.choices import Choices
from architectures.inputs import Inputs, inputs_of, outputs_of
from architectures.models import NotBuilt, first_line, tiny_model
from architectures.norms import recorded, results_of, synthetic_call, worst_excess
from architectures.plain import is_plain

DTYPES = (torch.float32, torch.bfloat16)
_FACTOR = 4  # how far fused results may be, as a multiple of the nudged ones, like in the demo
_NUDGES = (1, 2)  # seeds; the larger difference counts

Results = dict[str, Tensor]  # outputs by number and gradients by the parameter's name


@dataclass
class Agreement:
    """How the results of one dtype compare.

    Attributes:
        replaced: norms; reached: those of them that the model ran.
        outputs, gradients: the largest norm-wise relative difference of an output, and that of all
            gradients together.
        strayed: the largest difference of a result in units of what is allowed.
        norm: the largest difference of a value of one norm in units of what is allowed.
        broken: what doesn't hold.
    """

    replaced: int = 0
    reached: int = 0
    outputs: float = 0.0
    gradients: float = 0.0
    strayed: float = 0.0
    norm: float = 0.0
    broken: list[str] = field(default_factory=list)


@dataclass
class Compared:
    """An architecture.

    Attributes:
        class_name: of the model.
        norms: name and class of each module that is a plain RMSNorm or is named a norm of its kind.
        plain: the names of those that are plain.
        report: of patch, in float32.
        agreements: by dtype; a text where the model itself doesn't run in it.
    """

    model_type: str
    class_name: str
    norms: dict[str, str]
    plain: set[str]
    report: rmsnorm.Report
    agreements: dict[torch.dtype, Agreement | str]

    @property
    def unclassified(self) -> list[str]:
        named = {norm.name for norm in (*self.report.replaced, *self.report.left)}
        return [name for name in self.norms if name not in named]

    @property
    def broken(self) -> list[str]:
        found = [f"{name}: neither replaced nor left" for name in self.unclassified]
        for dtype, agreement in self.agreements.items():
            if isinstance(agreement, Agreement):
                found += [f"{str(dtype)[6:]}: {text}" for text in agreement.broken]
        return found


def compare(model_type: str) -> Compared | None:
    """Builds, patches and compares; None where the architecture has no RMSNorm.

    Raises:
        NotBuilt: it can't be built tiny or run.
    """
    model = tiny_model(model_type)
    plain = {name for name, module in model.named_modules() if is_plain(module)}
    norms = {
        name: type(module).__name__
        for name, module in model.named_modules()
        if name in plain or "rms" in type(module).__name__.lower()
    }
    if not norms:
        return None
    inputs = inputs_of(model)
    agreements: dict[torch.dtype, Agreement | str] = {}
    report = None
    for dtype in DTYPES:
        twin = copy.deepcopy(model).to(dtype)
        try:
            found, agreements[dtype] = _agreement(twin, inputs, norms)
        except NotBuilt as reason:
            agreements[dtype] = str(reason)
            found = rmsnorm.patch(twin)
        report = report or found
    assert report is not None
    return Compared(model_type, type(model).__name__, norms, plain, report, agreements)


def _agreement(
    model: PreTrainedModel, inputs: Inputs, norms: dict[str, str]
) -> tuple[rmsnorm.Report, Agreement]:
    modules = {name: model.get_submodule(name) for name in norms}
    choices = Choices()
    try:
        with recorded(modules) as calls:
            own = _results(model, inputs, choices)
    except Exception as error:
        raise NotBuilt(f"its own forward or backward raises {first_line(error)}") from error
    for name, module in modules.items():
        call = calls.setdefault(name, synthetic_call(module, model.dtype))
        try:
            call.results = results_of(module, call)
        except Exception:
            del calls[name]  # takes more than x; not a plain norm
    nudged = []
    for seed in _NUDGES:
        with _nudged(modules, seed):
            nudged.append(_results(model, inputs, choices))

    report = rmsnorm.patch(model)
    fused = _results(model, inputs, choices)
    found = Agreement(replaced=len(report.replaced))
    for norm in report.replaced:
        if norm.name not in calls:
            found.broken.append(f"{norm.name} is replaced, and isn't called with a tensor alone")
            continue
        call, module = calls[norm.name], modules[norm.name]
        found.reached += call.reached
        excess = worst_excess(norm, module, call, results_of(module, call))
        found.norm = max(found.norm, excess)
        if not excess <= 1:
            found.broken.append(f"{norm.name}: {excess:.2g} × the bound of one norm")
    _compare_results(found, own, nudged, fused, len(report.replaced))
    return report, found


def _compare_results(
    found: Agreement, own: Results, nudged: list[Results], fused: Results, norms: int
) -> None:
    """Fused results stray no further than nudged ones, and in float32 by a bound of their own."""
    squares = {"own": 0.0, "difference": 0.0}
    for name, expected in own.items():
        difference = _distance(fused[name], expected)
        finest = torch.finfo(expected.dtype).eps * float(expected.double().abs().max())
        allowed = _FACTOR * max(_distance(other[name], expected) for other in nudged) + finest
        if not difference <= allowed:
            found.broken.append(f"{name}: off by {difference:.2g}, at most {allowed:.2g}")
        if allowed:
            found.strayed = max(found.strayed, difference / allowed)
        size = float(expected.double().norm())
        if name.startswith("output"):
            found.outputs = max(found.outputs, difference / size if size else difference)
        else:
            squares["own"] += size**2
            squares["difference"] += difference**2
    if squares["own"]:
        found.gradients = math.sqrt(squares["difference"] / squares["own"])
    if all(result.dtype == torch.float32 for result in own.values()):
        # Each norm moves a value by 2^-17 at most, forward, and as much backward; the layers
        # between pass a relative change on at about its size.
        bound = max(norms, 1) * 2.0**-16
        for what, value, limit in (
            ("outputs", found.outputs, bound),
            ("gradients", found.gradients, 2 * bound),
        ):
            if not value <= limit:
                found.broken.append(f"{what}: {value:.2g} apart, at most {limit:.2g}")


def _distance(a: Tensor, b: Tensor) -> float:
    same = (a == b) | (a.isnan() & b.isnan())
    return float((a.double() - b.double()).masked_fill(same, 0).norm())


def _results(model: PreTrainedModel, inputs: Inputs, choices: Choices) -> Results:
    """Outputs, and the gradients of all parameters of a random sum of them."""
    model.zero_grad()
    with warnings.catch_warnings(), choices:
        warnings.simplefilter("ignore")
        outputs = [y for y in outputs_of(model, inputs) if y.requires_grad]
    choices.replay()
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(y.shape, generator=generator) / math.sqrt(y.numel()) for y in outputs]
    torch.autograd.backward(outputs, [w.to(y.dtype) for w, y in zip(weights, outputs, strict=True)])
    results = {f"output {i}": y.detach() for i, y in enumerate(outputs)}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            results[name] = parameter.grad.clone()
    return results


@contextmanager
def _nudged(modules: dict[str, torch.nn.Module], seed: int) -> Iterator[None]:
    """Every value that a norm returns moves by one machine epsilon, relative, up or down."""
    generator = torch.Generator().manual_seed(seed)

    def nudge(module: torch.nn.Module, args: object, y: object) -> object:
        if not isinstance(y, Tensor) or not y.is_floating_point():
            return None
        signs = torch.randint(0, 2, y.shape, generator=generator) * 2 - 1
        return (y.float() * (1 + torch.finfo(y.dtype).eps * signs)).to(y.dtype)

    handles = [module.register_forward_hook(nudge) for module in modules.values()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
