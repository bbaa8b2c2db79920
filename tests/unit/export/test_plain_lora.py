"""What PEFT reads of a folded adapter: ranks by layer, scalings of 1, kernels laid out by group."""

import re

import pytest
import torch

from rankfold.adapter.geometry import Conv2d, Embedding, Linear
from rankfold.errors import AdapterFileError, NotExactError
from rankfold.export.fold import LowRankUpdate
from rankfold.export.formats.plain_lora import lora_config, lora_tensors, read_lora_tensors
from rankfold.export.layers import FoldedAdapter


def folded(geometry, rank):
    generator = torch.Generator().manual_seed(rank)
    down, up = (
        torch.randn(*size, generator=generator).double()
        for size in ((rank, geometry.in_features), (geometry.out_features, rank))
    )
    return LowRankUpdate(down, up, geometry)


def convolution(**changes):
    fields = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1, "padding_mode": "zeros"}
    return Conv2d(4, 6, (2, 3), pad_widths=(), **{**fields, **changes})


def config_of(updates):
    return lora_config(FoldedAdapter(updates, updates, "base", "SEQ_CLS"))


LAYERS = {
    "block.0.query": folded(Linear(5, 7), 3),
    "block.0.c_proj": folded(Linear(7, 5, transposed=True), 4),
    "tokens": folded(Embedding(9, 5), 3),
    "picture": folded(convolution(), 3),
    "grouped": folded(convolution(groups=2), 2),
}


def test_layers_of_a_file_are_those_that_were_written():
    tensors = lora_tensors(LAYERS, torch.float64)
    read = read_lora_tensors(tensors, {name: each.geometry for name, each in LAYERS.items()})
    for name, each in LAYERS.items():
        assert torch.equal(read[name].down, each.down)
        assert torch.equal(read[name].up, each.up)


def test_largest_rank_is_r_and_others_are_in_both_patterns():
    config = config_of(LAYERS)
    assert config["r"] == config["lora_alpha"] == 4
    assert (
        config["rank_pattern"] == config["alpha_pattern"] == {"block.0.query": 3, "tokens": 3, "picture": 3}
    )
    assert config["modules_to_save"] is None


def test_targets_are_listed_unless_a_name_may_be_the_end_of_another():
    blocks = {name: each for name, each in LAYERS.items() if name.startswith("block")}
    assert config_of(blocks)["target_modules"] == sorted(blocks)
    pattern = config_of(LAYERS)["target_modules"]
    assert all(re.fullmatch(pattern, name) for name in LAYERS)
    assert not any(re.fullmatch(pattern, name) for name in ("deep.tokens", "tokens_2", "block_0.query"))


def test_pattern_of_a_name_that_others_end_with_is_anchored():
    config = config_of({"query": LAYERS["tokens"], "block.query": LAYERS["block.0.c_proj"]})
    assert config["rank_pattern"] == {"^query": 3}


@pytest.mark.parametrize("changes", [{"dilation": (2, 1)}, {"padding_mode": "circular"}], ids=str)
def test_convolution_that_peft_computes_otherwise_is_refused(changes):
    with pytest.raises(NotExactError, match=r"leaves out the .* --to merged"):
        lora_tensors({"picture": folded(convolution(**changes), 3)}, torch.float32)


def test_layers_that_share_a_factor_do_not_share_memory_in_a_file():
    one = LAYERS["block.0.query"]
    tensors = lora_tensors({"a": one, "b": one}, torch.float64)
    assert len({tensor.data_ptr() for tensor in tensors.values()}) == 4


@pytest.mark.parametrize(
    "spoil", [dict.clear, lambda tensors: tensors.update({k: t[:0] for k, t in tensors.items()})]
)
def test_file_without_a_layer_is_refused(spoil):
    layers = {"picture": LAYERS["picture"]}
    tensors = lora_tensors(layers, torch.float32)
    spoil(tensors)
    with pytest.raises(AdapterFileError, match="export the adapter again"):
        read_lora_tensors(tensors, {name: each.geometry for name, each in layers.items()})
