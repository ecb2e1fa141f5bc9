"""A tiny model of any model type of transformers."""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Iterator

import torch
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import model_type_to_module_name

from architectures.config import tiny_config

_TASKS = (  # the model with a head for tokens is preferred: its logits are what a user sees
    modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
    modeling_auto.MODEL_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_PRETRAINING_MAPPING_NAMES,
)


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
                yield getattr(module, name, None) or getattr(
                    importlib.import_module("transformers"), name
                )


def tiny_model(model_type: str) -> PreTrainedModel:
    """In eval mode, float32, with gammas that differ from each other; always the same."""
    reasons = []
    for model_class in model_classes(model_type):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(zlib.crc32(model_type.encode()))
            try:
                config = tiny_config(model_type)
                if not isinstance(config, model_class.config_class):
                    config = config.get_text_config()
                if not isinstance(config, model_class.config_class):
                    raise TypeError(f"{model_class.__name__} takes another config")
                model = model_class._from_config(config, attn_implementation="eager")
            except Exception as error:
                reasons.append(first_line(error))
                continue
            for parameter in model.parameters():
                if parameter.dim() < 2 or not parameter.any():
                    parameter.data += 0.1 * torch.randn_like(parameter)
            return model.float().eval()
    raise NotBuilt(reasons[0] if reasons else "no class of a model")


def first_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split("\n")[0].split())
