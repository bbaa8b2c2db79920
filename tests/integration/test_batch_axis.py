"""Rows with adapters of their own are found in the axis where a model has them, or refused."""

import peft
import pytest
import torch
from torch import nn
from transformers import LongformerConfig, LongformerModel, XLNetConfig, XLNetModel

import rankfold
from tests.support.tolerance import assert_close

WIDTH = 8
NAMES = ["first", "__base__", "second", "first"]


class Turned(nn.Module):
    """Takes rows first and turns them around for torch's transformer."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, WIDTH)
        self.block = nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout=0.0, batch_first=False)

    def forward(self, ids):
        return self.block(self.embedding(ids).transpose(0, 1)).transpose(0, 1)


class Positions(nn.Module):
    """Looks positions up once for all rows."""

    def __init__(self):
        super().__init__()
        self.positions, self.proj = nn.Embedding(20, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return self.proj(x + self.positions(torch.arange(x.shape[1])[None]))


def hidden(output):
    return output if isinstance(output, torch.Tensor) else output.last_hidden_state


def xlnet():
    return XLNetModel(XLNetConfig(vocab_size=20, d_model=WIDTH, n_layer=1, n_head=2, d_inner=16))


def longformer():
    config = LongformerConfig(
        vocab_size=20,
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        attention_window=4,
        max_position_embeddings=30,
        pad_token_id=0,
    )
    return LongformerModel(config)


def adapted(base, targets):
    torch.manual_seed(0)
    config = {"target_modules": targets, "init_weights": False, "alpha": 32.0, "r": 2}
    config["target_parameters"] = []
    model = peft.get_peft_model(base, rankfold.config("lora", **config), "first")
    model.add_adapter("second", rankfold.config("lora", **{**config, "seed": 5}))
    return model.eval()


def check_rows(model, inputs, axis=0):
    """Each row of a batch of four equals that of a pass with its adapter alone."""
    with torch.no_grad():
        together = hidden(model(inputs, adapter_names=NAMES))
        for row, name in enumerate(NAMES):
            if name == "__base__":
                with model.disable_adapter():
                    alone = hidden(model(inputs))
            else:
                model.set_adapter(name)
                alone = hidden(model(inputs))
            assert_close(together.select(axis, row), alone.select(axis, row))
    model.set_adapter("first")


@pytest.mark.parametrize("lengths", [[4, 6], [6, 4]], ids=["equal first", "equal later"])
@pytest.mark.parametrize(
    ("build", "targets"),
    [
        (Turned, ["embedding", "linear1", "linear2"]),
        (xlnet, ["layer_1", "layer_2"]),
        (longformer, ["query", "key", "dense"]),
    ],
)
def test_rows_are_found_where_a_model_turns_batch_and_tokens_around(build, targets, lengths):
    model = adapted(build(), targets)
    for length in lengths:
        check_rows(model, torch.randint(1, 20, (4, length)))


@pytest.mark.parametrize("length", [4, 6])
def test_rows_are_found_where_the_model_is_given_tokens_first(length):
    block = nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout=0.0, batch_first=False)
    model = adapted(nn.TransformerEncoder(block, 1, enable_nested_tensor=False), ["linear1", "linear2"])
    check_rows(model, torch.randn(length, 4, WIDTH), axis=1)


def test_layer_that_all_rows_share_is_refused_by_name():
    with pytest.raises(ValueError, match="positions"):
        adapted(Positions(), ["positions", "proj"])(torch.randn(4, 4, WIDTH), adapter_names=NAMES)


def test_rows_that_nothing_tells_apart_from_tokens_are_refused_by_name():
    class Picky(nn.Module):
        def __init__(self):
            super().__init__()
            self.proj = nn.Linear(WIDTH, WIDTH)

        def forward(self, x):
            if len(x) < 3:
                raise RuntimeError("too few rows")
            return self.proj(x)

    model = adapted(Picky(), ["proj"])
    check_rows(model, torch.randn(4, 5, WIDTH))
    with pytest.raises(ValueError, match=r"'proj' has as many tokens as rows"):
        model(torch.randn(4, 4, WIDTH), adapter_names=NAMES)
