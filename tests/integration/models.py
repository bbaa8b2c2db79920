"""Tiny models with random weights, and every method to put on them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import peft
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.modeling_outputs import SequenceClassifierOutput

import rankfold
from rankfold import DenseSpec, DiagonalSpec, RankfoldConfig, RelaySpec, SeededSpec
from rankfold.presets import discover

VOCABULARY = 64
_SMALL = {"r": 4, "k": 2, "dropout": 0.0}


def _preset(name: str, **options: Any) -> RankfoldConfig:
    preset = discover()[name]
    own = {key: value for key, value in _SMALL.items() if key in preset.options}
    if preset.targets is not None and options.get("target_modules") == QUERY_VALUE["target_modules"]:
        options["target_modules"] = [*QUERY_VALUE["target_modules"], *MLP]
    return rankfold.config(name, **{**own, **options})


_COMPOSITIONS: dict[str, dict[str, Any]] = {
    "relay_in_one_pool": {"down": RelaySpec(2), "share_down": "slice"},
    "both_sides_in_one_pool": {"share_down": "slice", "share_up": "slice"},
    "one_square_for_the_model": {
        "down": RelaySpec(2),
        "up": RelaySpec(2, initial="zeros"),
        "share_down": "entries",
        "share_up": "entries",
    },
    "seeded_down_relayed_up": {"down": SeededSpec(), "up": RelaySpec(2, initial="zeros")},
    "core_of_relayed_sides": {"down": RelaySpec(2), "core": DenseSpec("zeros"), "up": RelaySpec(2)},
    "diagonal_core": {"core": DiagonalSpec(), "up": DenseSpec()},
}

METHODS: dict[str, Callable[..., RankfoldConfig]] = {
    **{name: partial(_preset, name) for name in discover()},
    **{name: partial(RankfoldConfig, r=4, **fields) for name, fields in _COMPOSITIONS.items()},
}
"""Every preset, and compositions that nobody has published, as functions of further options."""

MLP = ["intermediate.dense", "output.dense"]

QUERY_VALUE: dict[str, Any] = {"target_modules": ["query", "value"], "task_type": "SEQ_CLS"}

FOLDABLE = [name for name, make in METHODS.items() if make(target_modules=[]).router is None]
"""Those that equal a change of the base weight; the others weigh heads, on linear layers only."""


def config_of(method: str, **options: Any) -> RankfoldConfig:
    """Return a configuration for `bert` that starts at random, so that it changes something at once."""
    return METHODS[method](**{**QUERY_VALUE, "init_weights": False, **options})


def _seeded(make: Callable[[], PreTrainedModel], seed: int) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make().eval()


def bert(seed: int = 0, **options: Any) -> PreTrainedModel:
    """Return the same small BERT with a classification head for the same seed; without dropout."""
    config = BertConfig(
        **{
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 48,
            "max_position_embeddings": 32,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "num_labels": 3,
            **options,
        }
    )
    return _seeded(lambda: BertForSequenceClassification(config), seed)


def gpt2() -> PreTrainedModel:
    """Return a small GPT-2, whose layers are Conv1D."""
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=32,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=0,
    )
    return _seeded(lambda: GPT2LMHeadModel(config), 0)


def t5() -> PreTrainedModel:
    """Return a small encoder-decoder."""
    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
        eos_token_id=None,
    )
    return _seeded(lambda: T5ForConditionalGeneration(config), 0)


class Picture(nn.Module):
    """An embedding and convolutions: the kinds of layer that a transformer lacks."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, 16)
        self.plain = nn.Conv2d(4, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, groups=2, stride=2)
        self.head = nn.Linear(8, 3)

    def forward(self, input_ids: Tensor) -> SequenceClassifierOutput:
        """Map ids [batch, 16] to scores [batch, 3], as transformers' models do."""
        pixels = self.tokens(input_ids).reshape(len(input_ids), 4, 8, 8)
        features = self.grouped(torch.relu(self.plain(pixels))).mean(dim=(2, 3))
        return SequenceClassifierOutput(logits=self.head(features))


def picture() -> Picture:
    """Return the same `Picture` each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Picture().eval()


PICTURE_TARGETS = ["tokens", "plain", "grouped"]


class Tied(nn.Module):
    """An embedding whose weight the last layer reads as well, as language models have it."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, 16)
        self.middle = nn.Linear(16, 16)
        self.head = nn.Linear(16, VOCABULARY, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, input_ids: Tensor) -> SequenceClassifierOutput:
        """Map ids [batch, length] to scores [batch, VOCABULARY]."""
        hidden = torch.tanh(self.middle(self.tokens(input_ids)))
        return SequenceClassifierOutput(logits=self.head(hidden.mean(dim=1)))


def tied() -> Tied:
    """Return the same `Tied` each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Tied().eval()


def ids(rows: int = 6, length: int = 16, seed: int = 1) -> Tensor:
    """Return token ids [rows, length]."""
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def adapted(config: RankfoldConfig, base: nn.Module | None = None, **options: Any) -> Any:
    """Return a model with an adapter, in evaluation mode; `bert` unless another base is given."""
    return peft.get_peft_model(bert() if base is None else base, config, **options).eval()


@torch.no_grad()
def scores(model: Any, **options: Any) -> Tensor:
    """Return the model's output for `ids()`."""
    return model(input_ids=ids(), **options).logits


def learned(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters of adapters, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if ".rankfold_" in name}


def train(model: Any, steps: int = 2, learning_rate: float = 1e-2) -> list[float]:
    """Take steps of AdamW on a fixed batch and return the losses."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=learning_rate)
    model.train()
    losses: list[float] = []
    for _ in range(steps):
        loss = model(input_ids=ids(), labels=torch.arange(6) % 3).loss + rankfold.auxiliary_loss(model)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses
