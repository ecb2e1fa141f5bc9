"""What a model computes, outputs and gradients, and how far two runs are apart."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from architectures.choices import Choices
from architectures.inputs import Inputs, outputs_of

Results = dict[str, Tensor]  # outputs by number, gradients by the parameter's name

_FACTOR = 4  # how far fused results may be, as a multiple of the nudged ones, like in the demo
_NUDGES = 10  # runs at most: one draw says little about the gradient of a single value


def results_of(model: PreTrainedModel, inputs: Inputs, choices: Choices) -> Results:
    """Outputs, and the gradients of all parameters of a random sum of their values."""
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


def distances(results: Results, own: Results) -> dict[str, float]:
    """Norm-wise, absolute; equal infinities and NaNs are no distance."""
    found = {}
    for name, expected in own.items():
        got = results[name]
        same = (got == expected) | (got.isnan() & expected.isnan())
        found[name] = float((got.double() - expected.double()).masked_fill(same, 0).norm())
    return found


def relative(found: dict[str, float], own: Results) -> tuple[float, float]:
    """The largest relative distance of an output, and that of all gradients together."""
    sizes = {name: float(expected.double().norm()) for name, expected in own.items()}
    outputs = [name for name in own if name.startswith("output ")]
    gradients = [name for name in own if name not in outputs]
    size = math.hypot(*(sizes[name] for name in gradients))
    return (
        max((found[name] / (sizes[name] or 1) for name in outputs), default=0.0),
        math.hypot(*(found[name] for name in gradients)) / (size or 1),
    )


def strays(
    found: dict[str, float],
    own: Results,
    model: PreTrainedModel,
    inputs: Inputs,
    choices: Choices,
    norms: Iterable[torch.nn.Module],
) -> dict[str, float]:
    """The distances in units of what is allowed: at most 1.

    What is allowed is 4 times what the model makes of its own norms' rounding: how far a result
    moves where every value that a norm returns, and every gradient that it is given, moves by one
    machine epsilon. More of these runs are made where one isn't enough. A result may always differ
    by the spacing of its largest values.
    """
    nudged = dict.fromkeys(own, 0.0)
    for seed in range(_NUDGES):
        with _nudged(norms, seed):
            again = distances(results_of(model, inputs, choices), own)
        nudged = {name: max(far, again[name]) for name, far in nudged.items()}
        shares = {
            name: found[name] / (_FACTOR * nudged[name] + _spacing(expected))
            for name, expected in own.items()
            if found[name] > 0
        }
        if all(share <= 1 for share in shares.values()):
            break
    return shares


def _spacing(values: Tensor) -> float:
    largest = float(values.abs().max()) if values.numel() else 0.0
    return torch.finfo(values.dtype).eps * largest + torch.finfo(values.dtype).tiny


@contextmanager
def _nudged(norms: Iterable[torch.nn.Module], seed: int) -> Iterator[None]:
    generator = torch.Generator().manual_seed(seed)

    def nudge(module: torch.nn.Module, args: object, y: Tensor) -> Tensor:
        signs = torch.randint(0, 2, y.shape, generator=generator) * 2 - 1
        return (y.float() * (1 + torch.finfo(y.dtype).eps * signs)).to(y.dtype)

    handles = [norm.register_forward_hook(nudge) for norm in norms]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
