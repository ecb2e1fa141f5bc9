"""The demo's model, text and training, and what its norms cost in time and memory."""

from __future__ import annotations

import copy
import functools
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rmsnorm.bench.harness import interleaved

VOCABULARY = 256  # tokens are bytes
_LEARNING_RATE = 1e-3
_WARM_UP = 20  # steps


@dataclass(frozen=True)
class Size:
    """How much the demo does.

    Attributes:
        hidden, layers: of the model; hidden is also n of its norms.
        batch, length: sequences in a step, tokens in each; a norm has batch * length rows.
        steps: of training.
        shape: of the norm calls that are timed beside the model's own.
        repeats: of each timing.
    """

    hidden: int = 256
    layers: int = 4
    batch: int = 8
    length: int = 64
    steps: int = 50
    shape: tuple[int, int] = (4096, 4096)
    repeats: int = 9

    @property
    def rows(self) -> int:
        return self.batch * self.length


@dataclass
class Trained:
    """One model's training, step by step."""

    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def step_seconds(self) -> float:
        """The median step; the first ones allocate and warm up."""
        return statistics.median(self.seconds[len(self.seconds) // 5 :])


@dataclass(frozen=True)
class NormCall:
    """One call of a norm in a training step: what went in, and the gradient of what came out."""

    x: Tensor
    dy: Tensor


def batches(size: Size) -> Tensor:
    """Windows of the language reference that every Python ships: [steps, batch, length], bytes."""
    from pydoc_data import topics

    text = bytearray("\n".join(topics.topics.values()).encode())
    generator = torch.Generator().manual_seed(1)
    starts = torch.randint(
        len(text) - size.length, (size.steps, size.batch, 1), generator=generator
    )
    return torch.frombuffer(text, dtype=torch.uint8).long()[starts + torch.arange(size.length)]


def llama(size: Size, dtype: torch.dtype) -> torch.nn.Module:
    """Hugging Face's LlamaForCausalLM; its random weights have the same seed in every dtype."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=size.hidden,
        intermediate_size=size.hidden * 11 // 4,
        num_hidden_layers=size.layers,
        num_attention_heads=4,
        max_position_embeddings=size.length,
        use_cache=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: torch.nn.Module = LlamaForCausalLM(config)
    return model.to(dtype)


def norms(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The norms by name; the same names before and after patch."""
    return {name: module for name, module in model.named_modules() if name.endswith("norm")}


def gamma(norm: torch.nn.Module) -> torch.nn.Parameter:
    """The parameter of one of norms()."""
    (weight,) = norm.parameters()
    return weight


def nudged(model: torch.nn.Module) -> torch.nn.Module:
    """A copy in which every gamma is one unit in the last place away, up or down at random."""
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for norm in norms(model).values():
            weight = gamma(norm)
            up = torch.randint(2, weight.shape, generator=generator).bool()
            far = torch.full_like(weight, torch.inf)
            weight.copy_(torch.nextafter(weight, torch.where(up, far, -far)))
    return model


def optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
    """A larger eps than usual, for else tiny gradients of rounding noise become full steps."""
    return torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), eps=1e-5, weight_decay=0.0)


def warm_up(optimizer: torch.optim.Optimizer, step: int) -> None:
    """Set the learning rate of a step, counted from 0."""
    for group in optimizer.param_groups:
        group["lr"] = _LEARNING_RATE * min(1.0, (step + 1) / _WARM_UP)


def train(
    models: dict[str, torch.nn.Module], steps: Tensor, advance: Callable[[], object]
) -> dict[str, Trained]:
    """Train the models on the same batches; they take turns, so that step times compare fairly."""
    optimizers = {name: optimizer(model) for name, model in models.items()}
    trained = {name: Trained() for name in models}
    for step, tokens in enumerate(steps):
        for name, model in models.items():
            start = time.perf_counter()
            warm_up(optimizers[name], step)
            loss = model(input_ids=tokens, labels=tokens).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizers[name].step()
            optimizers[name].zero_grad()
            trained[name].seconds.append(time.perf_counter() - start)
            trained[name].losses.append(loss.item())
        advance()
    return trained


def norm_calls(model: torch.nn.Module, tokens: Tensor) -> dict[str, NormCall]:
    """What the norms of a model meet in one training step."""
    xs: dict[str, Tensor] = {}
    dys: dict[str, Tensor] = {}

    def record(name: str, _: torch.nn.Module, inputs: tuple[Tensor], y: Tensor) -> None:
        xs[name] = inputs[0].detach().clone()
        y.register_hook(functools.partial(dys.__setitem__, name))

    handles = [
        norm.register_forward_hook(functools.partial(record, name))
        for name, norm in norms(model).items()
    ]
    model(input_ids=tokens, labels=tokens).loss.backward()
    model.zero_grad()
    for handle in handles:
        handle.remove()
    return {name: NormCall(x, dys[name].clone()) for name, x in xs.items()}


def norm_seconds(
    models: dict[str, torch.nn.Module], calls: dict[str, NormCall], repeats: int
) -> dict[str, float]:
    """Forward and backward of every norm of a step, by themselves: median seconds by model."""
    xs = {name: call.x.clone().requires_grad_() for name, call in calls.items()}

    def run(model: torch.nn.Module) -> None:
        for name, norm in norms(model).items():
            y = norm(xs[name])
            torch.autograd.grad(y, (xs[name], gamma(norm)), calls[name].dy)

    return interleaved(
        {name: functools.partial(run, model) for name, model in models.items()}, repeats
    )


def norm_bytes(model: torch.nn.Module, calls: dict[str, NormCall]) -> int:
    """Bytes that all norms together keep for their backward passes, without parameters."""
    total = 0
    for name, norm in norms(model).items():
        x = calls[name].x.clone().requires_grad_()
        with _kept(model) as storages:
            y = norm(x)
        total += sum(storages.values())
        del y
    return total


def step_bytes(model: torch.nn.Module, tokens: Tensor) -> int:
    """Bytes that a forward pass of the model keeps for its backward pass, without parameters."""
    with _kept(model) as storages:
        loss = model(input_ids=tokens, labels=tokens).loss
    del loss
    return sum(storages.values())


def operators_run(model: torch.nn.Module, tokens: Tensor) -> Counter[str]:
    """How often a forward pass runs each of PyTorch's operators and ours, by qualified name."""

    class Count(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.calls: Counter[str] = Counter()

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):  # type: ignore[no-untyped-def]
            self.calls[func.name()] += 1
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Count() as count:
        model(input_ids=tokens)
    return count.calls


@contextmanager
def _kept(model: torch.nn.Module) -> Iterator[dict[int, int]]:
    """Sizes of the storages that autograd saves inside the block, each once, by address.

    What is saved stays alive, and its address its own, until the caller drops the result.
    """
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield storages
