"""Runs a function on the values of values.py instead of tensors, for one mix of dtypes."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from rmsnorm.reading import operations
from rmsnorm.reading.finding import Cause
from rmsnorm.reading.operations import NONE, OPERATIONS
from rmsnorm.reading.syntax import (
    Spelled,
    check_effects,
    compared,
    imported,
    is_query,
    literal,
    short,
)
from rmsnorm.reading.values import (
    FLOATS,
    Columns,
    Constant,
    Dtype,
    Named,
    Number,
    Product,
    Refused,
    Self,
    Shape,
    Symbol,
    Unknown,
    Value,
)

_DEPTH = 8  # of calls inside calls
# Where the functions of OPERATIONS are; "tensor" stands for methods.
_LIBRARIES = ("torch", "torch.nn.functional", "torch.linalg", "torch.special", "math", "tensor")
# Decorators that leave values, gradients and arguments alone.
_PLAIN_DECORATORS = ("staticmethod", "classmethod", "torch.compile", "torch.jit.script")
_BINARY: dict[type[ast.operator], Callable[[Value, Value], Value]] = {
    ast.Add: operations.plus,
    ast.Sub: operations.minus,
    ast.Mult: operations.times,
    ast.Div: operations.over,
    ast.Pow: operations.power,
}

_DTYPES = {name: name for name in (*FLOATS, "float64")}
_DTYPES |= {"half": "float16", "float": "float32", "double": "float64"}
_KEYWORDS = {"axis": "dim", "ord": "p", "keepdims": "keepdim"}


class Undecided(Exception):
    """A branch on something that only a run knows: both ways have to be followed."""

    def __init__(self, condition: str) -> None:
        super().__init__(condition)
        self.condition = condition


@dataclass(frozen=True)
class Function(Value):
    """A function of the source, with the names that it sees."""

    node: ast.FunctionDef
    scope: Scope
    bound: bool = False  # a method, whose first argument is given


class Scope(Protocol):
    """Where names of a function lead that it doesn't assign."""

    def name(self, name: str) -> Value: ...

    def attribute(self, name: str) -> Value:
        """Of the module; a Function for a method."""
        ...

    def inherited(self, name: str, after: Scope) -> Value:
        """What super().name is."""
        ...


@dataclass
class Interpreter:
    """Follows calls.

    Attributes:
        decisions: how conditions that only a run knows turn out, by their text.
    """

    decisions: Mapping[str, bool]
    depth: int = 0

    def call(
        self, function: Function, args: list[Value], kwargs: dict[str, Value] | None = None
    ) -> Value:
        """What a function returns.

        Raises:
            Refused: it has an effect besides, or a statement that isn't followed.
            Undecided: a condition is missing in `decisions`.
        """
        if self.depth >= _DEPTH:
            raise Refused(Cause.UNREADABLE, "calls functions too deep to follow")
        self.depth += 1
        try:
            names = self._bound(function, args, kwargs or {})
            self._check_decorators(function)
            returned = Frame(self, function.scope, names).run(function.node.body)
            return NONE if returned is None else returned
        finally:
            self.depth -= 1

    def _bound(
        self, function: Function, args: list[Value], kwargs: dict[str, Value]
    ) -> dict[str, Value]:
        """The arguments by name; those that aren't given have their defaults."""
        spec = function.node.args
        positional = [arg.arg for arg in (*spec.posonlyargs, *spec.args)]
        if function.bound:
            args = [Self(), *args]
        if len(args) > len(positional) and spec.vararg is None:
            raise Refused(Cause.UNREADABLE, "gives a function more arguments than it has")
        frame = Frame(self, function.scope, {})
        names: dict[str, Value] = {}
        for name, default in zip(positional[::-1], spec.defaults[::-1], strict=False):
            names[name] = frame.value(default)
        for keyword, maybe in zip(spec.kwonlyargs, spec.kw_defaults, strict=True):
            if maybe is not None:
                names[keyword.arg] = frame.value(maybe)
        args, kwargs = [_given(arg) for arg in args], {k: _given(v) for k, v in kwargs.items()}
        for extra in (spec.vararg, spec.kwarg):
            if extra is not None:
                names[extra.arg] = Unknown(Cause.UNREADABLE, f"takes *{extra.arg}")
        for name in positional:
            missing = Unknown(Cause.GATED, f"takes {name}, a second input")
            names.setdefault(name, missing)
        names.update(zip(positional, args, strict=False))
        names.update(kwargs)
        return names

    def _check_decorators(self, function: Function) -> None:
        for decorator in function.node.decorator_list:
            target = decorator.func if isinstance(decorator, ast.Call) else decorator
            found = Frame(self, function.scope, {}).value(target)
            if not (isinstance(found, Named) and found.path in _PLAIN_DECORATORS):
                raise Refused(Cause.UNREADABLE, f"is decorated with {ast.unparse(decorator)}")


class Frame:
    """One call: its local names."""

    def __init__(self, run: Interpreter, scope: Scope, names: dict[str, Value]) -> None:
        self._run = run
        self._scope = scope
        self._names = names

    def run(self, body: list[ast.stmt]) -> Value | None:
        """The value that is returned; None if the body ends without."""
        for statement in body:
            match statement:
                case ast.Return(value):
                    return NONE if value is None else self.value(value)
                case ast.Assign(targets, value):
                    found = self.value(value)
                    for target in targets:
                        self._assign(target, found)
                case ast.AnnAssign(target, _, value):
                    if value is not None:
                        self._assign(target, self.value(value))
                case ast.AugAssign(target, op, value):
                    self._assign_in_place(target, op, self.value(value))
                case ast.Expr(value):
                    self._run_for_its_effect(value)
                case ast.If(test, body, orelse):
                    if _only_raises(body) and not orelse:
                        check_effects(test)
                        continue
                    returned = self.run(body if self.truth(test) else orelse)
                    if returned is not None:
                        return returned
                case ast.With(items, body):
                    self._check_contexts(items)
                    returned = self.run(body)
                    if returned is not None:
                        return returned
                case ast.Assert(test):
                    check_effects(test)
                case ast.Import() | ast.ImportFrom():
                    self._names.update(imported(statement))
                case ast.Pass():
                    pass
                case ast.FunctionDef(name):
                    inner = f"calls {name}, a function inside of a function"
                    self._names[name] = Unknown(Cause.UNREADABLE, inner)
                case _:
                    kind = type(statement).__name__.lower()
                    raise Refused(Cause.UNREADABLE, f"has a {kind} statement")
        return None

    def value(self, node: ast.expr) -> Value:
        match node:
            case ast.Constant(value):
                return literal(value)
            case ast.Name(name):
                return self._names[name] if name in self._names else self._scope.name(name)
            case ast.Attribute(base, name):
                return self._attribute(base, name)
            case ast.BinOp(left, op, right):
                return self._binary(op, self.value(left), self.value(right))
            case ast.UnaryOp(ast.USub(), operand):
                return operations.negative(self.value(operand))
            case ast.Call():
                return self._call(node)
            case ast.Subscript(base, index):
                check_effects(index)
                return self._subscript(self.value(base), index)
            case ast.IfExp(test, body, orelse):
                return self.value(body if self.truth(test) else orelse)
            case ast.Tuple(elements) | ast.List(elements) | ast.Set(elements):
                return _tuple([self.value(element) for element in elements])
            case ast.Compare() | ast.UnaryOp(ast.Not()):
                return Constant(self.truth(node))
            case ast.BoolOp(op, values):
                for value in values[:-1]:
                    if self.truth(value) is isinstance(op, ast.Or):
                        return self.value(value)
                return self.value(values[-1])
            case ast.NamedExpr(target, value):
                found = self.value(value)
                self._assign(target, found)
                return found
        check_effects(node)
        return Unknown(Cause.UNREADABLE, f"computes `{short(node)}`, which isn't followed")

    def truth(self, node: ast.expr) -> bool:
        """How a condition turns out."""
        match node:
            case ast.UnaryOp(ast.Not(), operand):
                return not self.truth(operand)
            case ast.BoolOp(op, values):
                if isinstance(op, ast.And):
                    return all(self.truth(value) for value in values)
                return any(self.truth(value) for value in values)
            case ast.Compare(left, [op], [right]):
                known = compared(op, self.value(left), self.value(right))
                if known is not None:
                    return known
                if isinstance(op, (ast.IsNot, ast.NotEq, ast.NotIn)):
                    positive = {ast.IsNot: ast.Is, ast.NotEq: ast.Eq, ast.NotIn: ast.In}[type(op)]
                    return not self._decided(ast.Compare(left, [positive()], [right]))
                return self._decided(node)
            case ast.Compare(left, [op, *ops], [right, *others]):
                return self.truth(ast.Compare(left, [op], [right])) and self.truth(
                    ast.Compare(right, ops, others)
                )
            case _:
                found = self.value(node)
                if isinstance(found, (Constant, Number)):
                    return bool(found.value)
                return self._decided(node)

    def _decided(self, node: ast.expr) -> bool:
        """How a condition turns out that only a run knows, told apart by its text."""
        text = ast.unparse(Spelled(self._names).visit(copy.deepcopy(node)))
        if text not in self._run.decisions:
            raise Undecided(text)
        return self._run.decisions[text]

    def _binary(self, op: ast.operator, left: Value, right: Value) -> Value:
        if type(op) in _BINARY:
            return _BINARY[type(op)](left, right)
        return operations.unfollowed(left, right)

    def _attribute(self, base: ast.expr, name: str) -> Value:
        found = self.value(base)
        match found:
            case Self():
                return self._scope.attribute(name)
            case Named(path):
                if path == "torch" and name in _DTYPES:
                    return Dtype(_DTYPES[name])
                return Named(f"{path}.{name}")
            case Product() if name == "dtype":
                return Dtype(found.dtype)
            case Symbol() if name == "dtype" and found.scale_dtype is not None:
                return Dtype(found.scale_dtype)
            case Product() if name == "shape" and found.powers.x:
                return Shape()
            case Product() if name in ("shape", "device", "ndim", "is_cuda", "layout"):
                return Symbol(f"{ast.unparse(base)}.{name}", None)
            case Symbol(text):
                return replace(found, text=f"{text}.{name}", scale_dtype=None)
            case Product() if name in ("T", "mT", "data", "grad"):
                return operations.detached() if name == "data" else operations.reshaped()
        return operations.unfollowed(found)

    def _call(self, node: ast.Call) -> Value:
        if any(isinstance(arg, ast.Starred) for arg in node.args) or any(
            keyword.arg is None for keyword in node.keywords
        ):
            shape = [arg for arg in node.args if isinstance(arg, ast.Starred)]
            method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            if shape and OPERATIONS.get(method) is operations.reshaped:
                return operations.reshaped()
            raise Refused(Cause.UNREADABLE, f"calls `{short(node)}` with unpacked arguments")
        args = [self.value(arg) for arg in node.args]
        kwargs = {
            keyword.arg: self.value(keyword.value) for keyword in node.keywords if keyword.arg
        }
        called, first = self._callee(node.func)
        if isinstance(called, Function):
            return self._run.call(called, args, kwargs)
        library, _, name = called.path.rpartition(".") if isinstance(called, Named) else ("",) * 3
        in_place = name.endswith("_") and not name.endswith("__")
        if in_place and not self._is_temporary(first):
            raise Refused(Cause.SIDE_EFFECT, f"changes a tensor in place, by {name}")
        if "out" in kwargs:
            raise Refused(Cause.SIDE_EFFECT, "writes into out=")
        operation = OPERATIONS.get(name.removesuffix("_")) if library in _LIBRARIES else None
        if operation is None:
            given = [each for each in (*args, *kwargs.values()) if isinstance(each, Unknown)]
            found = called if isinstance(called, Unknown) else _unfollowed(node.func)
            found = given[0] if given else found
            if not is_query(node):  # which may have any effect
                raise Refused(found.cause, found.reason)
            return found
        kwargs = {_KEYWORDS.get(key, key): value for key, value in kwargs.items()}
        try:
            result = operation(*([] if first is None else [first]), *args, **kwargs)
        except TypeError:
            return Unknown(Cause.UNREADABLE, f"gives `{short(node.func)}` unusual arguments")
        if in_place and isinstance(result, Product) and isinstance(first, Product):
            return result.cast(first.dtype)
        return result

    def _is_temporary(self, value: Value | None) -> bool:
        """Whether nothing else sees a tensor, so that it may be changed in place."""
        named = any(each is value for each in self._names.values())
        return isinstance(value, Product) and value.fresh and value.per_row and not named

    def _callee(self, func: ast.expr) -> tuple[Value, Value | None]:
        """What is called: a Function, or an operation by Named; and the tensor of a method."""
        if isinstance(func, ast.Attribute):
            match func.value:
                case ast.Call(ast.Name("super"), [], []):
                    return self._scope.inherited(func.attr, self._scope), None
            base = self.value(func.value)
            if isinstance(base, (Product, Symbol, Columns, Number)):
                return Named(f"tensor.{func.attr}"), base
            if isinstance(base, Unknown):
                return base, None
            found = self._attribute(func.value, func.attr)
        else:
            found = self.value(func)
        if not isinstance(found, (Function, Named, Unknown)):
            found = _unfollowed(func)
        return found, None

    def _subscript(self, base: Value, index: ast.expr) -> Value:
        match base:
            case Shape() if ast.unparse(index) == "-1:":
                return Constant((Columns(),))
            case Shape() if self.value(index) == Number(-1.0):
                return Columns()
            case Shape():
                return Symbol(f"size {short(index)} of x", None)
            case Symbol(text):
                return Symbol(f"{text}[{short(index)}]", None)
            case Product() if not base.per_row and ast.unparse(index) in (
                "..., None",
                "(..., None)",
            ):
                return operations.unsqueeze(base, Number(-1.0))
            case Product():
                return Unknown(Cause.OTHER_FORMULA, "takes a part of a tensor")
        return operations.unfollowed(base)

    def _assign(self, target: ast.expr, value: Value) -> None:
        match target:
            case ast.Name(name):
                self._names[name] = value
            case ast.Tuple(elements) | ast.List(elements):
                for element in elements:
                    inner = element.value if isinstance(element, ast.Starred) else element
                    self._assign(inner, operations.unfollowed(value))
            case ast.Attribute():
                raise Refused(Cause.SIDE_EFFECT, f"assigns to {ast.unparse(target)}")
            case _:
                raise Refused(Cause.SIDE_EFFECT, f"changes {short(target)} in place")

    def _assign_in_place(self, target: ast.expr, op: ast.operator, value: Value) -> None:
        if not isinstance(target, ast.Name):
            raise Refused(Cause.SIDE_EFFECT, f"changes {short(target)} in place")
        old = self.value(target)
        new = self._binary(op, old, value)
        if isinstance(old, Product):
            shared = sum(each is old for each in self._names.values()) > 1
            if not old.fresh or not old.per_row or shared:
                raise Refused(Cause.SIDE_EFFECT, f"changes {target.id} in place")
            if isinstance(new, Product):
                new = new.cast(old.dtype)
        self._names[target.id] = new

    def _run_for_its_effect(self, node: ast.expr) -> None:
        if isinstance(node, ast.Constant):
            return
        try:
            self.value(node)
        except Refused as refused:
            if refused.unknown.cause is Cause.SIDE_EFFECT:
                raise
        raise Refused(Cause.SIDE_EFFECT, f"runs `{short(node)}` for its effect")

    def _check_contexts(self, items: list[ast.withitem]) -> None:
        for item in items:
            context = item.context_expr
            match context:
                case ast.Call(ast.Attribute(_, "autocast"), _, keywords) if (
                    item.optional_vars is None
                ):
                    given = {each.arg: ast.unparse(each.value) for each in keywords}
                    if given.get("enabled") == "False":
                        continue
            raise Refused(Cause.SIDE_EFFECT, f"computes under `{short(context)}`")


def _given(value: Value) -> Value:
    """An argument: the caller may hold the same tensor."""
    return replace(value, fresh=False) if isinstance(value, Product) else value


def _unfollowed(func: ast.expr) -> Unknown:
    return Unknown(Cause.UNREADABLE, f"calls `{short(func)}`, which isn't followed")


def _only_raises(body: list[ast.stmt]) -> bool:
    return all(isinstance(statement, ast.Raise) for statement in body)


def _tuple(elements: list[Value]) -> Value:
    """A tuple: of numbers (axes), or of whatever else."""
    if all(isinstance(element, Number) for element in elements):
        return Constant(tuple(element.value for element in elements))  # type: ignore[attr-defined]
    return Constant(tuple(elements))
