"""Which adapters are a layer: those below the first number of a path, in the order of the model."""

import pytest

from rankfold.adapter.layout import block_of
from rankfold.train.reducer.blocks import find_blocks, zero_factors
from tests.integration.models import adapted, config_of, gpt2, t5


@pytest.mark.parametrize(
    ("path", "block"),
    [
        ("encoder.layer.3.attention.query", ("encoder", "layer", "3")),
        ("h.11.attn.c_attn", ("h", "11")),
        ("down_blocks.1.attentions.0.to_q", ("down_blocks", "1")),
        ("layer1.0.conv2", ("layer1", "0")),
        ("embeddings.word_embeddings", ()),
        ("layer10.conv", ()),
    ],
)
def test_a_block_ends_at_the_first_number_that_is_a_whole_part(path, block):
    assert block_of(path) == block


def test_blocks_of_an_encoder_and_a_decoder_are_told_apart():
    model = adapted(config_of("lora", target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM"), t5())
    blocks = find_blocks(model)
    assert blocks.names == ("encoder.block.0", "encoder.block.1", "decoder.block.0", "decoder.block.1")
    assert [len(adapters) for adapters in blocks.adapters] == [2, 2, 4, 4]


def test_every_adapter_is_in_one_block_or_outside():
    model = adapted(config_of("lora", target_modules=["c_attn", "wte"], task_type="CAUSAL_LM"), gpt2())
    blocks = find_blocks(model)
    assert blocks.names == ("h.0", "h.1")
    assert [len(adapters) for adapters in blocks.adapters] == [1, 1]
    assert len(blocks.outside) == 1


@pytest.mark.parametrize(("method", "zero"), [("lora", "up"), ("relayed_lora", "up"), ("tlora", "core")])
def test_the_factor_that_is_zero_is_found(method, zero):
    fresh = find_blocks(adapted(config_of(method, init_weights=True)))
    for adapters in fresh.adapters:
        for adapter in adapters:
            assert zero_factors(adapter) == [getattr(adapter, zero)]
    random = find_blocks(adapted(config_of(method)))
    assert not any(zero_factors(adapter) for adapters in random.adapters for adapter in adapters)
