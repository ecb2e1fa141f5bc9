"""Moves the norms of a model to the fused operator, and says what it did."""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Iterator
from typing import Any

import torch
from torch.nn.utils import parametrize

from rmsnorm import npu
from rmsnorm.evidence import find_forms
from rmsnorm.forms import DTYPES, Match, NotRmsNorm
from rmsnorm.fused import FusedNorm, fused_class, restore
from rmsnorm.library import why_no_cuda
from rmsnorm.module import RMSNorm
from rmsnorm.reading.values import dtype_name
from rmsnorm.report import Left, Replaced, Report

_WIDEST = 2**17  # elements of a gamma; a parameter with more is a matrix
PLAIN = (bool, int, float, str, tuple, torch.dtype, type(None))  # told apart by their text


def patch(model: torch.nn.Module, *, verify: bool = True, rounding: str | None = None) -> Report:
    """Replaces the RMSNorms of a model by the fused operator.

    A module is judged by what it computes, whatever its name. Each leaf that has "norm" in the name
    of its class, or that owns one parameter of one axis and nothing else, is judged twice: its
    source is read, and it runs on probe rows, on the CPU, with a gamma of our own, so that no
    weight is read and no hook runs. It is replaced if the source says that it computes a form of
    rms_norm, and all values and the gradient are those of that form to the bound of the
    arithmetic, with x in the dtype of gamma. Other dtypes are fused where both agree as well; where
    they don't, the module's own forward runs.

    A module keeps its parameters, state_dict, hooks and training mode, and stays an instance of its
    class. Copies and pickles of it are fused too: unpatch before you pickle for a place without
    rmsnorm. One difference in values is meant: a finite row whose squares overflow or vanish in
    float32 comes out right.

    Wrappers may come before or after: DDP, FSDP2, PEFT, torch.compile. A model that is compiled
    already is compiled again at its next call.

    Args:
        model: changed in place; a norm, or a module that holds some; on a CPU, a GPU, an NPU with
            torch_npu, or on meta, before it has weights.
        verify: whether to run the fused operator beside the module on the probe rows, forward and
            backward, and report for y, dx and dgamma: equal bits, or how many values differ, by how
            much, and how far two right results may be apart there. Without it a module is judged as
            strictly.
        rounding: None: each norm rounds as its own class does. "fused": once, as the operator
            page's fused call does, where the class rounds before gamma, too; the report then says
            how many values of the probes move, and by how much.

    Returns:
        What was replaced and how it compares; what was left and why. In a `with` statement it
        undoes at the end what this call did.

    Raises:
        ValueError: rounding is something else.

    Threads: not while another thread runs the model.
    Cost: tenths of a second for each kind of norm (class, width, dtype, attributes) of a width of
        thousands, seconds at a hundred thousand.

    >>> model = torch.nn.Sequential(torch.nn.RMSNorm(8, eps=1e-6), torch.nn.LayerNorm(8))
    >>> [norm.name for norm in patch(model).replaced]
    ['0']
    >>> unpatch(model)
    >>> with patch(model):
    ...     model[0]
    RMSNorm((8,), eps=1e-06, elementwise_affine=True, fused by rmsnorm)
    >>> model[0]
    RMSNorm((8,), eps=1e-06, elementwise_affine=True)
    """
    if rounding not in (None, "fused"):
        raise ValueError(f"rounding: {rounding!r}; expected None or 'fused'")
    replaced, left = [], []
    classes: list[tuple[torch.nn.Module, Any]] = []  # given at the end: all or none
    for name, module, verdict in _judged(model, verify, None if rounding is None else "once"):
        cls = verdict if isinstance(verdict, str) else _class_for(type(module), verdict)
        class_name = type(module).__name__
        if isinstance(verdict, str) or isinstance(cls, str):
            if _is_named_norm(module):
                left.append(Left(name, class_name, str(cls)))
            continue
        own = verdict[0]
        shown = tuple(match for match in verdict if match.gamma_dtype == own.gamma_dtype)
        replaced.append(Replaced(name, class_name, own.form.epsilon_of(module), shown))
        classes.append((module, cls))
    for module, cls in classes:
        module.__class__ = cls
    return Report(tuple(replaced), tuple(left), tuple(weakref.ref(module) for module, _ in classes))


def _judged(
    model: torch.nn.Module, compare: bool, rounding: str | None
) -> Iterator[tuple[str, torch.nn.Module, tuple[Match, ...] | str]]:
    """Every candidate with its name, and its forms or the reason to leave it."""
    model_dtype = next((p.dtype for p in model.parameters() if p.dtype in DTYPES), torch.float32)
    verdicts: dict[Hashable, tuple[Match, ...] | str] = {}
    for name, module in model.named_modules():
        if _is_candidate(module):
            key = kind_of(module)
            if key not in verdicts:
                verdicts[key] = _verdict(module, model_dtype, compare, rounding)
            yield name, module, verdicts[key]


def _class_for(original: type, verdict: tuple[Match, ...]) -> Any:
    """The fused class; the reason why there can't be one."""
    forms = tuple(((match.x_dtype, match.gamma_dtype), match.form) for match in verdict)
    try:
        return fused_class(original, forms)
    except Exception as error:  # of a metaclass, or of __init_subclass__
        return f"no class can be derived from it: {type(error).__name__}: {error}"


def unpatch(model: torch.nn.Module) -> None:
    """Gives every module that patch replaced its own class back. Does nothing to others.

    Where another tool has put a subclass on it since, that stays, on top of the own class.
    """
    for module in model.modules():
        restore(module)


def _is_named_norm(module: torch.nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _is_candidate(module: torch.nn.Module) -> bool:
    if any(name != "parametrizations" for name, _ in module.named_children()):
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


def kind_of(module: torch.nn.Module) -> Hashable:
    """Equal for modules that compute the same: what isn't a plain value counts by its identity."""
    values = attributes(module).items()
    told = frozenset((name, repr(v) if isinstance(v, PLAIN) else id(v)) for name, v in values)
    return type(module), tuple(_held(module)), told


def attributes(module: torch.nn.Module) -> dict[str, Any]:
    """What a module holds beside what every module holds."""
    internal = vars(torch.nn.Module())
    return {name: value for name, value in vars(module).items() if name not in internal}


def _verdict(
    module: torch.nn.Module, model_dtype: torch.dtype, compare: bool, rounding: str | None
) -> tuple[Match, ...] | str:
    """The forms that the module computes, or the reason to leave it."""
    if isinstance(module, (FusedNorm, RMSNorm)):
        return "fused already"
    if "forward" in vars(module):
        return "its forward was replaced on the instance, by something else"
    if parametrize.is_parametrized(module):
        return "is parametrized: its scale is computed from something else"
    for name, value in attributes(module).items():
        if isinstance(value, torch.Tensor):
            return f"holds {name}, a tensor that is no parameter"
    # A buffer may be there: reading refuses a forward that uses it.
    held = [each for each in _held(module) if each[0] in module._parameters]
    if len(held) > 1:
        names = ", ".join(name for name, _, _ in held)
        return f"holds {names}; a norm that can be fused holds one scale or nothing"
    devices = {parameter.device.type for parameter in module.parameters()}
    fused = {"cpu", "cuda", "meta"} | ({"npu"} if npu.operator("npu_rms_norm") else set())
    if elsewhere := devices - fused:
        where = "on CPUs, on CUDA, and by torch_npu on NPUs"
        return f"is on {', '.join(sorted(elsewhere))}; the fused kernels run {where}"
    if "cuda" in devices and (lack := why_no_cuda()):
        return f"is on {lack}"  # cuda: …
    for name, shape, dtype in held:
        if dtype not in DTYPES:
            return f"its {name} is {dtype_name(dtype)}"
        if min(shape, default=1) < 2:
            return f"its {name}, of shape {list(shape)}, says nothing about the width of x"
        if torch.Size(shape).numel() > _WIDEST:
            return f"its {name} is a matrix, of shape {list(shape)}"
    try:
        gamma_name, dtype = held[0][::2] if held else (None, model_dtype)
        return find_forms(module, gamma_name, dtype, compare=compare, rounding=rounding)
    except NotRmsNorm as reason:
        return str(reason)
