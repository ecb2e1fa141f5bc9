"""Moves the norms of a model to the fused operator, and says what it did."""

from __future__ import annotations

import functools
import inspect
import textwrap
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from rmsnorm.forms import DTYPES, Form, Match, NotRmsNorm, find_forms
from rmsnorm.library import why_no_cuda
from rmsnorm.module import RMSNorm

_WIDEST = 2**17  # elements of a gamma; a parameter with more is a matrix

_Forms = tuple[tuple[tuple[torch.dtype, torch.dtype | None], Form], ...]  # by dtype of x, gamma


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
        offset = self.matches[0].form.gamma_offset
        lines = [f"{self.class_name}: epsilon {self.epsilon:g}, gamma_offset {offset:g}"]
        for match in self.matches:
            dtypes = f"{_short(match.x_dtype)} -> {_short(match.form.out_dtype)}"
            difference = f"{match.differing} of {match.values} probe values differ"
            if match.differing:
                difference += f", by {match.max_difference:.2g} at most"
            lines.append(f"  {dtypes:20}  {match.form.rounding:12}  {difference}")
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
    """What patch did. Made to be printed: modules of one kind together, at most 100 columns."""

    replaced: tuple[Replaced, ...]
    left: tuple[Left, ...]

    def __str__(self) -> str:
        total = len(self.replaced) + len(self.left)
        lines = [f"replaced {len(self.replaced)} of {total} norms", *_grouped(self.replaced)]
        if self.left:
            lines += [f"left {len(self.left)} as they are", *_grouped(self.left)]
        return "\n".join(lines)


def patch(model: torch.nn.Module) -> Report:
    """Replaces the RMSNorms of a model by the fused operator.

    A module is judged by what it computes. Each leaf that has "norm" in the name of its class, or
    that owns one parameter of one axis and nothing else, runs on probe rows: on the CPU, with a
    gamma of our own, so that no weight is read and no hook runs. It is replaced if all values and
    the gradient are those of rms_norm to the bound of the arithmetic, for one rounding, a
    gamma_offset of 0 or 1 and its own epsilon, with x in the dtype of gamma. Other dtypes are fused
    where they agree as well; where they don't, the module's own forward runs.

    A module keeps its parameters, state_dict, hooks and training mode, and stays an instance of its
    class. Copies and pickles of it are fused too: unpatch before you pickle for a place without
    rmsnorm. One difference in values is meant: a finite row whose squares overflow or vanish in
    float32 comes out right.

    Args:
        model: changed in place; a norm, or a module that holds some.

    Returns:
        What was replaced and how it compares; what was left and why.

    Threads: not while another thread runs the model.
    Cost: tenths of a second for each kind of norm (class, width, dtype, attributes) of a width of
        thousands, seconds at a hundred thousand.

    >>> model = torch.nn.Sequential(torch.nn.RMSNorm(8, eps=1e-6), torch.nn.LayerNorm(8))
    >>> [norm.name for norm in patch(model).replaced]
    ['0']
    """
    model_dtype = next((p.dtype for p in model.parameters() if p.dtype in DTYPES), torch.float32)
    verdicts: dict[Hashable, tuple[Match, ...] | str] = {}
    replaced, left = [], []
    for name, module in model.named_modules():
        if not _is_candidate(module):
            continue
        key = _kind(module)
        if key not in verdicts:
            verdicts[key] = _verdict(module, model_dtype)
        verdict = verdicts[key]
        class_name = type(module).__name__
        if isinstance(verdict, str):
            if _is_named_norm(module):
                left.append(Left(name, class_name, verdict))
            continue
        own = verdict[0]
        shown = tuple(match for match in verdict if match.gamma_dtype == own.gamma_dtype)
        replaced.append(Replaced(name, class_name, own.form.epsilon_of(module), shown))
        forms = tuple(((match.x_dtype, match.gamma_dtype), match.form) for match in verdict)
        module.__class__ = _fused_class(type(module), forms)  # type: ignore[arg-type, assignment]
    return Report(tuple(replaced), tuple(left))


def unpatch(model: torch.nn.Module) -> None:
    """Gives every module that patch replaced its own class back. Does nothing to others."""
    for module in model.modules():
        if isinstance(module, _FusedNorm):
            module.__class__ = module._rmsnorm_original  # type: ignore[assignment]


class _FusedNorm(torch.nn.Module):
    """Stands before a model's own norm in the bases of the class that patch gives to a module."""

    _rmsnorm_original: ClassVar[type[torch.nn.Module]]
    _rmsnorm_forms: ClassVar[dict[tuple[torch.dtype, torch.dtype | None], Form]]
    _rmsnorm_gamma: ClassVar[str | None]
    _rmsnorm_argument: ClassVar[str]  # how the own forward calls x

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        x: Any = args[0] if args else kwargs.get(self._rmsnorm_argument)
        form = None
        if len(args) + len(kwargs) == 1 and isinstance(x, Tensor) and not _autocasts(x):
            gamma = None if self._rmsnorm_gamma is None else getattr(self, self._rmsnorm_gamma)
            form = self._rmsnorm_forms.get((x.dtype, None if gamma is None else gamma.dtype))
        return super().forward(*args, **kwargs) if form is None else form(self, x)

    def extra_repr(self) -> str:
        return ", ".join(filter(None, (super().extra_repr(), "fused by rmsnorm")))

    def __reduce_ex__(self, protocol: Any) -> Any:
        """For copy and pickle, which can't find a class that was made on the fly by its name."""
        reduced: Any = super().__reduce_ex__(protocol)
        recipe = self._rmsnorm_original, tuple(self._rmsnorm_forms.items())
        return _rebuild, recipe, *reduced[2:]


def _autocasts(x: Tensor) -> bool:
    """Whether autocast may change what the own forward does: CUDA's makes F.rms_norm float32."""
    return x.is_cuda and x.dtype != torch.float32 and torch.is_autocast_enabled()


@functools.cache
def _fused_class(original: type[torch.nn.Module], forms: _Forms) -> type[_FusedNorm]:
    attributes = {
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
        "_rmsnorm_original": original,
        "_rmsnorm_forms": dict(forms),
        "_rmsnorm_gamma": forms[0][1].gamma,
        "_rmsnorm_argument": list(inspect.signature(original.forward).parameters)[1],
    }
    return type(original.__name__, (_FusedNorm, original), attributes)


def _rebuild(original: type[torch.nn.Module], forms: _Forms) -> torch.nn.Module:
    return object.__new__(_fused_class(original, forms))  # type: ignore[arg-type]


def _is_named_norm(module: torch.nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _is_candidate(module: torch.nn.Module) -> bool:
    if next(module.children(), None) is not None:
        return False
    return _is_named_norm(module) or [len(shape) for _, shape, _ in _held(module)] == [1]


def _held(module: torch.nn.Module) -> list[tuple[str, tuple[int, ...], torch.dtype]]:
    """Name, shape and dtype of the parameters and buffers; of no axis where lazy."""
    tensors = {**module._parameters, **module._buffers}
    return [
        (name, () if torch.nn.parameter.is_lazy(tensor) else tuple(tensor.shape), tensor.dtype)
        for name, tensor in tensors.items()
        if tensor is not None
    ]


def _kind(module: torch.nn.Module) -> Hashable:
    """Equal for modules that compute the same: what isn't a plain value counts by its identity."""
    plain = (bool, int, float, str, tuple, torch.dtype, type(None))
    internal = vars(torch.nn.Module())
    attributes = frozenset(
        (name, repr(value) if isinstance(value, plain) else id(value))
        for name, value in vars(module).items()
        if name not in internal
    )
    return type(module), tuple(_held(module)), attributes


def _verdict(module: torch.nn.Module, model_dtype: torch.dtype) -> tuple[Match, ...] | str:
    """The forms that the module computes, or the reason to leave it."""
    held = _held(module)
    names = [name for name, _, _ in held]
    if isinstance(module, (_FusedNorm, RMSNorm)):
        return "fused already"
    if "forward" in vars(module):
        return "its forward was replaced on the instance, by something else"
    if len(held) > 1 or any(name in module._buffers for name in names):
        return f"holds {', '.join(names)}; a norm that can be fused holds one scale or nothing"
    devices = {parameter.device.type for parameter in module.parameters()}
    if elsewhere := devices - {"cpu", "cuda", "meta"}:
        return f"is on {', '.join(sorted(elsewhere))}; the fused kernels run on CPUs and on CUDA"
    if "cuda" in devices and (lack := why_no_cuda()):
        return f"is on {lack}"  # cuda: …
    for name, shape, dtype in held:
        if dtype not in DTYPES:
            return f"its {name} is {_short(dtype)}"
        if min(shape, default=1) < 2:
            return f"its {name}, of shape {list(shape)}, says nothing about the width of x"
        if torch.Size(shape).numel() > _WIDEST:
            return f"its {name} is a matrix, of shape {list(shape)}"
    try:
        return find_forms(module, *(held[0][::2] if held else (None, model_dtype)))
    except NotRmsNorm as reason:
        return str(reason)


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


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
