"""A model and its norms over processes: how they are split, and what is put together again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.distributed.tensor.parallel.style import ParallelStyle

import rmsnorm
from rmsnorm.bench.ways import EPSILON
from rmsnorm.demo import training
from rmsnorm.demo.training import Size
from rmsnorm.parallel import sum_in_order

_DTYPES = (torch.float32, torch.bfloat16)  # of the norms whose bits are compared


def over_mesh(model: Any, mesh: DeviceMesh) -> Any:
    """Tensor parallel in each layer, its norms by sequence, then FSDP2 over what is there.

    Args:
        model: of training.llama(); split in place.
        mesh: of two axes, "data" and "tensor".
    """
    into = {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"}
    for layer in model.model.layers:
        plan: dict[str, ParallelStyle] = {
            name: ColwiseParallel(input_layouts=Shard(1))
            if name.split(".")[-1] in into
            else RowwiseParallel()
            for name, module in layer.named_modules()
            if isinstance(module, torch.nn.Linear)
        }
        parallelize_module(layer, mesh["tensor"], plan)
        shard = PrepareModuleInput(input_layouts=Replicate(), desired_input_layouts=Shard(1))
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            parallelize_module(norm, mesh["tensor"], shard)
            parallelize_module(norm, mesh["tensor"], SequenceParallel())
        fully_shard(layer, mesh=mesh["data"])
    return fully_shard(model, mesh=mesh["data"])


def clip(gradients: list[Any]) -> None:
    """clip_grad_norm_ to 1, which takes no gradients that are split in different ways."""
    squares = [whole(torch.linalg.vector_norm(each)).item() ** 2 for each in gradients]
    norm = sum(squares) ** 0.5
    for each in gradients:
        each.mul_(min(1.0, 1.0 / (norm + 1e-6)))


def norm_digests(size: Size) -> dict[str, str]:
    """The norms of the model, each process on its share of the rows: SHA-256 by result."""
    rank, processes = dist.get_rank(), dist.get_world_size()
    results: dict[str, list[Tensor]] = {name: [] for name in ("x", "y", "rstd", "dx", "dgamma")}
    for dtype in _DTYPES:
        model = training.llama(size, dtype)
        norms = training.norms(model)
        for name, call in training.norm_calls(model, training.batches(size)[0]).items():
            gamma = training.gamma(norms[name]).detach()
            x, dy = (each.flatten(0, 1).chunk(processes)[rank] for each in (call.x, call.dy))
            y, rstd = rmsnorm.npu_rms_norm(x, gamma, EPSILON)
            dx, dgamma = rmsnorm.npu_rms_norm_backward(dy, x, gamma, rstd)
            for key, piece in (("x", x), ("y", y), ("rstd", rstd), ("dx", dx)):
                results[key].append(gathered(piece))
            results["dgamma"].append(sum_in_order(dgamma, rows=len(x)))
    return {name: digest(tensors) for name, tensors in results.items()}


def digest(tensors: Iterable[Tensor]) -> str:
    """SHA-256 of the bytes of some tensors."""
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def gathered(piece: Tensor, group: Any = None) -> Tensor:
    """The pieces of all processes of a group, one after another; as bytes, for gloo's sake."""
    raw = piece.contiguous().view(torch.uint8)
    pieces = [torch.empty_like(raw) for _ in range(dist.get_world_size(group))]
    dist.all_gather(pieces, raw, group)
    return torch.cat(pieces).view(piece.dtype)


def whole(tensor: Any) -> Tensor:
    """All of a DTensor."""
    full: Tensor = tensor.full_tensor()
    return full
