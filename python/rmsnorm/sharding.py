"""How DTensor shards the operators: rows freely, gamma whole, dgamma as partial sums of rows."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
from torch._ops import OpOverload

from rmsnorm.library import operators

_DTENSOR = "torch.distributed.tensor"


def register_when_imported() -> None:
    """Register the rules now if torch.distributed.tensor is imported, else as soon as it is.

    Nothing is registered where PyTorch has no register_sharding: before 2.5.
    """
    if _DTENSOR in sys.modules:
        _register()
    elif torch.distributed.is_available():
        sys.meta_path.insert(0, _AfterImport())


class _AfterImport(MetaPathFinder):
    """Waits for torch.distributed.tensor: to import it takes as long as a quarter of PyTorch."""

    looking = False

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _DTENSOR or self.looking:
            return None
        self.looking = True  # among the others: this may be a look alone, and the import come later
        try:
            spec: Any = importlib.util.find_spec(name)
        finally:
            self.looking = False
        if spec is not None and spec.loader is not None:  # a folder without code before 2.5
            spec.loader.exec_module = self._then_register(spec.loader.exec_module)
        return spec

    def _then_register(self, exec_module: Callable[[ModuleType], None]) -> Any:
        def exec_and_register(module: ModuleType) -> None:
            exec_module(module)
            sys.meta_path.remove(self)
            _register()

        return exec_and_register


def _register() -> None:
    try:
        from torch.distributed.tensor import DTensor
        from torch.distributed.tensor.experimental import register_sharding
    except ImportError:  # before 2.5
        return
    try:
        for spec in operators():
            operator = getattr(torch.ops.rmsnorm, spec["name"]).default
            register_sharding(operator)(_rule(operator))
            _look_at_every_argument(operator, DTensor._op_dispatcher.sharding_propagator)
        torch.library.register_torch_dispatch("rmsnorm::rms_norm_out", DTensor, _rms_norm_out)
    except Exception as error:  # DTensor and we are of use without each other
        warnings.warn(
            f"rmsnorm: no rules for DTensor of PyTorch {torch.__version__}: {error}", stacklevel=2
        )


def _look_at_every_argument(operator: OpOverload, propagator: Any) -> None:
    """Rules are looked up by tensors and integers alone, and `wanted` decides on shapes, too."""
    arguments = operator._schema.arguments
    first = next(i for i, a in enumerate(arguments) if "Tensor" not in str(a.type))
    info = propagator.op_to_schema_info
    info[operator] = dataclasses.replace(info[operator], static_argnum=first)


def _rule(operator: OpOverload) -> Callable[..., list[tuple[list, list]]]:
    from torch.distributed.tensor import Partial, Replicate, Shard

    schema = operator._schema
    tensors = [a.name for a in schema.arguments if "Tensor" in str(a.type)]
    results = [result.name for result in schema.returns]

    def rule(*args: Any, **kwargs: Any) -> list[tuple[list, list]]:
        """(of the results, of the tensors): the placements that need no communication."""
        given = {**dict(zip((a.name for a in schema.arguments), args, strict=False)), **kwargs}
        gamma = given["gamma"]
        rows = given["x"].ndim - (1 if gamma is None else gamma.ndim)
        empty = [not wanted for wanted in given.get("wanted", [True] * len(results))]

        def result(name: str, of_rows: Any) -> Any:
            if empty[results.index(name)]:
                return Replicate()
            return Partial() if name == "dgamma" and of_rows.is_shard() else of_rows

        def tensor(name: str, of_rows: Any) -> Any:
            if name != "gamma":
                return of_rows
            return None if gamma is None else Replicate()

        return [
            (
                [result(name, of_rows) for name in results],
                [tensor(name, of_rows) for name in tensors],
            )
            for of_rows in (Replicate(), *map(Shard, range(rows)))
        ]

    return rule


def _rms_norm_out(cls: Any, operator: Any, types: Any, args: Any, kwargs: Any) -> None:
    """By way of a y of its own: register_sharding knows no rules for what is written to."""
    out = kwargs["out"]
    if out.shape != args[0].shape:
        raise ValueError(f"out: shape {list(out.shape)}; expected x's {list(args[0].shape)}")
    out.copy_(torch.ops.rmsnorm.rms_norm.default(*args, out_dtype=out.dtype)[0])
