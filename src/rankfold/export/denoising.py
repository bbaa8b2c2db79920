"""Denoisers of diffusers: the component of a pipeline that an adapter is for, and inputs to compare on."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast, final

import torch
from peft import PeftConfig
from torch import Tensor, nn

from rankfold.errors import NotExactError, SpecError
from rankfold.models.pipelines import DENOISERS, diffusers_class, pipeline_components

COMPONENTS = (*DENOISERS, "text_encoder", "text_encoder_2")
_TEXT_ENCODERS = {"CLIPTextModel": "text_encoder", "CLIPTextModelWithProjection": "text_encoder_2"}
_TOKENS, _LARGEST_SIDE = 7, 16

_Inputs = dict[str, Any]


def component_of(config: PeftConfig) -> str | None:
    """Return the component of a diffusers pipeline that an adapter is for; None if it is for none.

    `unet`, `transformer`, `text_encoder` or `text_encoder_2`. The folder that the base model was loaded from
    has this name in a pipeline; elsewhere the class of the base model tells.
    """
    mapping = cast("Mapping[str, str]", config.auto_mapping or {})  # pyright: ignore[reportUnknownMemberType] (PEFT's)
    name = mapping.get("base_model_class", "")
    if config.base_model_name_or_path:
        folder = Path(config.base_model_name_or_path)
        if folder.name in COMPONENTS and folder.name in pipeline_components(folder.parent):
            return folder.name
    if mapping.get("parent_library", "").startswith("diffusers."):
        if not _takes_lora(name):
            return None
        return "unet" if name.startswith("UNet") else "transformer"
    return _TEXT_ENCODERS.get(name)


def _takes_lora(name: str) -> bool:
    """Return whether diffusers loads LoRA onto a model of a class; of PixArt, PEFT alone does."""
    try:
        return hasattr(diffusers_class(name), "load_lora_adapter")
    except SpecError:
        return True  # not known without diffusers; loading the export would tell


def is_denoiser(model: nn.Module) -> bool:
    """Return whether a model is one of diffusers, which reads noise in place of tokens."""
    return type(model).__module__.startswith("diffusers.")


def load_exported_lora(model: nn.Module, component: str, folder: Path) -> nn.Module:
    """Load an exported LoRA onto the component of a pipeline, as the pipeline's `load_lora_weights` does.

    Raises:
        NotExactError: If diffusers cannot read it.
    """
    import diffusers

    pipeline: Any = cast("Any", diffusers).StableDiffusionPipeline
    if component == "transformer":
        cast("Any", model).load_lora_adapter(folder, prefix=component, use_safetensors=True)
        return model.eval()
    state, alphas, metadata = pipeline.lora_state_dict(folder, return_lora_metadata=True)
    options = {"state_dict": state, "network_alphas": alphas, "metadata": metadata}
    if component == "unet":
        pipeline.load_lora_into_unet(unet=model, **options)
    else:
        try:
            pipeline.load_lora_into_text_encoder(text_encoder=model, prefix=component, **options)
        except ValueError as error:
            raise NotExactError(
                "diffusers cannot read a LoRA that leaves out the attention of a text encoder "
                f"({str(error).rstrip('.')}); train it on q_proj and out_proj too."
            ) from error
    return model.eval()


@final
class NoiseInputs:
    """Inputs of a denoiser: noise as an image and as a text, drawn from a seed.

    Args:
        model: The denoiser.

    Raises:
        SpecError: If the inputs of its class are not known.
    """

    def __init__(self, model: nn.Module) -> None:
        self._config: Any = model.config
        name = type(model).__name__
        if name not in _INPUTS:
            raise SpecError(f"no inputs are known for a {name}, so its outputs cannot be compared.")
        self._inputs = _INPUTS[name]

    def draw(self, seed: int) -> _Inputs:
        """Return the keywords of one forward pass, on the CPU."""
        generator = torch.Generator().manual_seed(seed)

        def noise(*shape: int) -> Tensor:
            return torch.randn(1, *shape, generator=generator)

        return self._inputs(self._config, noise)


_Noise = Callable[..., Tensor]


def _latents(config: Any, noise: _Noise) -> Tensor:
    side = min(config.sample_size or _LARGEST_SIDE, _LARGEST_SIDE)
    return noise(config.in_channels, side, side)


def _unet(config: Any, noise: _Noise) -> _Inputs:
    inputs: _Inputs = {
        "sample": _latents(config, noise),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": noise(_TOKENS, config.cross_attention_dim),
    }
    if config.addition_embed_type == "text_time":
        times = 6 * config.addition_time_embed_dim
        conditions = {
            "text_embeds": noise(config.projection_class_embeddings_input_dim - times),
            "time_ids": noise(6).abs(),
        }
        inputs["added_cond_kwargs"] = conditions
    return inputs


def _sd3(config: Any, noise: _Noise) -> _Inputs:
    return {
        "hidden_states": _latents(config, noise),
        "encoder_hidden_states": noise(_TOKENS, config.joint_attention_dim),
        "pooled_projections": noise(config.pooled_projection_dim),
        "timestep": torch.tensor([500.0]),
    }


def _flux(config: Any, noise: _Noise) -> _Inputs:
    patches = _LARGEST_SIDE
    inputs = {
        "hidden_states": noise(patches, config.in_channels),
        "encoder_hidden_states": noise(_TOKENS, config.joint_attention_dim),
        "pooled_projections": noise(config.pooled_projection_dim),
        "timestep": torch.tensor([0.5]),
        "img_ids": torch.arange(3.0 * patches).reshape(patches, 3),
        "txt_ids": torch.zeros(_TOKENS, 3),
    }
    return inputs | ({"guidance": torch.tensor([3.5])} if config.guidance_embeds else {})


def _pixart(config: Any, noise: _Noise) -> _Inputs:
    return {
        "hidden_states": _latents(config, noise),
        "encoder_hidden_states": noise(_TOKENS, config.caption_channels),
        "timestep": torch.tensor([500]),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


_INPUTS: Mapping[str, Callable[[Any, _Noise], _Inputs]] = {
    "UNet2DConditionModel": _unet,
    "SD3Transformer2DModel": _sd3,
    "FluxTransformer2DModel": _flux,
    "PixArtTransformer2DModel": _pixart,
}
