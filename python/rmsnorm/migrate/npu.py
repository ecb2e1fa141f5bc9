"""Calls that only an NPU can run, and the same by rmsnorm: torch_npu.npu_rms_norm."""

from __future__ import annotations

import ast
from dataclasses import dataclass

from rmsnorm.migrate.imports import bound
from rmsnorm.migrate.source import Edit, Source, dotted

IMPORT_STAYS = (
    "the import of torch_npu stays, since it makes the device npu known; where the file has to run "
    "without torch_npu, remove it or put it in a try"
)
_FUNCTIONS = ("npu_rms_norm", "npu_rms_norm_backward")
_MATCHERS = ("pattern_matcher", "register_replacement", "register_graph_pattern", "CallFunction")


@dataclass(frozen=True)
class Use:
    """A place that names one of the functions, called or not.

    keywords: the first argument where it is given by another name than rmsnorm's first.
    why_left: None where it can become rmsnorm's.
    """

    node: ast.Attribute | ast.Name
    function: str
    keywords: tuple[ast.keyword, ...]
    why_left: str | None

    def edits(self, source: Source, module: str) -> list[Edit]:
        """module: what the file calls rmsnorm."""
        new = f"{module}.{self.function}"
        edits = [Edit(source.start(self.node), source.end(self.node), new)]
        for keyword in self.keywords:
            start = source.index(keyword.lineno, keyword.col_offset)
            edits.append(Edit(start, start + len(keyword.arg or ""), "self"))
        return edits


def uses(tree: ast.Module) -> list[Use]:
    """In order of position."""
    names = _Names(tree)
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    found: list[Use] = []
    inside: set[int] = set()
    for node in ast.walk(tree):
        if id(node) in inside or not isinstance(node, (ast.Attribute, ast.Name)):
            continue
        function = names.function(node)
        if function is None or not isinstance(node.ctx, ast.Load):
            continue
        inside.update(map(id, ast.walk(node)))
        call = calls.get(id(node))
        keywords = [each for each in call.keywords if each.arg in ("input", "x")] if call else []
        why_left = names.why_left(node, is_called=call is not None)
        found.append(Use(node, function, tuple(keywords), why_left))
    return sorted(found, key=lambda use: (use.node.lineno, use.node.col_offset))


class _Names:
    """What a file calls torch_npu, torch and the functions."""

    def __init__(self, tree: ast.Module) -> None:
        self._modules: set[str] = set()
        self._torch: set[str] = set()
        self._functions: dict[str, str] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                self._take(node)
            elif isinstance(node, ast.ImportFrom) and node.module == "torch_npu" and not node.level:
                for alias in node.names:
                    if alias.name in _FUNCTIONS:
                        self._functions[alias.asname or alias.name] = alias.name
        self._shadowed = set(bound(tree, "torch_npu")) if self._functions else set()
        self._is_replaced = any(self._replaces(node) for node in ast.walk(tree))
        self._matches_graphs = any(_word(node) in _MATCHERS for node in ast.walk(tree))

    def _take(self, node: ast.Import) -> None:
        for alias in node.names:
            root = alias.name.split(".")[0]
            if root == "torch_npu" and (alias.asname is None or alias.name == root):
                self._modules.add(alias.asname or root)
            elif root == "torch" and (alias.asname is None or alias.name == root):
                self._torch.add(alias.asname or root)

    def _replaces(self, node: ast.AST) -> bool:
        """Whether it gives one of the functions another meaning."""
        if isinstance(node, ast.Attribute):
            return not isinstance(node.ctx, ast.Load) and self.function(node) is not None
        if not isinstance(node, ast.Call) or not any(
            word in dotted(node.func) for word in ("setattr", "patch")
        ):
            return False
        texts = (each.value for each in node.args if isinstance(each, ast.Constant))
        return any(str(text).rpartition(".")[2] in _FUNCTIONS for text in texts)

    def why_left(self, node: ast.Attribute | ast.Name, *, is_called: bool) -> str | None:
        if self._is_replaced:
            return "the file replaces torch_npu's function by another"
        if isinstance(node, ast.Name) and node.id in self._shadowed:
            return "the file gives its name to something else"
        if not is_called:
            return "is named without a call: what it is compared with may have to be the same"
        if isinstance(node, ast.Attribute) and dotted(node).split(".")[0] not in self._modules:
            if node.attr == "default":
                return "names the operator as graphs hold it; rmsnorm has another in its place"
            if self._matches_graphs:
                return "the file matches patterns in graphs, which hold torch_npu's operator"
        return None

    def function(self, node: ast.expr) -> str | None:
        """Which of the functions the expression names."""
        if isinstance(node, ast.Name):
            return self._functions.get(node.id)
        if not isinstance(node, ast.Attribute) or node.attr not in (*_FUNCTIONS, "default"):
            return None
        path = dotted(node).split(".")
        if path[-1] == "default":
            path.pop()
        is_ours = path[-1] in _FUNCTIONS and (
            (len(path) == 2 and path[0] in self._modules)
            or (len(path) == 4 and path[0] in self._torch and path[1:3] == ["ops", "npu"])
        )
        return path[-1] if is_ours else None


def _word(node: ast.AST) -> str:
    if isinstance(node, ast.alias):
        return node.name.rpartition(".")[2]
    if isinstance(node, ast.ImportFrom):
        return (node.module or "").rpartition(".")[2]
    return getattr(node, "id", None) or getattr(node, "attr", None) or ""
