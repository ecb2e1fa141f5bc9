"""Inputs for any model of transformers, and its outputs for them."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from architectures.config import FIRST_SPECIAL_TOKEN
from architectures.models import NotBuilt, summary

Inputs = dict[str, Any]

_BATCH, _TOKENS, _GRID, _SAMPLES = 2, 20, 4, 5760
# The arguments that say what a model works on; the first set that it takes and runs with is used.
_WAYS = (
    ("input_ids",),
    ("hidden_states",),
    ("pixel_values",),
    ("input_features",),
    ("input_values",),
    ("flattened_patches",),
    ("past_values",),
    ("input_ids", "pixel_values"),
    ("input_ids", "input_features"),
    ("input_ids", "input_values"),
    ("input_ids", "bbox"),
    ("input_ids", "bbox", "pixel_values"),
    ("input_ids", "protein_input_ids"),
    ("input_ids", "pixel_values", "image_attention_mask"),
    ("input_ids", "pixel_values", "pixel_attention_mask"),
    (),
)


def inputs_of(model: PreTrainedModel) -> Inputs:
    """What to call the model with.

    Raises:
        NotBuilt: none of the ways to call it runs; with the reason of the first.
    """
    parameters = inspect.signature(model.forward).parameters
    required = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty and parameter.kind != parameter.VAR_KEYWORD
    ]
    also = [  # without a cache, layers that share keys run too
        name for name in ("decoder_input_ids", "use_cache", "return_loss") if name in parameters
    ]
    reasons = [f"its forward takes {', '.join(parameters)}"]
    for way in _WAYS:
        names = dict.fromkeys((*way, *required, *also))
        if not set(way) <= set(parameters) or not set(names) <= set(_ARGUMENTS):
            continue
        for made in itertools.product(*(_ARGUMENTS[name] for name in names)):
            try:
                inputs = {name: make(model) for name, make in zip(names, made, strict=True)}
                with torch.no_grad():
                    if outputs_of(model, inputs):
                        return inputs
            except Exception as error:
                reasons.append(summary(error))
    raise NotBuilt(reasons[1] if len(reasons) > 1 else reasons[0])


def outputs_of(model: PreTrainedModel, inputs: Inputs) -> list[Tensor]:
    """All floating-point tensors that a forward returns; its random numbers are always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        output = model(**{name: _cast(value, model.dtype) for name, value in inputs.items()})
    return list(_floating_point(output))


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _floating_point(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, dict):
        yield from itertools.chain.from_iterable(map(_floating_point, output.values()))
    elif isinstance(output, (tuple, list)):
        yield from itertools.chain.from_iterable(map(_floating_point, output))


def _of(model: PreTrainedModel, *names: str, default: int) -> int:
    """The first of the names that the config or one of its parts has."""
    parts = [getattr(model.config, name, None) for name in model.config.sub_configs]
    for name, config in itertools.product(names, (model.config, *parts)):
        value = getattr(config, name, None)
        if value is not None:
            return value[0] if isinstance(value, (list, tuple)) else value
    return default


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def _integers(low: int, high: int, *shape: int) -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(0))


def _tokens(model: PreTrainedModel) -> Tensor:
    return _integers(3, FIRST_SPECIAL_TOKEN, _BATCH, _TOKENS)


def _codes(model: PreTrainedModel) -> Tensor:
    channels = _of(model, "num_codebooks", "num_channels", "n_codebooks", default=8)
    return _integers(3, 60, _BATCH, _TOKENS, channels)


def _codes_and_text(model: PreTrainedModel) -> Tensor:
    return _integers(3, 60, _BATCH, _TOKENS, 1 + _of(model, "num_codebooks", default=8))


def _rows_of_codes(model: PreTrainedModel) -> Tensor:
    return _integers(3, 60, _BATCH * _of(model, "num_codebooks", default=4), _TOKENS)


def _channels(model: PreTrainedModel) -> int:
    return _of(model, "num_channels", "in_channels", "in_chans", default=3)


def _images(model: PreTrainedModel) -> Tensor:
    size = _of(model, "image_size", default=32)
    return _random(_BATCH, _channels(model), size, size)


def _large_images(model: PreTrainedModel) -> Tensor:
    return _random(_BATCH, _channels(model), 128, 128)


def _image_lists(model: PreTrainedModel) -> Tensor:
    return _images(model).unsqueeze(1)


def _patches(model: PreTrainedModel) -> Tensor:
    """[rows, channels × frames × height × width], as models with a grid of patches take them."""
    frames = _of(model, "temporal_patch_size", "patch_temporal", default=1)
    size = _of(model, "patch_size", default=8)
    return _random(_BATCH * _GRID**2, _channels(model) * frames * size**2)


def _rows_of_patches(model: PreTrainedModel) -> Tensor:
    return _patches(model).view(_BATCH, _GRID**2, -1)


def _patches_as_images(model: PreTrainedModel) -> Tensor:
    size = _of(model, "patch_size", default=8)
    return _random(_BATCH * _GRID**2, _channels(model), size, size)


def _placed_patches(model: PreTrainedModel) -> Tensor:
    """Each patch begins with its row and column."""
    places = torch.cartesian_prod(torch.arange(1.0, 5), torch.arange(1.0, 5)).expand(_BATCH, -1, 2)
    return torch.cat([places, _rows_of_patches(model)], -1)


def _frames(model: PreTrainedModel, count: int) -> tuple[int, int]:
    bins = _of(
        model, "num_mel_bins", "n_mels", "input_feat_size", "input_dim", "feature_size", default=80
    )
    return bins, 2 * _of(model, "max_source_positions", default=count)


def _mel_first(model: PreTrainedModel) -> Tensor:
    return _random(_BATCH, *_frames(model, 32))


def _mel_last(model: PreTrainedModel) -> Tensor:
    return _random(_BATCH, *_frames(model, 32)[::-1])


def _mel_for_tokens(model: PreTrainedModel) -> Tensor:
    """8 frames for each token, of which a model in real time takes one at a time."""
    return _random(_BATCH, _frames(model, 32)[0], 8 * _TOKENS)


def _mel_of_128(model: PreTrainedModel) -> Tensor:
    return _random(_BATCH, 64, 128)


def _mel_beside_samples(model: PreTrainedModel) -> Tensor:
    return _random(_BATCH, _SAMPLES // 320, 128)


def _grid(*sizes: int) -> Callable[[PreTrainedModel], Tensor]:
    return lambda model: torch.tensor([sizes] * _BATCH)


def _positions(model: PreTrainedModel) -> Tensor:
    return torch.cartesian_prod(torch.arange(_GRID), torch.arange(_GRID)).expand(_BATCH, -1, 2)


def _boxes(model: PreTrainedModel) -> Tensor:
    return (torch.arange(4) + torch.tensor([0, 0, 9, 9])).expand(_BATCH, _TOKENS, 4) / 32


def _embeddings(model: PreTrainedModel) -> Tensor:
    return _random(_BATCH, 8, _of(model, "hidden_size", default=128))


def _of_layers(model: PreTrainedModel) -> Tensor:
    layers = len(getattr(model.config, "target_layer_ids", None) or [0])
    return _random(_BATCH, _TOKENS, layers * _of(model, "hidden_size", default=128))


# By argument: the things that models call so. All combinations are tried, in this order.
_ARGUMENTS: dict[str, tuple[Callable[[PreTrainedModel], Any], ...]] = {
    "input_ids": (_tokens, _codes, _codes_and_text),
    "protein_input_ids": (_tokens,),
    "decoder_input_ids": (_tokens, _codes, _rows_of_codes),
    "use_cache": (lambda model: False,),
    "return_loss": (lambda model: False,),
    "hidden_states": (
        _patches,
        _embeddings,
        lambda model: _random(_BATCH, _of(model, "hidden_size", default=128), 32),
        lambda model: _random(_BATCH, 1, 640),
    ),
    "pixel_values": (
        _images,
        _large_images,
        _image_lists,
        _patches,
        _rows_of_patches,
        _patches_as_images,
    ),
    "image_attention_mask": (lambda model: torch.ones(_BATCH, _TOKENS, 1, dtype=torch.long),),
    "pixel_attention_mask": (lambda model: torch.ones(_BATCH, 1, dtype=torch.bool),),
    "flattened_patches": (_placed_patches,),
    "grid_thw": (_grid(1, _GRID, _GRID),),
    "image_grid_thw": (_grid(1, _GRID, _GRID),),
    "pixel_position_ids": (_positions,),
    "input_features": (_mel_first, _mel_last, _mel_for_tokens, _mel_of_128, _mel_beside_samples),
    "input_values": (lambda m: _random(_BATCH, _SAMPLES), lambda m: _random(_BATCH, 1, _SAMPLES)),
    "audio_mel": (_mel_of_128, _mel_last),
    "audio_mel_mask": (lambda model: torch.zeros(_BATCH, 64, dtype=torch.bool),),
    "past_values": (lambda model: _random(_BATCH, 128),),
    "past_values_padding": (lambda model: torch.zeros(_BATCH, 128, dtype=torch.long),),
    "freq": (lambda model: torch.zeros(_BATCH, 1, dtype=torch.long),),
    "state": (lambda model: _random(_BATCH, _of(model, "max_state_dim", default=32)),),
    "bbox": (_boxes,),
    "noise_embeds": (_embeddings,),
    "context_hidden_states": (_of_layers,),
}
