"""The forms of RMSNorm that a module computes, where its source and its probes agree."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools

import torch

from rmsnorm.forms import DTYPES, Form, Match, NotRmsNorm
from rmsnorm.probe import Probe, neutral_state
from rmsnorm.reading.live import read
from rmsnorm.reading.values import Epsilon, Unknown, dtype_name


def find_forms(
    module: torch.nn.Module,
    gamma_name: str | None,
    dtype: torch.dtype,
    *,
    compare: bool = True,
    rounding: str | None = None,
) -> tuple[Match, ...]:
    """The form of RMSNorm that a module computes, for each pair of dtypes in which it computes one.

    Args:
        module: a leaf; it runs as a shallow copy, its weights are not read and its hooks don't run,
            so it may be on any device, meta included.
        gamma_name: its only parameter, of any shape; None if it has none.
        dtype: of gamma, or of the model where there is no gamma; x in this dtype has to match.
        compare: whether to run the fused operator beside the module, forward and backward.
        rounding: of the forms that run instead of the module's own; None: as the module rounds.

    Returns:
        The match for x and gamma of `dtype`, then those of other pairs with the same epsilon and
        gamma_offset.

    Raises:
        NotRmsNorm: the source or the probes say that it is no form; the text says why.

    Cost: some 10 passes over 24 rows for each of 9 pairs of dtypes, on the CPU, and 4 to compare;
        no random state of the caller is touched.
    """

    def match(x_dtype: torch.dtype, gamma_dtype: torch.dtype | None) -> Match:
        forms = _forms_read(module, gamma_name, x_dtype, gamma_dtype)
        probe = Probe(module, gamma_name, x_dtype, gamma_dtype)
        own = probe.confirm(forms)
        form = dataclasses.replace(own, rounding=rounding or own.rounding)
        differences = probe.compare(own, form) if compare else ()
        return Match(x_dtype, gamma_dtype, own.rounding, form, differences)

    own_pair = dtype, None if gamma_name is None else dtype
    with neutral_state():
        own = match(*own_pair)
        matches = [own]
        for pair in itertools.product(DTYPES, (None,) if gamma_name is None else DTYPES):
            with contextlib.suppress(NotRmsNorm):
                if pair != own_pair and _is_like(found := match(*pair), own):
                    matches.append(found)
        return tuple(matches)


def _is_like(match: Match, own: Match) -> bool:
    return (match.form.epsilon, match.form.gamma_offset) == (
        own.form.epsilon,
        own.form.gamma_offset,
    )


def _forms_read(
    module: torch.nn.Module,
    gamma_name: str | None,
    x_dtype: torch.dtype,
    gamma_dtype: torch.dtype | None,
) -> list[Form]:
    """What the source says that a module computes; one form for each epsilon that it may mean."""
    meaning = read(module, dtype_name(x_dtype), dtype_name(gamma_dtype or x_dtype))
    if isinstance(meaning, Unknown):
        raise NotRmsNorm(f"its forward {meaning.reason}")
    if meaning.gamma != (None if gamma_name is None else f"self.{gamma_name}"):
        raise NotRmsNorm(f"its forward doesn't scale by its {gamma_name}")
    axes = 1 if gamma_name is None else len(getattr(module, gamma_name).shape)
    if meaning.axes not in (axes, None):
        several = "several axes" if (meaning.axes or 0) > 1 else "one axis"
        raise NotRmsNorm(f"its forward takes the mean over {several}, where gamma has {axes}")
    return [
        Form(
            gamma_name,
            epsilon,
            meaning.gamma_offset,
            meaning.rounding,
            getattr(torch, meaning.out_dtype),
            axes,
        )
        for epsilon in _epsilons(meaning.epsilon)
    ]


def _epsilons(epsilon: Epsilon) -> list[str | float]:
    """An attribute or a number; those of F.rms_norm without one, which depend on its version."""
    if epsilon.text is None and epsilon.value is None:
        return [torch.finfo(dtype).eps for dtype in DTYPES]
    if epsilon.text is None:
        return [] if epsilon.value is None else [epsilon.value]
    name = epsilon.text.removeprefix("self.")
    if epsilon.value is None or not name.isidentifier():
        raise NotRmsNorm(f"its forward adds {epsilon.text}, which is no number of its own")
    return [name if epsilon.text.startswith("self.") else epsilon.value]  # of a file: a constant
