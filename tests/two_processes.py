"""A small LLaMA on two processes, under FSDP2 and DDP, patched before and after."""

import copy
import functools

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import rmsnorm
from norms import TOKENS, llama
from operands import same_bits
from processes import Claims, World


def _case(case: str, world: World) -> Claims:
    own = llama(torch.float32)
    model, fused = copy.deepcopy(own), copy.deepcopy(own)
    rmsnorm.patch(fused)
    wrap = _shard if case.startswith("FSDP2") else DistributedDataParallel
    report = rmsnorm.patch(model) if case.endswith("before") else None
    wrapped = wrap(model)
    report = report or rmsnorm.patch(wrapped)
    logits, gradients = _run(wrapped, world.rank)
    expected, expected_gradients = _run(fused, world.rank)
    for gradient in expected_gradients:
        dist.all_reduce(gradient)
    norms = [module for module in wrapped.modules() if isinstance(module, LlamaRMSNorm)]
    wrappers = [isinstance(norm, FSDPModule) for norm in norms]
    rmsnorm.unpatch(wrapped)
    yield "all norms are replaced", len(report.replaced) == len(norms) == 5
    yield "logits have the bits of the fused model", same_bits(logits, expected)
    yield (
        "gradients are the mean of both processes'",
        all(
            same_bits(gradient, total / 2)
            for gradient, total in zip(gradients, expected_gradients, strict=True)
        ),
    )
    yield (
        "unpatch gives back the bits of the own norms",
        same_bits(_run(wrapped, world.rank)[0], _run(own, world.rank)[0]),
    )
    yield (
        "the wrapper's own classes stay",
        wrappers == [isinstance(norm, FSDPModule) for norm in norms]
        and sum(wrappers) == (4 if wrap is _shard else 0),
    )


CASES = {
    name: functools.partial(_case, name)
    for wrapper in ("FSDP2", "DDP")
    for name in (f"{wrapper}, patched before", f"{wrapper}, after")
}


def _shard(model):
    """Norms by themselves, but for the last one, in layers by themselves, in the model."""
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.model.layers:
        for module in (layer.input_layernorm, layer.post_attention_layernorm, layer):
            fully_shard(module, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def _run(model, rank):
    model.zero_grad()
    tokens = TOKENS[rank : rank + 1]
    output = model(input_ids=tokens, labels=tokens)
    output.loss.backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    return output.logits.detach(), [
        getattr(gradient, "full_tensor", gradient.clone)() for gradient in gradients
    ]
