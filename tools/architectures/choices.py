"""The discrete choices of a model (experts, largest values, places in a code book), held fixed.

Rounding may turn a choice between two nearly equal values, and then any two runs differ as much as
two inputs do. So a run records its choices, and another that is compared with it makes the same.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_STEPS = {"aten::round", "aten::floor", "aten::ceil", "aten::trunc", "aten::sign"}


class Choices(TorchDispatchMode):
    """What operators made of floating-point numbers that isn't continuous in them.

    That is all that they return in integers or booleans, and the steps of rounding. The first run
    under the mode records it; the runs after `replay()` get it again, with the values at the chosen
    places taken from their own input.
    """

    def __init__(self) -> None:
        super().__init__()
        self._recorded: dict[str, list[list[Tensor]]] = defaultdict(list)
        self._next: dict[str, int] | None = None

    def replay(self) -> None:
        """Starts a run that makes the recorded choices."""
        self._next = defaultdict(int)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        made = [result] if isinstance(result, Tensor) else result
        if not isinstance(made, (list, tuple)) or not all(isinstance(t, Tensor) for t in made):
            return result
        name = func._schema.name
        chosen = [t for t in made if name in _STEPS or not (_is_real(t) or t.is_complex())]
        if "pool" in name:  # what it returns is the value, which is continuous
            return result
        if not chosen or not any(map(_is_real, tree_leaves(args))):
            return result
        if self._next is None:
            self._recorded[name].append([t.clone() for t in chosen])
            return result
        again = self._recorded[name][self._next[name]]
        self._next[name] += 1
        if [t.shape for t in again] != [t.shape for t in chosen]:
            raise RuntimeError(f"{name} chooses {chosen[0].shape} after {again[0].shape}")
        for t, earlier in zip(chosen, again, strict=True):
            t.copy_(earlier)
        if len(made) == 2 and len(chosen) == 1 and made[0].shape == made[1].shape:
            made[0].copy_(_at(args[0], func, args, made[1]))
        return result


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _at(x: Tensor, func: Any, args: tuple[Any, ...], indices: Tensor) -> Tensor:
    """The values of x at the chosen places, along the axis that the operator chose in."""
    names = [argument.name for argument in func._schema.arguments]
    dim = args[names.index("dim")] if "dim" in names and len(args) > names.index("dim") else -1
    if indices.dim() == x.dim():
        return x.gather(dim, indices)
    return x.gather(dim, indices.unsqueeze(dim)).squeeze(dim)
