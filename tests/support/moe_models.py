"""Tiny models with experts in one parameter, as transformers builds them, with random weights."""

from collections.abc import Callable

import torch
import transformers
from transformers import PreTrainedModel

VOCABULARY = 48
EXPERTS = ("experts.gate_up_proj", "experts.down_proj")

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "num_experts_per_tok": 2,
    "initializer_range": 0.2,
}


def _mixtral() -> PreTrainedModel:
    config = transformers.MixtralConfig(**_SIZES, intermediate_size=24, num_local_experts=4)
    return transformers.MixtralForCausalLM(config)


def _qwen3_moe() -> PreTrainedModel:
    config = transformers.Qwen3MoeConfig(
        **_SIZES, intermediate_size=24, moe_intermediate_size=12, num_experts=4
    )
    return transformers.Qwen3MoeForCausalLM(config)


def _olmoe() -> PreTrainedModel:
    config = transformers.OlmoeConfig(**_SIZES, intermediate_size=12, num_experts=4)
    return transformers.OlmoeForCausalLM(config)


def _gpt_oss() -> PreTrainedModel:
    config = transformers.GptOssConfig(
        **_SIZES,
        intermediate_size=24,
        num_local_experts=4,
        sliding_window=8,
        layer_types=["full_attention"] * 2,
    )
    return transformers.GptOssForCausalLM(config)


MAKERS: dict[str, Callable[[], PreTrainedModel]] = {
    "mixtral": _mixtral,
    "qwen3_moe": _qwen3_moe,
    "olmoe": _olmoe,
    "gpt_oss": _gpt_oss,
}


def moe(name: str = "mixtral", *, seed: int = 0, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """Return the same tiny model of this name for the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = MAKERS[name]().to(dtype).eval()
    if dtype == torch.float64:  # grouped products have no kernel for it
        model.set_experts_implementation("eager")
    return model


def words(rows: int = 3, seed: int = 1) -> torch.Tensor:
    """Return tokens [rows, 10]."""
    return torch.randint(0, VOCABULARY, (rows, 10), generator=torch.Generator().manual_seed(seed))
