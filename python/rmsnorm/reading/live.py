"""Reads the source of a module that exists: names lead to its own attributes and globals."""

from __future__ import annotations

import ast
import builtins
import contextlib
import functools
import inspect
import textwrap
import types
from dataclasses import dataclass, replace
from typing import Any

import torch

from rmsnorm.reading.describe import Meaning, by_path
from rmsnorm.reading.finding import Cause
from rmsnorm.reading.interpreter import Function, Scope
from rmsnorm.reading.values import (
    Constant,
    Dtype,
    Named,
    Number,
    Symbol,
    Unknown,
    Value,
    dtype_name,
    scale,
    tensor_x,
)


def read(module: torch.nn.Module, x_dtype: str, gamma_dtype: str) -> Meaning | Unknown:
    """What the source of a module's forward computes from x alone, in one mix of dtypes.

    Args:
        module: not run; its attributes decide the branches that are taken.
        x_dtype, gamma_dtype: of x and of the module's parameters, such as "bfloat16".

    Returns:
        The form of RMSNorm, or why it is none. Branches that only a run decides, such as on
        self.training, have to agree.
    """
    scope = _LiveScope(module, gamma_dtype)
    forward = scope.attribute("forward")
    if not isinstance(forward, Function):
        return forward if isinstance(forward, Unknown) else _unread("forward")
    paths = by_path(lambda run: run.call(forward, [tensor_x(x_dtype)]), x_dtype)
    first, *rest = paths.values()
    for (*_, (condition, _)), other in zip(list(paths)[1:], rest, strict=True):
        if other != first:
            return Unknown(Cause.UNREADABLE, f"computes other things as `{condition}` turns out")
    return first


@dataclass(frozen=True)
class _LiveScope:
    """What the names in a method of a module lead to.

    Attributes:
        function: whose globals and closure are seen; None: of no function yet.
        owner: the class that the function stands in.
    """

    module: torch.nn.Module
    gamma_dtype: str
    function: Any = None
    owner: type | None = None

    def name(self, name: str) -> Value:
        assert self.function is not None
        for names in (_closed(self.function), self.function.__globals__, vars(builtins)):
            if name in names:
                return self._object(names[name], name)
        return Unknown(Cause.UNREADABLE, f"reads {name}, which isn't defined")

    def attribute(self, name: str) -> Value:
        module, text = self.module, f"self.{name}"
        if name in module._parameters:
            if module._parameters[name] is None:
                return Constant(None)
            return scale(text, self.gamma_dtype)
        if name in module._buffers:
            return Unknown(Cause.GATED, f"reads {text}, a buffer")
        if name in module._modules:
            return Unknown(Cause.UNREADABLE, f"calls {text}, another module")
        if name == "training":
            return Symbol(text, None)
        if name in vars(module):
            held = vars(module)[name]
            if isinstance(held, (int, float)) and not isinstance(held, bool):
                return Number(float(held), text)
            if isinstance(held, (bool, str, tuple, torch.Size, torch.dtype, type(None))):
                return self._object(held, text)
            return Symbol(text, None)
        return self.inherited(name, None)

    def inherited(self, name: str, after: Scope | None) -> Value:
        """A method, or super()'s, if `after` is the scope of the one that asks."""
        classes = type(self.module).__mro__
        if isinstance(after, _LiveScope) and after.owner is not None:
            classes = classes[classes.index(after.owner) + 1 :]
        for owner in classes:
            if name in vars(owner):
                found = vars(owner)[name]
                bound = not isinstance(found, staticmethod)
                if isinstance(found, staticmethod):
                    found = found.__func__
                if isinstance(found, types.FunctionType):
                    return self._function(found, bound=bound, owner=owner)
                if isinstance(found, property):
                    return Unknown(Cause.UNREADABLE, f"reads self.{name}, a property")
                return self._object(found, f"self.{name}")
        return Unknown(Cause.UNREADABLE, f"reads self.{name}, which it doesn't have")

    def _object(self, found: Any, name: str) -> Value:
        if isinstance(found, torch.dtype):
            return Dtype(dtype_name(found))
        if isinstance(found, bool | str | tuple | None):
            return Constant(found)
        if isinstance(found, (int, float)):
            return Number(float(found), name)
        if isinstance(found, types.ModuleType):
            return Named(found.__name__)
        owner = getattr(found, "__module__", None) or ""
        if isinstance(found, type):
            return Named(f"{owner}.{found.__qualname__}")
        for library in (torch, torch.nn.functional, torch.linalg):
            known = getattr(found, "__name__", name)
            if callable(found) and getattr(library, known, None) is found:
                return Named(f"{library.__name__}.{known}")
        if isinstance(found, types.FunctionType) and owner.partition(".")[0] != "torch":
            return self._function(found, bound=False, owner=None)
        if isinstance(found, (types.FunctionType, types.BuiltinFunctionType)):
            return Named(f"{owner}.{found.__name__}")
        return _unread(name)

    def _function(self, found: types.FunctionType, *, bound: bool, owner: type | None) -> Value:
        own: Any = inspect.unwrap(found)
        try:
            node = _parsed(own)
        except (OSError, TypeError, ValueError, SyntaxError):
            return Unknown(
                Cause.UNREADABLE, f"isn't at hand: that of {found.__qualname__} can't be found"
            )
        if own is not found and not node.decorator_list:
            return Unknown(Cause.UNREADABLE, f"calls {found.__qualname__}, which is wrapped")
        return Function(node, replace(self, function=own, owner=owner), bound)


def _closed(function: types.FunctionType) -> dict[str, Any]:
    """What the names of enclosing functions hold."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    held = {}
    for name, cell in cells:
        with contextlib.suppress(ValueError):  # an empty one
            held[name] = cell.cell_contents
    return held


def _parsed(function: types.FunctionType) -> ast.FunctionDef:
    """The definition of a function."""
    return _definition(textwrap.dedent(inspect.getsource(function)))


@functools.lru_cache(maxsize=1024)
def _definition(text: str) -> ast.FunctionDef:
    (node,) = ast.parse(text).body
    if not isinstance(node, ast.FunctionDef):
        raise OSError
    return node


def _unread(name: str) -> Unknown:
    return Unknown(Cause.UNREADABLE, f"reads {name}, which isn't followed")
