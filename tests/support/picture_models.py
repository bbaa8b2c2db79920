"""Tiny models for pictures with random weights: encoders, vision-language models and denoisers."""

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForImageTextToText,
    CLIPTextConfig,
    CLIPTextModel,
)

_TEXT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
_QWEN_VISION = {"depth": 2, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 2}

_LLAMA, _GEMMA = ({"model_type": name, **_TEXT} for name in ("llama", "gemma"))
_CLIP, _SIGLIP = ({"model_type": f"{name}_vision_model", **_VISION} for name in ("clip", "siglip"))

VISION_LANGUAGE = {
    "llava": {"text_config": _LLAMA, "vision_config": _CLIP, "image_token_index": 60},
    "idefics3": {"text_config": _LLAMA, "vision_config": _VISION, "image_token_id": 60},
    "smolvlm": {"text_config": _LLAMA, "vision_config": _VISION, "image_token_id": 60},
    "qwen2_vl": {"text_config": _TEXT, "vision_config": _QWEN_VISION},
    "paligemma": {"text_config": _GEMMA, "vision_config": _SIGLIP, "image_token_index": 60},
    "blip": {"text_config": _TEXT, "vision_config": _VISION},
}
"""Options of the configurations by model type; language model and image encoder are equally wide."""

ENCODERS = ("vit", "dinov2", "clip", "siglip")


def vision_language_model(model_type):
    """Return a model that answers in text."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **VISION_LANGUAGE[model_type])
    return AutoModelForImageTextToText.from_config(config)


def image_encoder(model_type):
    """Return an image classifier, or an encoder of pictures and of texts."""
    torch.manual_seed(0)
    if model_type in ("clip", "siglip"):
        config = AutoConfig.for_model(model_type, text_config=_TEXT, vision_config=_VISION)
        return AutoModel.from_config(config)
    return AutoModelForImageClassification.from_config(AutoConfig.for_model(model_type, **_VISION))


def unet(*, is_xl=False, width=8):
    """Return the denoiser of Stable Diffusion 1.5, or of XL, with few channels."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    sizes = {"addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 40}
    options = {"addition_embed_type": "text_time", **sizes} if is_xl else {}
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(width, 2 * width),
        layers_per_block=1,
        norm_num_groups=2,
        cross_attention_dim=16,
        attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        **options,
    )


def transformer(name):
    """Return the denoiser of SD3, Flux or PixArt with few channels."""
    import diffusers

    torch.manual_seed(0)
    heads = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2}
    match name:
        case "sd3":
            return diffusers.SD3Transformer2DModel(
                sample_size=8, patch_size=2, joint_attention_dim=16, pooled_projection_dim=16,
                caption_projection_dim=16, in_channels=4, out_channels=4, pos_embed_max_size=8, **heads,
            )  # fmt: skip
        case "flux":
            return diffusers.FluxTransformer2DModel(
                in_channels=4, num_single_layers=1, joint_attention_dim=16, pooled_projection_dim=16,
                axes_dims_rope=(2, 2, 4), guidance_embeds=False, **heads,
            )  # fmt: skip
        case _:
            return diffusers.PixArtTransformer2DModel(
                sample_size=8, in_channels=4, out_channels=8, cross_attention_dim=16, caption_channels=16,
                use_additional_conditions=False, **heads,
            )  # fmt: skip


DENOISERS = {
    "sd15": unet,
    "sdxl": lambda: unet(is_xl=True),
    "sd3": lambda: transformer("sd3"),
    "flux": lambda: transformer("flux"),
    "pixart": lambda: transformer("pixart"),
}
"""Functions that return a denoiser, by family."""


def text_encoder():
    """Return CLIP's text encoder, as pipelines have it."""
    torch.manual_seed(0)
    return CLIPTextModel(CLIPTextConfig(**_TEXT))
