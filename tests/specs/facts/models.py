"""The papers' base models on the meta device: shapes without weights, nothing downloaded."""

from functools import cache
from typing import Any

import peft
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DebertaConfig,
    DebertaV2Config,
    LlamaConfig,
    OPTConfig,
    PretrainedConfig,
    RobertaConfig,
)

import rankfold

ROBERTA = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
DEBERTA = {
    "max_position_embeddings": 512,
    "relative_attention": True,
    "position_biased_input": False,
    "type_vocab_size": 0,
}

CONFIGS: dict[str, PretrainedConfig] = {
    "roberta-base": RobertaConfig(**ROBERTA, num_labels=2),
    "roberta-large": RobertaConfig(**ROBERTA, **LARGE, num_labels=2),
    "roberta-large-mnli": RobertaConfig(**ROBERTA, **LARGE, num_labels=3),
    "deberta-base": DebertaConfig(
        **DEBERTA, vocab_size=50265, pos_att_type=["c2p", "p2c"], pooler_hidden_size=768, num_labels=2
    ),
    "deberta-v3-base": DebertaV2Config(
        **DEBERTA,
        vocab_size=128100,
        pos_att_type=["p2c", "c2p"],
        position_buckets=256,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
        pooler_hidden_size=768,
        num_labels=2,
    ),
    "opt-125m": OPTConfig(num_labels=2),
    "llama3-8b": LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    ),
}

ENCODER_LINEARS = {
    "roberta-base": r".*encoder\.layer\..*\.(query|key|value|dense)",
    "roberta-large-mnli": r".*encoder\.layer\..*\.(query|key|value|dense)",
    "deberta-base": r".*encoder\.layer\..*\.(in_proj|pos_proj|pos_q_proj|dense)",
    "opt-125m": r".*decoder\.layers\..*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)",
}
"""What "all linear layers" means in TLoRA+: those of the blocks, not heads, poolers or embeddings."""


def base_model(name: str) -> nn.Module:
    """Return a model without weights."""
    kind = AutoModelForCausalLM if name == "llama3-8b" else AutoModelForSequenceClassification
    with torch.device("meta"):
        return kind.from_config(CONFIGS[name])


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
