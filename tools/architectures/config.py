"""A tiny config for any config class of transformers, by rules over the names of its fields."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from pathlib import Path
from typing import Any

import tomllib
from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

FOLDER = Path(__file__).parent
SIZES = tomllib.loads((FOLDER / "sizes.toml").read_text())
OVERRIDES: dict[str, dict[str, Any]] = {
    model_type: override["set"]
    for override in tomllib.loads((FOLDER / "overrides.toml").read_text())["override"]
    for model_type in override["types"]
}
HEAD_DIM = 32  # as in sizes.toml
_DIFFERENT_LAYERS = re.compile(  # fields that tell layers apart; where all are alike, two will do
    "layer_types|block_types?|dense_replace|period|pattern|interval|every|layer_freq|sparse_step"
    "|layers_enum|dense_layers|mlp_only|kv_shared|window_layers|layer_ids|layer_ind|_per_layer"
)
FIRST_SPECIAL_TOKEN = 100  # inputs use smaller ones
_RULES = [(re.compile(rule["names"]), rule["value"]) for rule in SIZES["rule"]]


def tiny_config(model_type: str) -> PreTrainedConfig:
    """The config of a model type with a few layers of small widths."""
    return CONFIG_MAPPING[model_type](**_arguments(CONFIG_MAPPING[model_type], {}))


def _arguments(config_class: type[PreTrainedConfig], tokens: dict[str, int]) -> dict[str, Any]:
    """What to make a tiny config of the class with; tokens: ids of the special tokens so far."""
    default = {field.name: _default(field) for field in dataclasses.fields(config_class)}
    overrides = OVERRIDES.get(config_class.model_type, {})
    arguments: dict[str, Any] = {}
    for name, value in default.items():
        if name.startswith("eos_token") or re.search("_token_(id|index)$", name):
            if isinstance(value, int) and value >= FIRST_SPECIAL_TOKEN:
                arguments[name] = tokens.setdefault(name, FIRST_SPECIAL_TOKEN + len(tokens))
        elif isinstance(value, float) and ("dropout" in name or "drop_rate" in name):
            arguments[name] = 0.0
        elif isinstance(value, int):
            arguments[name] = _tiny(name, value)
    heads = next((k for k in ("num_attention_heads", "num_heads", "n_heads") if k in default), None)
    for name in ("num_key_value_heads", "num_kv_heads"):
        if heads and default.get(name) is not None and default[name] == default[heads]:
            arguments[name] = arguments[heads]  # attention has as many of both
    for key, spec in config_class.sub_configs_defaults.items():
        if default.get(key) is None and spec.optional:
            continue
        sub_class = spec.config_class
        if sub_class is None or "AutoConfig" in sub_class.__name__:
            sub_class = CONFIG_MAPPING[spec.model_type]
        if spec.init_kwargs.get("model_type"):
            sub_class = CONFIG_MAPPING[spec.init_kwargs["model_type"]]
        given = {name: _tiny(name, value) for name, value in spec.init_kwargs.items()}
        inner = {
            k.removeprefix(f"{key}."): v for k, v in overrides.items() if k.startswith(f"{key}.")
        }
        arguments[key] = sub_class(**{**given, **_arguments(sub_class, tokens), **inner})
    if "head_dim" in default and default["head_dim"] is None:
        arguments["head_dim"] = HEAD_DIM
    if "mrope_section" in getattr(config_class, "ignore_keys_at_rope_validation", ()):
        arguments["rope_parameters"] = _rope(config_class)
    if not any(map(_DIFFERENT_LAYERS.search, default)):
        arguments |= {name: 2 for name in ("num_hidden_layers", "n_layer") if name in arguments}
    layers = arguments.get("num_hidden_layers")
    for name, value in default.items():
        is_list = isinstance(value, (list, tuple)) and re.search("block_type|_types$", name)
        if is_list and layers and len(value) > layers:
            arguments[name] = _cut(value, layers)
    arguments.update({name: value for name, value in overrides.items() if "." not in name})
    return arguments


def _default(field: dataclasses.Field) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None


def _rope(config_class: type[PreTrainedConfig]) -> dict[str, Any]:
    """The default parameters, with rotations in time, height and width that fill a head."""
    with contextlib.suppress(Exception):
        default = config_class().rope_parameters
    rope = {"rope_type": "default", "rope_theta": 1e4, **(default or {})}
    half = int(HEAD_DIM * rope.get("partial_rotary_factor", 1.0)) // 2
    rope["mrope_section"] = [half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8]
    return rope


def _tiny(name: str, value: Any) -> Any:
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    if name in ("num_channels", "in_channels", "audio_channels", "num_mel_bins"):
        return value
    for pattern, tiny in _RULES:
        if pattern.search(name):
            return min(value, tiny)
    return value


def _cut(kinds: Any, length: int) -> list[Any]:
    """`length` of the entries, in order, with one of each kind if they fit."""
    first = [i for i, kind in enumerate(kinds) if kind not in kinds[:i]][:length]
    others = [i for i in range(len(kinds)) if i not in first]
    return [kinds[i] for i in sorted(first + others[: length - len(first)])]
