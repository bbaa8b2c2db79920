"""The papers' base models on the meta device: shapes without weights, nothing downloaded."""

from functools import cache
from typing import Any

import peft
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
)

import rankfold
from rankfold.models.architectures import read_architecture
from rankfold.models.pipelines import build_denoiser

HUB_IDS = {
    "roberta-base": "FacebookAI/roberta-base",
    "roberta-large": "FacebookAI/roberta-large",
    "roberta-large-mnli": "FacebookAI/roberta-large-mnli",
    "deberta-base": "microsoft/deberta-base",
    "deberta-v3-base": "microsoft/deberta-v3-base",
    "opt-125m": "facebook/opt-125m",
    "llama3-8b": "meta-llama/Meta-Llama-3-8B",
    "llava-1.5-7b": "llava-hf/llava-1.5-7b-hf",
    "sd-1.5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
}

_CLASSES: dict[str, Any] = {"llama3-8b": AutoModelForCausalLM, "llava-1.5-7b": AutoModelForImageTextToText}

ENCODER_LINEARS = {
    "roberta-base": r".*encoder\.layer\..*\.(query|key|value|dense)",
    "roberta-large-mnli": r".*encoder\.layer\..*\.(query|key|value|dense)",
    "deberta-base": r".*encoder\.layer\..*\.(in_proj|pos_proj|pos_q_proj|dense)",
    "opt-125m": r".*decoder\.layers\..*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)",
}
"""What "all linear layers" means in TLoRA+: those of the blocks, not heads, poolers or embeddings."""


def base_model(name: str) -> nn.Module:
    """Return a model without weights."""
    kind = _CLASSES.get(name, AutoModelForSequenceClassification)
    config = read_architecture(HUB_IDS[name])
    with torch.device("meta"):
        return build_denoiser(config) if name == "sd-1.5" else kind.from_config(config)


@cache
def total(name: str) -> int:
    """Return the parameters of the model, its head included."""
    return sum(parameter.numel() for parameter in base_model(name).parameters())


def count(name: str, method: str, *, targets: list[str] | str, **options: Any) -> rankfold.ParameterCount:
    """Return the counts of a method on a model."""
    model = base_model(name)
    config = rankfold.config(method, target_modules=targets, **options)
    peft.get_peft_model(model, config, low_cpu_mem_usage=True)
    assert all(parameter.is_meta for parameter in model.parameters())
    return rankfold.count_parameters(model)


def percent(part: int, whole: int) -> float:
    """Return the share in percent, rounded as the papers round."""
    return round(100 * part / whole, 2)
