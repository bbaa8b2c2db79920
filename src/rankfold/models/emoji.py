"""The embedded text-to-image model: a small U-Net on pixels that draws emoji, and MiniLM for its captions.

`benchmarks/emoji.py` has trained the U-Net, whose file has its configuration beside its weights. The text
encoder is that of a package, unchanged. They are put together once, in the cache, as a folder of diffusers.
"""

import json
import logging
import shutil
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import safetensors
import safetensors.torch
from torch import Tensor

from rankfold.errors import DataError
from rankfold.files import sha256_of_weights
from rankfold.models.gguf import cache_dir, new_folder
from rankfold.models.pipelines import PIPELINE_INDEX

logger = logging.getLogger("rankfold.models")

NAME = "emoji_diffusion"
DENOISER = "emoji_diffusion.safetensors"
_DENOISER_SHA256 = "968ab0946d19ae28b212ae96c845053131bb09d63ad737880d0595030a4815be"
_LAYOUT = 1
"""Raised when the folder changes, so that an old one is not taken for a new one."""

_TEXT_FILES = {
    "text_encoder": ("config.json", "model.safetensors"),
    "tokenizer": ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"),
}
_CLASSES = {
    "text_encoder": ["transformers", "BertModel"],
    "tokenizer": ["transformers", "BertTokenizer"],
}


def pack_denoiser(
    weights: dict[str, Tensor], configs: dict[str, dict[str, Any]], about: dict[str, str]
) -> bytes:
    """Return a denoiser as a safetensors file, half as large as in float32.

    Args:
        weights: By name.
        configs: Those of `unet` and `scheduler`, as diffusers writes them.
        about: Licences and the command, for the file's metadata.
    """
    half = {name: value.detach().half().contiguous() for name, value in weights.items()}
    return safetensors.torch.save(
        half, {**about, **{name: json.dumps(config) for name, config in configs.items()}}
    )


def compose_model(text_encoder: Path, denoiser: Path | None = None) -> Path:
    """Return the folder of the pipeline, which is written into the cache on first use.

    Args:
        text_encoder: The folder of MiniLM.
        denoiser: A file of `pack_denoiser`; the packaged one if None.

    Raises:
        DataError: If the packaged file is damaged.
    """
    path = denoiser or Path(str(files("rankfold.models").joinpath(DENOISER)))
    content = path.read_bytes()
    digest = sha256(content).hexdigest()
    if denoiser is None and digest != _DENOISER_SHA256:
        raise DataError(f"the file '{path}' is damaged; install rankfold again.")
    parts = (sha256_of_weights(text_encoder), digest, str(_LAYOUT))
    target = cache_dir() / "models" / f"{NAME}-{sha256(''.join(parts).encode()).hexdigest()[:16]}"
    if target.is_dir():
        return target
    logger.info("putting '%s' together once in '%s'.", NAME, target)
    with cast(Any, safetensors).safe_open(path, "pt") as file:
        about: dict[str, str] = file.metadata()
    configs = {name: json.loads(about[name]) for name in ("unet", "scheduler")}
    with new_folder(target) as work:
        for name, config in configs.items():
            (work / name).mkdir()
            file_name = "config.json" if name == "unet" else "scheduler_config.json"
            (work / name / file_name).write_text(json.dumps(config, indent=2), "utf-8")
        weights = {name: value.float() for name, value in safetensors.torch.load(content).items()}
        content = safetensors.torch.save(weights, {"format": "pt"})
        (work / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(content)
        for name, file_names in _TEXT_FILES.items():
            (work / name).mkdir()
            for file_name in file_names:
                shutil.copyfile(text_encoder / file_name, work / name / file_name)
        classes = {name: ["diffusers", config["_class_name"]] for name, config in configs.items()}
        index = {"_class_name": "DiffusionPipeline", **classes, **_CLASSES}
        (work / PIPELINE_INDEX).write_text(json.dumps(index, indent=2), "utf-8")
    return target
