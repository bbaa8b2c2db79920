"""Pipelines of diffusers as base models: captions and pictures as a denoiser's inputs, and pictures drawn.

A pipeline is a folder with a `model_index.json`. Its denoiser gets the adapter; the text encoders and the
autoencoder stay as they are. A denoiser without an autoencoder works on pixels.
"""

import copy
import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from rankfold.errors import SpecError
from rankfold.models.noise import NoiseProcess
from rankfold.progress import quiet_libraries

PIPELINE_INDEX = "model_index.json"
DENOISERS = ("unet", "transformer")

Conditions = Mapping[str, Tensor]
"""Encoded captions by name, each with the captions as its first axis."""

TEXT_TOKENS = 77
"""The tokens of CLIP's text encoder, and the usual most tokens of a caption for others."""

_STEPS, _GUIDANCE = 50, 7.5


def pipeline_components(folder: Path) -> tuple[str, ...]:
    """Return the names of the components of a pipeline that is saved in a folder; none if it is not one."""
    return tuple(name for name in _read_index(folder) if not name.startswith("_"))


def _read_index(folder: Path) -> dict[str, Any]:
    try:
        index = json.loads((folder / PIPELINE_INDEX).read_bytes())
    except (OSError, ValueError):
        return {}
    return cast("dict[str, Any]", index) if isinstance(index, dict) else {}


def denoiser_name(folder: Path) -> str | None:
    """Return the component of a pipeline that is its denoiser, `unet` or `transformer`; None if none is."""
    return next((name for name in DENOISERS if name in pipeline_components(folder)), None)


def build_denoiser(config: Any) -> nn.Module:
    """Return a denoiser of the class and the sizes that its configuration names, with random weights.

    Args:
        config: As `BaseModel.config` returns it for a pipeline.

    Raises:
        SpecError: If diffusers has no such class.
    """
    values = cast("dict[str, Any]", config.to_dict())
    cls = diffusers_class(str(values.get("_class_name")))
    sizes = inspect.signature(cls).parameters
    return cls(**{key: value for key, value in values.items() if key in sizes})


def diffusers_class(name: str) -> Any:
    """Return the class of a model of diffusers by its name.

    Raises:
        SpecError: If diffusers is not installed, or has no such model.
    """
    library = diffusers_library(f"a base model of the class {name}")
    # Only a model: a name in a file must not choose what is imported.
    cls: Any = getattr(library, name, None)
    if not (isinstance(cls, type) and issubclass(cls, library.ModelMixin)):
        raise SpecError(f"diffusers has no model '{name}', which the base model is; install one that has.")
    return cls


def diffusers_library(purpose: str) -> Any:
    """Return the package diffusers, which is of an extra and slow to import.

    Args:
        purpose: The model that it is for, for the error.

    Raises:
        SpecError: If it is not installed.
    """
    try:
        import diffusers
    except ImportError as error:
        raise SpecError(f"{purpose} takes diffusers; install rankfold[diffusion].") from error
    return diffusers


class Pipeline(ABC):
    """A text-to-image pipeline of diffusers, whose denoiser is trained on pictures with captions.

    Args:
        parts: The pipeline of diffusers, with its components as attributes.

    Attributes:
        denoiser: The name of the component that is trained.
        draw_options: Keywords of every call of the pipeline.
        class_names: The pipelines of diffusers that are loaded so.
        caption_tokens: The tokens of every caption; None if their number can be chosen.
        noise: Times, noise levels and targets of the training.
    """

    draw_options: ClassVar[Mapping[str, Any]] = {}
    denoiser: ClassVar[str] = "unet"
    class_names: ClassVar[tuple[str, ...]] = ()
    caption_tokens: ClassVar[int | None] = None

    def __init__(self, parts: Any) -> None:
        self.parts = parts
        # Drawing changes the scheduler's times.
        self.noise = NoiseProcess.of_scheduler(parts.scheduler)

    @classmethod
    def load(cls, location: str, class_name: str) -> "Pipeline":
        """Load the pipeline from a folder or the hub; weights only from safetensors files.

        Raises:
            OSError: If a file is missing or damaged.
            SpecError: If its noise is none that training is known for.
        """
        library = diffusers_library(f"the pipeline '{location}'")
        options = {} if class_name != "StableDiffusionPipeline" else _WITHOUT_CHECKER
        parts = getattr(library, class_name).from_pretrained(location, use_safetensors=True, **options)
        parts.set_progress_bar_config(disable=True)
        return cls(parts)

    @property
    def model(self) -> nn.Module:
        """The denoiser."""
        return getattr(self.parts, self.denoiser)

    def to(self, device: torch.device) -> None:
        """Move every component to a device."""
        self.parts.to(device)

    def freeze(self, dtype: torch.dtype) -> None:
        """Freeze all components, in evaluation mode and one dtype; the autoencoder stays in float32."""
        for name, part in cast("dict[str, object]", vars(self.parts)).items():
            wanted = torch.float32 if name == "vae" else dtype
            if isinstance(part, nn.Module):
                part.requires_grad_(requires_grad=False).eval()
                if any(parameter.dtype != wanted for parameter in part.parameters()):
                    part.to(wanted)

    @property
    def picture_scale(self) -> int:
        """Pixels along a side of one entry of the denoiser's input."""
        return int(self.parts.vae_scale_factor)

    @property
    def usual_side(self) -> int:
        """The side in pixels of the pictures that the denoiser was made for."""
        return int(cast(Any, self.model).config.sample_size or 64) * self.picture_scale

    @property
    def side_unit(self) -> int:
        """The number of pixels that the side of a picture is a multiple of."""
        config = cast(Any, self.model).config
        halvings = len(getattr(config, "block_out_channels", (0,))) - 1
        return self.picture_scale * max(getattr(config, "patch_size", None) or 1, 2**halvings)

    @torch.no_grad()
    def latents(self, pixels: Tensor) -> Tensor:
        """Return pictures as the denoiser sees them: the mean of their code in the autoencoder.

        Args:
            pixels: Between -1 and 1, `[pictures, 3, side, side]`.
        """
        vae = self.parts.vae
        code = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode().float()
        return (code - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor

    @abstractmethod
    def conditions(self, captions: Sequence[str], max_length: int) -> Conditions:
        """Return captions as the denoiser reads them.

        Args:
            captions: In any number.
            max_length: The most tokens of one.
        """

    @abstractmethod
    def denoise(self, model: nn.Module, noisy: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        """Return the denoiser's output for noisy pictures, in their shape.

        Args:
            model: The denoiser, perhaps with an adapter.
            noisy: What `latents` returned, with noise, `[pictures, channels, height, width]`.
            times: The times that stand for the noise levels, `[pictures]`.
            conditions: Of their captions.
        """

    def draw(
        self,
        captions: Sequence[str],
        seeds: Sequence[int],
        *,
        steps: int | None,
        guidance: float | None,
        side: int,
    ) -> list[Any]:
        """Return a picture (PIL) for each caption, from noise that its seed gives.

        Args:
            captions: In any number.
            seeds: One for each.
            steps: Denoising steps; the pipeline's own number if None.
            guidance: Weight of the caption (classifier-free guidance); the pipeline's own if None.
            side: Of the pictures, in pixels.
        """
        options: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": guidance}
        return self.parts(
            prompt=list(captions),
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            height=side,
            width=side,
            **{name: value for name, value in options.items() if value is not None},
            **self.draw_options,
        ).images

    def _device(self) -> torch.device:
        return next(self.model.parameters()).device


_WITHOUT_CHECKER = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


class StableDiffusion(Pipeline):
    """Stable Diffusion 1 and 2: a U-Net that reads CLIP's tokens."""

    class_names = ("StableDiffusionPipeline",)
    caption_tokens = TEXT_TOKENS

    def conditions(self, captions: Sequence[str], max_length: int) -> Conditions:
        """Return the tokens of the text encoder."""
        tokens, _ = self.parts.encode_prompt(
            list(captions), self._device(), num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return {"encoder_hidden_states": tokens}

    def denoise(self, model: nn.Module, noisy: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        """Return the U-Net's output."""
        return model(noisy, times, **conditions).sample


class StableDiffusionXL(Pipeline):
    """Stable Diffusion XL: a U-Net that reads two text encoders and the size of the picture."""

    class_names = ("StableDiffusionXLPipeline",)
    caption_tokens = TEXT_TOKENS

    def conditions(self, captions: Sequence[str], max_length: int) -> Conditions:
        """Return the tokens of both text encoders, and the second one's summary."""
        tokens, _, summary, _ = self.parts.encode_prompt(
            list(captions), device=self._device(), num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return {"encoder_hidden_states": tokens, "text_embeds": summary}

    def denoise(self, model: nn.Module, noisy: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        """Return the U-Net's output for whole square pictures."""
        height, width = (size * self.picture_scale for size in noisy.shape[-2:])
        sizes = torch.tensor([height, width, 0, 0, height, width], dtype=noisy.dtype, device=noisy.device)
        added = {"text_embeds": conditions["text_embeds"], "time_ids": sizes.expand(len(noisy), -1)}
        tokens = conditions["encoder_hidden_states"]
        return model(noisy, times, encoder_hidden_states=tokens, added_cond_kwargs=added).sample


class StableDiffusion3(Pipeline):
    """Stable Diffusion 3: a transformer, trained by flow matching."""

    denoiser = "transformer"
    class_names = ("StableDiffusion3Pipeline",)

    def conditions(self, captions: Sequence[str], max_length: int) -> Conditions:
        """Return the tokens of all text encoders, and the summary of two."""
        tokens, _, summary, _ = self.parts.encode_prompt(
            *[list(captions)] * 3,
            device=self._device(),
            do_classifier_free_guidance=False,
            max_sequence_length=max_length,
        )
        return {"encoder_hidden_states": tokens, "pooled_projections": summary}

    def denoise(self, model: nn.Module, noisy: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        """Return the transformer's output."""
        return model(hidden_states=noisy, timestep=times, **conditions).sample


class Flux(Pipeline):
    """Flux: a transformer on patches of two by two, trained by flow matching."""

    denoiser = "transformer"
    class_names = ("FluxPipeline",)
    _GUIDANCE = 1.0  # that of training; the distilled models were made for more

    @property
    def usual_side(self) -> int:
        """The side that the pipeline draws by itself."""
        return int(self.parts.default_sample_size) * self.picture_scale

    @property
    def side_unit(self) -> int:
        """A patch has two numbers along a side."""
        return 2 * self.picture_scale

    def conditions(self, captions: Sequence[str], max_length: int) -> Conditions:
        """Return the tokens of T5, and the summary of CLIP."""
        tokens, summary, _ = self.parts.encode_prompt(
            list(captions), None, device=self._device(), max_sequence_length=max_length
        )
        return {"encoder_hidden_states": tokens, "pooled_projections": summary}

    def denoise(self, model: nn.Module, noisy: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        """Return the transformer's output, put together from its patches."""
        count, channels, height, width = noisy.shape
        options: dict[str, Any] = {}
        if cast(Any, self.model).config.guidance_embeds:
            options["guidance"] = torch.full((count,), self._GUIDANCE, device=noisy.device)
        tokens = conditions["encoder_hidden_states"]
        patches = model(
            hidden_states=self.parts._pack_latents(noisy, count, channels, height, width),
            timestep=times / len(self.noise.times),
            img_ids=self.parts._prepare_latent_image_ids(
                count, height // 2, width // 2, noisy.device, noisy.dtype
            ),
            txt_ids=torch.zeros(tokens.shape[1], 3, device=noisy.device, dtype=noisy.dtype),
            **conditions,
            **options,
        ).sample
        scale = self.picture_scale
        return self.parts._unpack_latents(patches, height * scale, width * scale, scale)


class PixArt(Pipeline):
    """PixArt: a transformer that reads T5's tokens."""

    denoiser = "transformer"
    class_names = ("PixArtAlphaPipeline", "PixArtSigmaPipeline")
    draw_options: ClassVar[Mapping[str, Any]] = {"use_resolution_binning": False, "clean_caption": False}

    def conditions(self, captions: Sequence[str], max_length: int) -> Conditions:
        """Return the tokens of T5 with their mask."""
        tokens, mask, _, _ = self.parts.encode_prompt(
            list(captions),
            do_classifier_free_guidance=False,
            device=self._device(),
            max_sequence_length=max_length,
        )
        return {"encoder_hidden_states": tokens, "encoder_attention_mask": mask}

    def denoise(self, model: nn.Module, noisy: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        """Return the transformer's output without the variance that it estimates."""
        added: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if getattr(self.model, "use_additional_conditions", False):
            size = torch.tensor(noisy.shape[-2:], dtype=noisy.dtype, device=noisy.device) * self.picture_scale
            ratio = (size[:1] / size[1:]).expand(len(noisy), -1)
            added = {"resolution": size.expand(len(noisy), -1), "aspect_ratio": ratio}
        output: Tensor = model(noisy, timestep=times, added_cond_kwargs=added, **conditions).sample
        return output[:, : noisy.shape[1]]


class PixelPipeline(Pipeline):
    """A U-Net on pixels, without an autoencoder, that reads the tokens of any text encoder."""

    @classmethod
    def load(cls, location: str, class_name: str) -> "Pipeline":
        """Load the components one by one, whatever pipeline the index names."""
        import transformers

        library, folder = diffusers_library(f"the pipeline '{location}'"), Path(location)
        encoder = _component(transformers, folder, "text_encoder", transformers.PreTrainedModel)
        return cls(
            _Parts(
                unet=library.UNet2DConditionModel.from_pretrained(folder / "unet", use_safetensors=True),
                scheduler=_component(library, folder, "scheduler", library.SchedulerMixin),
                text_encoder=encoder,
                tokenizer=cast(Any, transformers.AutoTokenizer).from_pretrained(folder / "tokenizer"),
            )
        )

    @property
    def picture_scale(self) -> int:
        """The denoiser sees pixels."""
        return 1

    def latents(self, pixels: Tensor) -> Tensor:
        """Return the pixels as they are."""
        return pixels.float()

    @torch.no_grad()
    def conditions(self, captions: Sequence[str], max_length: int) -> Conditions:
        """Return the tokens of the text encoder with their mask."""
        tokens = self.parts.tokenizer(
            list(captions), padding="max_length", max_length=max_length, truncation=True, return_tensors="pt"
        ).to(self._device())
        states = self.parts.text_encoder(tokens.input_ids, attention_mask=tokens.attention_mask)[0]
        return {"encoder_hidden_states": states, "encoder_attention_mask": tokens.attention_mask.float()}

    def denoise(self, model: nn.Module, noisy: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        """Return the U-Net's output without a variance, if it estimates one."""
        return model(noisy, times, **conditions).sample[:, : noisy.shape[1]]

    @torch.no_grad()
    def draw(
        self,
        captions: Sequence[str],
        seeds: Sequence[int],
        *,
        steps: int | None,
        guidance: float | None,
        side: int,
    ) -> list[Any]:
        """Return pictures, denoised by the pipeline's own scheduler with classifier-free guidance."""
        from PIL import Image

        scheduler, device = copy.deepcopy(self.parts.scheduler), self._device()
        scheduler.set_timesteps(steps or _STEPS)
        weight = _GUIDANCE if guidance is None else guidance
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        channels = cast(Any, self.model).config.in_channels
        noise = torch.stack([torch.randn(channels, side, side, generator=item) for item in generators])
        pictures = noise.to(device) * scheduler.init_noise_sigma
        conditions = self.conditions([*captions, *[""] * len(captions)], TEXT_TOKENS)
        options = {"generator": generators} if "Ancestral" in type(scheduler).__name__ else {}
        for time in scheduler.timesteps:
            noisy = scheduler.scale_model_input(torch.cat([pictures, pictures]), time)
            times = time.to(device).expand(len(noisy))
            captioned, plain = self.denoise(self.model, noisy, times, conditions).chunk(2)
            pictures = scheduler.step(
                plain + weight * (captioned - plain), time, pictures, **options
            ).prev_sample
        pixels = ((pictures.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        return [Image.fromarray(picture) for picture in pixels]


def _component(library: Any, folder: Path, name: str, base_class: type) -> Any:
    """Return a component of a pipeline by the class that its index names.

    Raises:
        SpecError: If the library has no such class.
    """
    entry = _read_index(folder).get(name) or [None, None]
    cls = getattr(library, str(entry[1]), None)
    # A name in a file must not choose what is imported.
    if not (isinstance(cls, type) and issubclass(cls, base_class)):
        raise SpecError(f"'{folder}' has no {name} of a known class ({entry[1]}); complete the pipeline.")
    return cast(Any, cls).from_pretrained(folder / name)


class _Parts:
    """Components by name, moved together."""

    def __init__(self, **components: Any) -> None:
        self.__dict__.update(components)

    def to(self, device: torch.device) -> None:
        """Move the components that have weights to a device."""
        for component in vars(self).values():
            if isinstance(component, nn.Module):
                component.to(device)


_FAMILIES: tuple[type[Pipeline], ...] = (StableDiffusion, StableDiffusionXL, StableDiffusion3, Flux, PixArt)


def load_pipeline(name: str, location: str, folder: Path, dtype: torch.dtype) -> Pipeline:
    """Load a pipeline by its class; one of a U-Net without an autoencoder works on pixels.

    Args:
        name: As the user wrote it.
        location: The folder or hub id.
        folder: Has the index.
        dtype: Of the weights.

    Raises:
        SpecError: If it is of a class that training is not known for, or its files cannot be read.
    """
    index = _read_index(folder)
    class_name = str(index.get("_class_name"))
    family = next((family for family in _FAMILIES if class_name in family.class_names), None)
    if "unet" in index and not (index.get("vae") or [None])[0]:
        family = PixelPipeline
    if family is None:
        known = ", ".join(known_name for family in _FAMILIES for known_name in family.class_names)
        raise SpecError(
            f"'{name}' is a {class_name}, which is not trained here; use one of {known}, or a U-Net with a "
            "text encoder and no autoencoder."
        )
    bars = diffusers_library(f"the pipeline '{name}'").utils.logging
    bars.disable_progress_bar()
    try:
        with quiet_libraries():
            pipeline = family.load(location, class_name)
    except SpecError:
        raise
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError, ImportError) as error:
        reason = str(error).strip().split("\n", 1)[0].rstrip(".")
        raise SpecError(
            f"cannot load the pipeline '{name}' ({reason}); check its files, whose weights are read from "
            "safetensors only."
        ) from error
    finally:
        bars.enable_progress_bar()
    pipeline.freeze(dtype)
    return pipeline
