"""The layers of MiniLM with random weights: real sizes for tests of what files take."""

import pytest
import torch
from transformers import BertConfig, BertModel

from rankfold.presets import discover

TARGET_SETS = pytest.mark.parametrize(
    "targets", [["query", "value"], "all-linear"], ids=["query_value", "all_linear"]
)


@pytest.fixture(scope="module")
def minilm():
    """The layers of MiniLM, with a small vocabulary."""
    sizes = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    torch.manual_seed(0)
    return BertModel(BertConfig(**sizes, vocab_size=99))


def targets_for(method, targets):
    """Return the layers, with those of the MLPs where a method has its heads only there."""
    if targets != "all-linear" and discover()[method].spec().heads_in == "mlp":
        return [*targets, "intermediate.dense", "output.dense"]
    return targets
