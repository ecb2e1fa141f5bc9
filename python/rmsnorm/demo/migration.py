"""The demo's model moved over without patch: in its source, and in the graph of torch.compile."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import rmsnorm
from rmsnorm.migrate import diff, run
from rmsnorm.migrate.call import Target


@dataclass(frozen=True)
class Compiled:
    """What the pass made of the model with its own norms.

    Attributes:
        replaced: norms of the graph that are fused.
        roots: reciprocal roots that are left in it.
        loss: of the first batch.
        report: what the pass prints.
    """

    replaced: int
    roots: int
    loss: float
    report: str


def compiled(model: torch.nn.Module, tokens: Tensor) -> Compiled:
    """One forward pass of the graph that torch.compile sees, after rmsnorm.compile_pass."""
    seen = rmsnorm.compile_pass()
    roots = 0

    def backend(module: torch.fx.GraphModule, _: Any) -> torch.fx.GraphModule:
        nonlocal roots
        seen(module.graph)
        module.recompile()
        roots += sum("rsqrt" in str(node.target) for node in module.graph.nodes)
        return module

    with torch.no_grad():
        loss = torch.compile(model, backend=backend)(input_ids=tokens, labels=tokens).loss
    torch._dynamo.reset()
    return Compiled(seen.replaced.total(), roots, loss.item(), str(seen))


@dataclass(frozen=True)
class Rewritten:
    """The file that holds the model's class, after rmsnorm migrate.

    Attributes:
        diff: what `rmsnorm migrate --diff` prints.
        new: the whole file.
    """

    diff: str
    new: str


def rewritten() -> Rewritten:
    """What rmsnorm migrate makes of transformers' LLaMA. Nothing is written there."""
    from transformers.models.llama import modeling_llama

    path = Path(inspect.getfile(modeling_llama))
    (result,) = run.run([path], Target.RMSNORM)
    if result.file is None or result.new is None:
        raise RuntimeError(f"{path}: {'; '.join(item.text for item in result.items)}")
    shown = Path(*path.parts[path.parts.index("transformers") :])
    return Rewritten(
        diff.unified(shown, result.file.data, result.new).decode(), result.new.decode()
    )


def norm_of(source: str, like: Any) -> torch.nn.Module:
    """The LlamaRMSNorm of a rewritten file, with the weight and epsilon of another."""
    name = "transformers.models.llama.modeling_llama_rewritten"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "modeling_llama_rewritten.py"
        path.write_text(source)
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        finally:
            del sys.modules[name]
    norm: torch.nn.Module = module.LlamaRMSNorm(like.weight.numel(), like.variance_epsilon)
    norm.weight = like.weight
    return norm
