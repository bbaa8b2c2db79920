"""Families of transformers: every targeted layer learns and merges exactly, or is named in a warning."""

import inspect
import warnings

import peft
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PretrainedConfig
from transformers.pytorch_utils import Conv1D

import rankfold
from rankfold import RankfoldWarning
from rankfold.adapter.layout import name_patterns
from tests.support.tolerance import assert_close

_LAYERS = (nn.Linear, Conv1D, nn.Conv2d, nn.Embedding)

_WIDTHS = {
    16: "hidden_size d_model n_embd dim embedding_size embed_dim emb_dim word_embed_proj_dim projection_dim "
    "encoder_hidden_size decoder_hidden_size num_mel_bins",
    24: "intermediate_size d_ff ffn_dim encoder_ffn_dim decoder_ffn_dim n_inner hidden_dim mlp_dim "
    "ffn_hidden_size moe_intermediate_size shared_expert_intermediate_size",
    2: "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_decoder_layers "
    "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads "
    "num_key_value_heads num_kv_heads type_vocab_size num_experts_per_tok eos_token_id",
    8: "d_kv head_dim kv_channels kv_lora_rank q_lora_rank v_head_dim patch_size max_relative_positions",
    4: "num_experts num_local_experts n_routed_experts rotary_dim qk_rope_head_dim qk_nope_head_dim "
    "attention_window block_size num_conv_pos_embeddings window_size",
    1: "num_attention_groups num_hidden_groups n_group topk_group n_shared_experts bos_token_id "
    "first_k_dense_replace",
    0: "pad_token_id decoder_start_token_id dropout hidden_dropout_prob attention_probs_dropout_prob "
    "attention_dropout layerdrop encoder_layerdrop decoder_layerdrop resid_pdrop attn_pdrop embd_pdrop "
    "activation_dropout hidden_dropout dropout_rate drop_path_rate classifier_dropout embed_dropout "
    "mask_time_prob",
    32: "image_size",
    64: "vocab_size max_position_embeddings n_positions n_ctx max_target_positions max_source_positions",
}
_SIZES = {name: size for size, names in _WIDTHS.items() for name in names.split()}
_LISTS = ("layer_types", "mlp_layer_types")

_NAMES = """
albert bart bert big_bird blenderbot blip bloom clip convbert deberta deberta-v2 distilbert electra ernie
flaubert fnet gemma gemma2 gemma3_text glm4 gpt2 gpt_neo gpt_neox gpt_oss gptj granite helium ibert
ijepa imagegpt layoutlm lfm2 llama longformer longt5 m2m_100 mbart megatron-bert mistral mixtral mobilebert
modernbert mpnet mpt nystromformer olmo olmo2 olmoe openai-gpt opt owlvit pegasus persimmon phi phi3
phimoe qwen2 qwen3 qwen3_moe rembert roberta roformer siglip_vision_model smollm3 splinter squeezebert
stablelm starcoder2 t5 visual_bert vit vit_msn vitdet wavlm whisper xlm xlm-roberta xlnet
"""
FAMILIES = _NAMES.split()


def _shrink(config):
    for name, value in list(vars(config).items()):
        if isinstance(value, PretrainedConfig):
            _shrink(value)
        elif name in _SIZES and isinstance(value, int | float) and not isinstance(value, bool):
            setattr(config, name, type(value)(_SIZES[name]))
        elif name in _LISTS and isinstance(value, list):
            setattr(config, name, value[:2])
    return config


def _model(family):
    torch.manual_seed(0)
    config = _shrink(AutoConfig.for_model(family))
    config._attn_implementation = "eager"
    try:
        model = AutoModelForCausalLM.from_config(config)
    except ValueError:
        model = AutoModel.from_config(config)
    if any(".experts" in name for name, _ in model.named_modules()):
        model.set_experts_implementation("eager")  # grouped products have no kernel for double precision
    return model.double().eval()


def _inputs(model):
    names = inspect.signature(model.forward).parameters
    draw = torch.Generator().manual_seed(1)
    makers = {
        "input_ids": lambda: torch.randint(3, 60, (2, 8), generator=draw),
        "decoder_input_ids": lambda: torch.randint(3, 60, (2, 6), generator=draw),
        "pixel_values": lambda: torch.randn(2, 3, 32, 32, generator=draw),
        "input_values": lambda: torch.randn(2, 800, generator=draw),
    }
    if "input_ids" in names:
        del makers["input_values"]
    values = {name: make() for name, make in makers.items() if name in names}
    return {name: value.double() if value.is_floating_point() else value for name, value in values.items()}


def _outputs(model, inputs):
    return [value for value in model(**inputs).to_tuple() if isinstance(value, torch.Tensor)]


def _loss(model, inputs):
    return sum(output.square().mean() for output in _outputs(model, inputs))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_learns_and_merges_exactly_or_is_named(family):
    model = _model(family)
    inputs, targets = _inputs(model), [n for n, m in model.named_modules() if isinstance(m, _LAYERS)]
    config = rankfold.config("lora", r=2, init_weights=False, target_modules=targets, target_parameters=[])
    model = peft.get_peft_model(model, config)
    model.train()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RankfoldWarning)
        _loss(model, inputs).backward()
        _loss(model, inputs)
    message = " ".join(str(warning.message) for warning in caught)
    layers = {name: layer for name, layer in model.base_model.model.named_modules() if name in targets}
    without = [
        name
        for name, layer in layers.items()
        if all(parameter.grad is None for parameter in layer.rankfold_up.parameters())
    ]
    for pattern in name_patterns([name for name in without if layers[name].is_used]) + name_patterns(
        [name for name in without if not layers[name].is_used]
    ):
        assert f"'{pattern}'" in message
    assert len(without) < len(targets)
    model.eval()
    with torch.no_grad():
        live = _outputs(model, inputs)
        for output, expected in zip(_outputs(model.merge_and_unload(), inputs), live, strict=True):
            assert_close(output, expected)
