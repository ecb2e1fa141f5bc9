"""Classes that build a model's norms fused, for transformers.monkey_patching."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from types import ModuleType
from typing import Any

import torch

from rmsnorm.patch import PLAIN, attributes, kind_of, patch

_EXAMPLE = "transformers.models.llama.modeling_llama"


def patch_mapping(*modeling: ModuleType, rounding: str | None = None) -> dict[str, type]:
    """What transformers.monkey_patching.register_patch_mapping takes to build norms fused.

    A model that from_pretrained or from_config builds afterwards has the norms that patch would
    give it. Each module is judged by what it computes, as by patch, when it is built; one that
    computes something else is built as it is. rmsnorm.unpatch gives the own classes back.

    Args:
        modeling: where classes are looked for, such as transformers.models.llama.modeling_llama;
            those of other modules that a model uses, such as torch.nn.RMSNorm, are left for patch.
        rounding: as in patch.

    Returns:
        "^NAME$": a class that builds a NAME, for each class of a module with "norm" in its name;
        the keys are patterns, since transformers finds a plain name inside of longer names, too.

    Raises:
        TypeError, ValueError: modeling holds what is no module, or a module without such a class.
        ValueError: rounding is something else; two classes have one name.

    Names: transformers replaces classes by their names, in every module of its own and of remote
        code. While the mapping is registered, load no model whose class of that name differs.
    Threads: not while another thread builds a model.
    Cost: that of patch for each kind of norm, when the first is built.

    >>> builds = patch_mapping(torch.nn.modules.normalization)
    >>> builds["^RMSNorm$"](8, eps=1e-6)
    RMSNorm((8,), eps=1e-06, elementwise_affine=True, fused by rmsnorm)
    """
    patch(torch.nn.Identity(), rounding=rounding)  # refuses another rounding
    classes = set().union(*map(_norms, modeling))
    names = Counter(cls.__name__ for cls in classes)
    if twice := [name for name, count in names.items() if count > 1]:
        raise ValueError(f"modeling: holds different classes of the name {', '.join(twice)}")
    return {
        f"^{cls.__name__}$": _Builder(
            cls.__name__,
            (cls,),
            {"__module__": cls.__module__, "_rmsnorm_rounding": rounding, "_rmsnorm_built": {}},
        )
        for cls in sorted(classes, key=lambda cls: cls.__name__)
    }


class _Builder(type):
    """The type of a class whose calls build a module of its base, fused where it is a norm.

    Attributes:
        _rmsnorm_rounding: as in patch.
        _rmsnorm_built: the class of a module, by its kind.
    """

    _rmsnorm_rounding: str | None
    _rmsnorm_built: dict[Hashable, type]

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if "_rmsnorm_built" not in vars(cls):  # a class that was derived meanwhile
            return super().__call__(*args, **kwargs)
        module = cls.__base__(*args, **kwargs)  # type: ignore[misc]
        if not all(isinstance(value, PLAIN) for value in attributes(module).values()):
            patch(module, verify=False, rounding=cls._rmsnorm_rounding)
            return module
        kind = kind_of(module)
        if kind not in cls._rmsnorm_built:
            patch(module, verify=False, rounding=cls._rmsnorm_rounding)
            cls._rmsnorm_built[kind] = type(module)
        module.__class__ = cls._rmsnorm_built[kind]
        return module

    def __instancecheck__(cls, instance: Any) -> bool:
        """Models ask whether a module is one of the class that they find by this name."""
        if "_rmsnorm_built" not in vars(cls):
            return super().__instancecheck__(instance)
        return isinstance(instance, cls.__base__)  # type: ignore[arg-type]


def _norms(modeling: ModuleType) -> set[type]:
    if not isinstance(modeling, ModuleType):
        raise TypeError(f"modeling: {modeling!r}; expected modules such as {_EXAMPLE}")
    found = {
        value
        for name, value in vars(modeling).items()
        if isinstance(value, type) and issubclass(value, torch.nn.Module)
        if "norm" in value.__name__.lower() and name == value.__name__
    }
    if not found:
        raise ValueError(
            f'modeling: {modeling.__name__} has no class with "norm" in its name; '
            f"expected modules such as {_EXAMPLE}"
        )
    return found
