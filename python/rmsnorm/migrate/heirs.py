"""Classes that inherit a forward, and what they change of what it reads."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator

from rmsnorm.migrate.call import CannotRewriteError
from rmsnorm.migrate.source import Source, dotted
from rmsnorm.reading.file import Definition

# Bases that have none of a norm's names.
_PLAIN = {"Module", "object", "ABC", "Generic", "Protocol"}


class Heirs:
    """The file's classes that inherit from one, also by way of others and under other names."""

    def __init__(self, source: Source, owner: ast.ClassDef) -> None:
        self._classes = list(source.classes())
        self._owner = owner
        self._tree = source.tree
        self._names = {owner.name}
        self.classes: list[ast.ClassDef] = []
        count = 0
        while count != len(self._names):
            count = len(self._names)
            self._names |= set(self._aliases())
            for node in self._classes:
                if node is not owner and node not in self.classes and self._inherits(node):
                    self.classes.append(node)
                    self._names.add(node.name)

    def refuse_changes(self, method: str, called: set[str], read: set[str]) -> None:
        """Raises CannotRewriteError where an heir may give what the method reads another meaning.

        Args:
            method: what is rewritten, such as forward.
            called: the methods that it calls, also by one another.
            read: all attributes of self that it reads, those included.
        """
        for node in ast.walk(self._tree):
            if self._makes_a_class(node):
                raise CannotRewriteError(f"type() makes an heir of {self._owner.name}")
            if (changed := called & set(_stored(node))) and not _is_of_self(node):
                raise CannotRewriteError(
                    f"the file assigns to {min(changed)}, which {method} calls"
                )
        for heir in self.classes:
            if self._is_on_its_own(heir, method):
                continue
            for node in self._in_front(heir):
                changed = read & {*_defined(node), *_given_to_self(node)}
                if overridden := sorted(changed & called):
                    raise CannotRewriteError(
                        f"{node.name} overrides {overridden[0]}, which {method} calls"
                    )
                if changed:
                    raise CannotRewriteError(
                        f"{node.name} sets {min(changed)}, which {method} reads"
                    )

    def _aliases(self) -> Iterator[str]:
        for node in ast.walk(self._tree):
            if not isinstance(node, ast.Assign) or isinstance(node.value, ast.Call):
                continue
            if any(self._is_one(each) for each in ast.walk(node.value)):
                yield from (each.id for each in node.targets if isinstance(each, ast.Name))

    def _inherits(self, node: ast.ClassDef) -> bool:
        return any(self._is_one(base) for base in node.bases)

    def _is_one(self, node: ast.AST) -> bool:
        return _name(node) in self._names

    def _makes_a_class(self, node: ast.AST) -> bool:
        if not isinstance(node, ast.Call) or len(node.args) < 2:
            return False
        makes = _name(node.func) == "new_class" or (
            _name(node.func) in ("type", "__new__") and len(node.args) > 2
        )
        return makes and any(
            self._is_one(each) for argument in node.args for each in ast.walk(argument)
        )

    def _is_on_its_own(self, heir: ast.ClassDef, method: str) -> bool:
        """Whether it has a method of that name that doesn't call the inherited one."""
        own = [each for each in heir.body if getattr(each, "name", None) == method]
        names = {*self._names, "super"}
        words = {each.id for node in own for each in ast.walk(node) if isinstance(each, ast.Name)}
        return bool(own) and not names & words

    def _in_front(self, heir: ast.ClassDef) -> list[ast.ClassDef]:
        """The heir, and its bases that Python asks before the class itself."""
        leading = [i for i, base in enumerate(heir.bases) if self._is_one(base)]
        found, waiting = [heir], list(heir.bases[: leading[-1]])
        while waiting:
            base = waiting.pop()
            if self._is_one(base) or _name(base) in _PLAIN:
                continue
            seen = [each for each in self._classes if each.name == _name(base)]
            if not seen:
                raise CannotRewriteError(
                    f"{heir.name} inherits from {_name(base)}, too, which isn't in the file"
                )
            for each in seen:
                if each not in found:
                    found.append(each)
                    waiting += each.bases
        return found


def _name(node: ast.AST) -> str:
    """The last part of a dotted name, without what it is subscripted with."""
    return dotted(node.value if isinstance(node, ast.Subscript) else node).rpartition(".")[2]


def _defined(node: ast.ClassDef) -> Iterator[str]:
    """What the body of a class binds, not what its methods do."""
    waiting: list[ast.AST] = list(node.body)
    while waiting:
        each = waiting.pop()
        if isinstance(each, Definition):
            yield each.name
            continue
        if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store):
            yield each.id
        elif isinstance(each, ast.alias):
            yield each.asname or each.name
        waiting += ast.iter_child_nodes(each)


def _given_to_self(node: ast.ClassDef) -> Iterator[str]:
    for each in ast.walk(node):
        yield from _stored(each)
        if isinstance(each, ast.Call) and _name(each.func).startswith("register_"):
            given: Iterable[ast.expr] = [*each.args[:1], *(k.value for k in each.keywords)]
            yield from (str(a.value) for a in given if isinstance(a, ast.Constant))


def _is_of_self(node: ast.AST) -> bool:
    """Whether the object is self: that is another class's own, or the reading knows it."""
    given = node.args[:1] if isinstance(node, ast.Call) else [getattr(node, "value", None)]
    return any(isinstance(each, ast.Name) and each.id == "self" for each in given)


def _stored(node: ast.AST) -> Iterator[str]:
    """Attributes, of whatever object, that the node alone sets or deletes."""
    if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
        yield node.attr
    elif isinstance(node, ast.Call) and _name(node.func) in ("setattr", "delattr", "__setattr__"):
        yield from (str(each.value) for each in node.args if isinstance(each, ast.Constant))
