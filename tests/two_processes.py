"""A small LLaMA on two processes, under FSDP2 and DDP, patched before and after: what came out."""

import copy

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import rmsnorm
from norms import TOKENS, llama
from operands import same_bits

CASES = [
    f"{wrapper}, {order}" for wrapper in ("FSDP2", "DDP") for order in ("patched before", "after")
]


def work(rank: int, folder: str) -> None:
    """Runs every case; rank 0 writes {case: {what: whether it held on both}} to outcomes.pt."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    torch.manual_seed(0)
    own = llama(torch.float32)
    outcomes = {case: _outcome(case, copy.deepcopy(own), own, rank) for case in CASES}
    gathered = [None, None]
    dist.all_gather_object(gathered, outcomes)
    if rank == 0:
        both = {
            case: {what: all(one[case][what] for one in gathered) for what in outcomes[case]}
            for case in CASES
        }
        torch.save(both, f"{folder}/outcomes.pt")
    dist.destroy_process_group()


def _outcome(case, model, own, rank):
    fused = copy.deepcopy(own)
    rmsnorm.patch(fused)
    wrap = _shard if case.startswith("FSDP2") else DistributedDataParallel
    report = rmsnorm.patch(model) if case.endswith("before") else None
    wrapped = wrap(model)
    report = report or rmsnorm.patch(wrapped)
    logits, gradients = _run(wrapped, rank)
    expected, expected_gradients = _run(fused, rank)
    for gradient in expected_gradients:
        dist.all_reduce(gradient)
    norms = [module for module in wrapped.modules() if isinstance(module, LlamaRMSNorm)]
    wrappers = [isinstance(norm, FSDPModule) for norm in norms]
    rmsnorm.unpatch(wrapped)
    return {
        "all norms are replaced": len(report.replaced) == len(norms) == 5,
        "logits have the bits of the fused model": same_bits(logits, expected),
        "gradients are the mean of both processes'": all(
            same_bits(gradient, total / 2)
            for gradient, total in zip(gradients, expected_gradients, strict=True)
        ),
        "unpatch gives back the bits of the own norms": same_bits(
            _run(wrapped, rank)[0], _run(own, rank)[0]
        ),
        "the wrapper's own classes stay": wrappers
        == [isinstance(norm, FSDPModule) for norm in norms]
        and sum(wrappers) == (4 if wrap is _shard else 0),
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
