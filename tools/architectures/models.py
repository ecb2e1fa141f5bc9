"""A tiny model of any model type of transformers."""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import (
    CONFIG_MAPPING,
    CONFIG_MAPPING_NAMES,
    model_type_to_module_name,
)

from architectures.config import tiny_config

_TASKS = (  # the model with a head for tokens is preferred: its logits are what a user sees
    modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
    modeling_auto.MODEL_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_PRETRAINING_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_TEXT_TO_WAVEFORM_MAPPING_NAMES,
)


_NORM = re.compile(r"RMSNorm|RmsNorm|rsqrt|sqrt\(torch\.mean")

_FOLDER_NORM = re.compile(r"^class \w*Norm\w*\((?s:.{1,2000}?)rsqrt", re.MULTILINE)


class NotBuilt(Exception):
    """No model of this type can be made or run here; the text is the reason."""


def model_classes(model_type: str) -> Iterator[type[PreTrainedModel]]:
    """The classes that the Auto classes make of a model type, best first."""
    module_name = model_type_to_module_name(model_type)
    module = importlib.import_module(f"transformers.models.{module_name}")
    seen = set()
    for task in _TASKS:
        names = task.get(model_type, ())
        for name in (names,) if isinstance(names, str) else names:
            if name not in seen:
                seen.add(name)
                found = getattr(module, name, None) or getattr(transformers, name, None)
                if found is not None:
                    yield found


def tiny_model(model_type: str) -> PreTrainedModel:
    """In eval mode, float32, with gammas that differ from each other; always the same."""
    reasons = []
    for model_class in model_classes(model_type):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(zlib.crc32(model_type.encode()))
            try:
                model = _built(model_class, tiny_config(model_type))
            except Exception as error:
                reasons.append(summary(error))
                continue
            for parameter in model.parameters():
                if parameter.dim() < 2 or not parameter.any():
                    parameter.data += 0.1 * torch.randn_like(parameter)
            return model.float().eval()
    raise NotBuilt(reasons[0] if reasons else "no class of a model")


def _built(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    try:
        return model_class._from_config(config, attn_implementation="eager")
    except AttributeError as error:
        with contextlib.suppress(Exception):  # it may be a model of the text alone
            return model_class._from_config(config.get_text_config(), attn_implementation="eager")
        raise error


def summary(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def with_model() -> list[str]:
    """The model types that an Auto class makes a model of."""
    return [name for name in CONFIG_MAPPING_NAMES if any(name in task for task in _TASKS)]


def with_norm_class() -> list[str]:
    """One model type for each folder of transformers that defines a class of norm with an rsqrt."""
    first: dict[Path, str] = {}
    for model_type in sorted(with_model()):
        if _FOLDER_NORM.search("".join(path.read_text() for path in _sources(model_type))):
            first.setdefault(_folder(model_type), model_type)
    return sorted(first.values())


def mentions_norm(model_type: str) -> bool:
    """Whether the source of a model, or of a part that its config names, has an RMSNorm in it."""
    return _mentions_norm(model_type, frozenset())


def _folder(model_type: str) -> Path:
    return Path(transformers.__file__).parent / "models" / model_type_to_module_name(model_type)


def _sources(model_type: str) -> list[Path]:
    return sorted(_folder(model_type).glob("modeling_*.py"))


def _mentions_norm(model_type: str, seen: frozenset[str]) -> bool:
    if model_type in seen:
        return False
    if any(_NORM.search(path.read_text()) for path in _sources(model_type)):
        return True
    for model_class in model_classes(model_type):  # perhaps one of another folder
        module = sys.modules.get(model_class.__module__)
        if module is not None and _NORM.search(Path(module.__file__ or "").read_text()):
            return True
    parts = CONFIG_MAPPING[model_type].sub_configs_defaults.values()
    return any(
        part.model_type in CONFIG_MAPPING and _mentions_norm(part.model_type, seen | {model_type})
        for part in parts
    )
