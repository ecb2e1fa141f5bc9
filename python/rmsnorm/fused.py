"""The class that a model's norm has while it is fused: its own, with our forward before it."""

from __future__ import annotations

import functools
import inspect
from typing import Any, ClassVar

import torch
from torch import Tensor

from rmsnorm.forms import Form

Forms = tuple[tuple[tuple[torch.dtype, torch.dtype | None], Form], ...]  # by dtype of x, gamma


class FusedNorm(torch.nn.Module):
    """Stands before a model's own norm in the bases of the class that patch gives to a module."""

    _rmsnorm_original: ClassVar[type[torch.nn.Module]]
    _rmsnorm_forms: ClassVar[dict[tuple[torch.dtype, torch.dtype | None], Form]]
    _rmsnorm_gamma: ClassVar[str | None]
    _rmsnorm_read: ClassVar[Any]  # the forward of the original class that was judged
    _rmsnorm_argument: ClassVar[str]  # how the own forward calls x

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        x: Any = args[0] if args else kwargs.get(self._rmsnorm_argument)
        form = None
        if len(args) + len(kwargs) == 1 and isinstance(x, Tensor) and not _autocasts(x):
            gamma = None if self._rmsnorm_gamma is None else getattr(self, self._rmsnorm_gamma)
            form = self._rmsnorm_forms.get((x.dtype, None if gamma is None else gamma.dtype))
            if form is not None and not self._is_as_it_was(form, gamma):
                form = None
        return super().forward(*args, **kwargs) if form is None else form(self, x)

    def _is_as_it_was(self, form: Form, gamma: Tensor | None) -> bool:
        """Whether the class computes what it did when it was judged: cheap signs of a change."""
        cls = type(self)
        return (
            cls._rmsnorm_original.forward is cls._rmsnorm_read
            and isinstance(form.epsilon_of(self), (int, float))
            and (gamma is None or gamma.dim() == form.axes)
        )

    def extra_repr(self) -> str:
        return ", ".join(filter(None, (super().extra_repr(), "fused by rmsnorm")))

    def __reduce_ex__(self, protocol: Any) -> Any:
        """For copy and pickle, which can't find a class that was made on the fly by its name."""
        reduced: Any = super().__reduce_ex__(protocol)
        if not _is_ours(type(self)):
            return reduced
        recipe = self._rmsnorm_original, tuple(self._rmsnorm_forms.items())
        return _rebuild, recipe, *reduced[2:]


@functools.cache
def fused_class(original: Any, forms: Forms) -> Any:
    attributes = {
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
        "_rmsnorm_original": original,
        "_rmsnorm_forms": dict(forms),
        "_rmsnorm_gamma": forms[0][1].gamma,
        "_rmsnorm_read": original.forward,
        "_rmsnorm_argument": list(inspect.signature(original.forward).parameters)[1],
    }
    return type(original.__name__, (FusedNorm, original), attributes)


def restore(module: torch.nn.Module) -> None:
    """Gives a module that is fused its own class back. Does nothing to another."""
    if isinstance(module, FusedNorm):
        module.__class__ = _unfused(type(module))  # type: ignore[assignment]


def _unfused(cls: type) -> type:
    """The class with the model's own where ours is, at the top or among the bases.

    Other tools (FSDP2, torch.nn.utils.parametrize) make a subclass of whatever a module has.
    """
    if not issubclass(cls, FusedNorm):
        return cls
    if _is_ours(cls):
        return cls._rmsnorm_original
    attributes = {
        name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")
    }
    make: Any = type(cls)
    return make(cls.__name__, tuple(map(_unfused, cls.__bases__)), attributes)


def _is_ours(cls: type) -> bool:
    """Whether fused_class made it, and not another tool of what fused_class made."""
    return "_rmsnorm_original" in vars(cls)


def _rebuild(original: type, forms: Forms) -> Any:
    return object.__new__(fused_class(original, forms))


def _autocasts(x: Tensor) -> bool:
    """Whether autocast may change what the own forward does: CUDA's makes F.rms_norm float32."""
    return x.is_cuda and x.dtype != torch.float32 and torch.is_autocast_enabled()
