"""Tiny models for pictures with random weights: encoders, vision-language models and denoisers."""

import json

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForImageTextToText,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
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


def unet(*, is_xl=False, width=8, channels=4, text_width=16):
    """Return the denoiser of Stable Diffusion 1.5, or of XL, with few channels."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    sizes = {"addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 40}
    options = {"addition_embed_type": "text_time", **sizes} if is_xl else {}
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(width, 2 * width),
        layers_per_block=1,
        norm_num_groups=2,
        cross_attention_dim=text_width,
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


_WORDS = ("a", "the", "red", "green", "blue", "yellow", "round", "square", "small", "large", "of")
CAPTIONS = ("a red square", "a green square", "a blue square", "a yellow square")
_COLOURS = ((230, 40, 30), (20, 180, 60), (40, 60, 220), (240, 220, 30))


def write_pictures(folder, count=12, side=16):
    """Write squares of four colours with their names as captions, as an image folder with metadata."""
    from PIL import Image

    folder.mkdir(parents=True)
    lines = []
    for index in range(count):
        picture = Image.new("RGB", (side + 4, side), "white")
        picture.paste(_COLOURS[index % 4], (2 + index % 3, 2, side - 2, side - 2))
        picture.save(folder / f"{index}.png")
        lines.append(json.dumps({"file_name": f"{index}.png", "text": CAPTIONS[index % 4]}))
    (folder / "metadata.jsonl").write_text("\n".join(lines), "utf-8")
    return folder


def _tokenizer(length=16):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "<s>", "</s>", "<unk>"]
    tokenizer = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate([*names, *_WORDS])}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    keys = ("pad_token", "bos_token", "eos_token", "unk_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=length, **dict(zip(keys, names, strict=True))
    )


def _autoencoder(channels=4):
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=channels,
        norm_num_groups=2,
        sample_size=16,
        scaling_factor=0.5,
        shift_factor=0.1,
    )


def _t5():
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    return T5EncoderModel(T5Config(**sizes))


def _projected_text_encoder(width):
    torch.manual_seed(0)
    return CLIPTextModelWithProjection(CLIPTextConfig(**_TEXT, projection_dim=width))


def write_pipeline(folder, family="sd15"):
    """Write a text-to-image pipeline with few channels and random weights: one of DENOISERS, or `pixels`."""
    import diffusers

    noise, flow = (
        diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        diffusers.FlowMatchEulerDiscreteScheduler(),
    )
    words = _tokenizer()
    match family:
        case "sd15":
            pipeline = diffusers.StableDiffusionPipeline(
                _autoencoder(),
                text_encoder(),
                words,
                unet(),
                noise,
                None,
                None,
                requires_safety_checker=False,
            )
        case "sdxl":
            pipeline = diffusers.StableDiffusionXLPipeline(
                _autoencoder(), text_encoder(), _projected_text_encoder(16), words, words,
                unet(is_xl=True, text_width=32), noise, add_watermarker=False,
            )  # fmt: skip
        case "sd3":
            encoders = (_projected_text_encoder(8), words) * 2
            pipeline = diffusers.StableDiffusion3Pipeline(
                transformer("sd3"), flow, _autoencoder(), *encoders, _t5(), words
            )
        case "flux":
            pipeline = diffusers.FluxPipeline(
                flow, _autoencoder(1), text_encoder(), words, _t5(), words, transformer("flux")
            )
        case "pixart":
            pipeline = diffusers.PixArtAlphaPipeline(
                words, _t5(), _autoencoder(), transformer("pixart"), noise
            )
        case _:
            parts = {"unet": unet(channels=3), "scheduler": noise, "text_encoder": _t5(), "tokenizer": words}
            index = {
                name: [type(part).__module__.split(".")[0], type(part).__name__]
                for name, part in parts.items()
            }
            for name, part in parts.items():
                part.save_pretrained(folder / name)
            index = {"_class_name": "DiffusionPipeline", "_diffusers_version": diffusers.__version__, **index}
            (folder / "model_index.json").write_text(json.dumps(index))
            return folder
    pipeline.save_pretrained(folder)
    return folder


_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ' : ' }}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] + ' ' }}{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}assistant : {% endif %}"
)


def save_encoder(folder):
    """Write an image classifier with its processor; its files have a head of another size."""
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    image_encoder("vit").save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def save_llava(folder, words):
    """Write a model that answers in text, with a processor whose vocabulary is these words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlavaProcessor, PreTrainedTokenizerFast
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    names = ["<pad>", "<s>", "</s>", "<unk>", *dict.fromkeys((*words, "user", "assistant", ":"))]
    names += [f"<{number}>" for number in range(len(names), 60)]
    vocabulary = {name: number for number, name in enumerate([*names, "<image>"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    vision_language_model("llava").save_pretrained(folder)
    LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
        ),
        tokenizer=PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, extra_special_tokens={"image_token": "<image>"}, **special
        ),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_TEMPLATE,
    ).save_pretrained(folder)
    return folder


def _words_tokenizer(words, *specials):
    """Return a tokenizer of words, whose special tokens beside the usual four are these."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "<s>", "</s>", "<unk>", *dict.fromkeys((*words, "user", "assistant", ":", "\n"))]
    vocabulary = {name: number for number, name in enumerate(dict.fromkeys([*names, *specials]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    usual = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, additional_special_tokens=list(specials), **usual
    )


def _idefics3_processor(words):
    from transformers import Idefics3Processor
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    names = ["<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>"]
    names += [f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)]
    images = Idefics3ImageProcessorPil(size={"longest_edge": 32}, max_image_size={"longest_edge": 16})
    tokenizer = _words_tokenizer(words, *names)
    return Idefics3Processor(images, tokenizer, image_seq_len=1, chat_template=_TEMPLATE)


def _paligemma_processor(words):
    from transformers import PaliGemmaProcessor
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    images = SiglipImageProcessorPil(size={"height": 16, "width": 16})
    images.image_seq_length = 4
    return PaliGemmaProcessor(images, _words_tokenizer(words, "<image>"))


def _blip_2_processor(words):
    from transformers import Blip2Processor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    images = BlipImageProcessorPil(size={"height": 16, "width": 16})
    return Blip2Processor(images, _words_tokenizer(words, "<image>"), num_query_tokens=3)


_PROCESSORS = {
    "idefics3": _idefics3_processor,
    "smolvlm": _idefics3_processor,
    "paligemma": _paligemma_processor,
    "blip_2": _blip_2_processor,
}


def save_answering(folder, family, words):
    """Write a model of a family beside LLaVA that answers in text, with its processor."""
    processor = _PROCESSORS[family](words)
    tokens = {"vocab_size": len(processor.tokenizer)}
    mark = processor.tokenizer.convert_tokens_to_ids("<image>")
    torch.manual_seed(0)
    if family == "blip_2":
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        text = {"model_type": "opt", "ffn_dim": 32, "word_embed_proj_dim": 16, "max_position_embeddings": 64}
        config = AutoConfig.for_model(
            "blip-2",
            vision_config={**_VISION},
            qformer_config={**sizes, "intermediate_size": 32, "encoder_hidden_size": 16},
            text_config={**text, **sizes, **tokens, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
            num_query_tokens=3,
            image_token_index=mark,
        )
    else:
        options = VISION_LANGUAGE[family]
        name = "image_token_index" if family == "paligemma" else "image_token_id"
        text = {**options["text_config"], **tokens}
        values = {**options, "text_config": text, name: mark, "projection_dim": 16}
        config = AutoConfig.for_model(family, **values)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
