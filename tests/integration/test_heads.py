"""Heads that differ from block to block, in a model with two stacks of blocks."""

from transformers import T5Config, T5ForConditionalGeneration

from rankfold.adapter.layout import block_of
from rankfold.adapter.module import adapters_in
from tests.integration.models import adapted, config_of

SIZES = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4, "decoder_start_token_id": 0}


def test_numbers_of_heads_are_spread_over_each_stack_of_blocks_for_itself():
    base = T5ForConditionalGeneration(T5Config(**SIZES, num_layers=4, num_decoder_layers=2))
    config = config_of("mola", heads=(2, 3), target_modules=["q"], task_type="SEQ_2_SEQ_LM")
    spread = {"encoder": [], "decoder": []}
    for path, _, adapter in adapters_in(adapted(config, base)):
        if "EncDecAttention" not in path:
            spread[block_of(path)[-3]].append(adapter.router.heads)
    assert spread == {"encoder": [2, 2, 3, 3], "decoder": [2, 3]}
