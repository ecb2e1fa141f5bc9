"""What a class makes its parameters of, and so their shapes."""

from __future__ import annotations

import ast

from rmsnorm.reading.finding import Cause
from rmsnorm.reading.values import Unknown, other_formula

_MAKERS = ("ones", "zeros", "empty", "full", "rand", "randn", "Tensor")  # of tensors, by sizes


def is_none(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is None


def is_buffer(value: ast.expr) -> bool:
    return (
        isinstance(value, ast.Call)
        and isinstance(value.func, ast.Attribute)
        and value.func.attr == "register_buffer"
    )


def is_parameter(value: ast.expr) -> bool:
    """nn.Parameter(…), or that or None."""
    if isinstance(value, ast.IfExp):
        return all(is_none(each) or is_parameter(each) for each in (value.body, value.orelse))
    return isinstance(value, ast.Call) and ast.unparse(value.func).rpartition(".")[2] == "Parameter"


def wrong_shape(value: ast.expr, text: str) -> Unknown | None:
    """Why a parameter can't scale the last axis, by the tensor that it is made of."""
    if isinstance(value, ast.IfExp):
        arms = [each for each in (value.body, value.orelse) if not is_none(each)]
        return next(filter(None, (wrong_shape(each, text) for each in arms)), None)
    unknown = Unknown(Cause.UNREADABLE, f"scales by {text}, whose shape isn't known")
    if not isinstance(value, ast.Call) or not (value.args or value.keywords):
        return unknown
    sizes = _sizes(value.args[0] if value.args else value.keywords[0].value)
    if sizes is None:
        return unknown
    if len(sizes) != 1:
        return Unknown(Cause.GROUPED, f"scales by {text}, which has several axes")
    if isinstance(sizes[0], ast.Constant) and sizes[0].value == 1:
        return other_formula(f"scales by {text}, which has one element")
    return None


def _sizes(tensor: ast.expr) -> list[ast.expr] | None:
    """The sizes of torch.ones(…) and the like, in one dtype or another; None: not known."""
    match tensor:
        case ast.IfExp(_, body, orelse):
            first, second = _sizes(body), _sizes(orelse)
            same = first and second and list(map(ast.dump, first)) == list(map(ast.dump, second))
            return first if same else None
        case ast.Call(ast.Attribute(base, "float" | "to" | "half" | "bfloat16"), _):
            return _sizes(base)
        case ast.Call(ast.Attribute(_, maker), args, keywords) if maker in _MAKERS:
            sizes = args[:1] if maker == "full" else args
            named = [each.value for each in keywords if each.arg == "size"]
            sizes = sizes or named
            if len(sizes) == 1 and isinstance(sizes[0], (ast.Tuple, ast.List)):
                sizes = sizes[0].elts
            unclear = any(
                isinstance(each, ast.Starred) or "shape" in ast.unparse(each) for each in sizes
            )
            return None if unclear else list(sizes)
    return None
