"""Bytes on disk are numbers learned: at most 1 % and 200 bytes a tensor more, on a real model's layers."""

from math import prod

import peft
import pytest
import torch
from safetensors import safe_open
from transformers import BertConfig, BertModel

import rankfold
from rankfold.presets import discover

BYTES_A_NUMBER, BYTES_A_TENSOR = 4, 200


@pytest.fixture(scope="module")
def minilm():
    """The layers of MiniLM, with a small vocabulary."""
    sizes = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    torch.manual_seed(0)
    return BertModel(BertConfig(**sizes, vocab_size=99))


@pytest.mark.parametrize("targets", [["query", "value"], "all-linear"], ids=["query_value", "all_linear"])
@pytest.mark.parametrize("method", discover())
def test_file_is_as_large_as_what_was_learned(minilm, method, targets, tmp_path):
    if targets != "all-linear" and discover()[method].spec().heads_in == "mlp":
        targets = [*targets, "intermediate.dense", "output.dense"]
    model = peft.get_peft_model(minilm, rankfold.config(method, target_modules=targets))
    try:
        model.save_pretrained(tmp_path)
        count = rankfold.count_parameters(model)
    finally:
        model.unload()
    file = tmp_path / "adapter_model.safetensors"
    with safe_open(file, "pt") as stored:
        sizes = [stored.get_slice(key).get_shape() for key in stored.keys()]  # noqa: SIM118 (not a dictionary)
    assert sum(map(prod, sizes)) == count.stored == count.trainable
    assert file.stat().st_size <= 1.01 * BYTES_A_NUMBER * count.stored + BYTES_A_TENSOR * len(sizes)
