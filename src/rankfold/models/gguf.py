"""GGUF files as base models: read by transformers, converted once into the cache."""

import io
import logging
import os
import struct
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any, cast

import platformdirs
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

from rankfold.errors import DataError
from rankfold.files import sha256_of_file
from rankfold.progress import quiet_libraries

logger = logging.getLogger("rankfold.models")

_LAYOUT = 1
"""Raised when a converted folder changes, so that an old one is not taken for a new one."""

_UNREADABLE = (OSError, ValueError, LookupError, ImportError, struct.error)


def convert_gguf(path: Path) -> Path:
    """Return a folder with the model of a GGUF file as float32 safetensors, converting it on first use.

    The folder's name carries the hash of the file, so another file never finds it. Two processes may convert
    at once: each works in its own folder, and the first to finish is kept.

    Args:
        path: The GGUF file, of an architecture that transformers can read.

    Raises:
        DataError: If transformers cannot read the file.
    """
    target = _target(path)
    if target.is_dir():
        return target
    logger.info("converting '%s' once into '%s'.", path.name, target)
    # The reader draws a progress bar that cannot be switched off.
    with quiet_libraries(), redirect_stderr(io.StringIO()), new_folder(target) as work:
        try:
            model = cast(Any, AutoModelForCausalLM).from_pretrained(
                str(path.parent), gguf_file=path.name, dtype=torch.float32, trust_remote_code=False
            )
            tokenizer = cast(Any, AutoTokenizer).from_pretrained(
                str(path.parent), gguf_file=path.name, trust_remote_code=False
            )
        except _UNREADABLE as error:
            raise _unreadable(path, error) from error
        # The tensors are dequantised: a folder that still claims quantisation could not be loaded again.
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.hf_quantizer = None
        model.save_pretrained(work)
        tokenizer.save_pretrained(work)
    return target


def read_gguf_config(path: Path) -> PreTrainedConfig:
    """Return the configuration in a GGUF file, without reading its weights.

    Raises:
        DataError: If transformers cannot read the file.
    """
    target = _target(path)
    if target.is_dir():
        return cast(Any, AutoConfig).from_pretrained(target, trust_remote_code=False)
    with quiet_libraries(), redirect_stderr(io.StringIO()):
        try:
            return cast(Any, AutoConfig).from_pretrained(
                str(path.parent), gguf_file=path.name, trust_remote_code=False
            )
        except _UNREADABLE as error:
            raise _unreadable(path, error) from error


def _target(path: Path) -> Path:
    return cache_dir() / "models" / f"{path.stem}-{sha256_of_file(path)[:16]}-{_LAYOUT}"


def _unreadable(path: Path, error: Exception) -> DataError:
    first = str(error).strip().split("\n", 1)[0].rstrip(".")
    return DataError(f"cannot read '{path}' as a GGUF model ({first}); check that the file is whole.")


def cache_dir() -> Path:
    """Return the folder named by `RANKFOLD_CACHE`, or the platform's own place for caches."""
    folder = os.environ.get("RANKFOLD_CACHE")
    return Path(folder).expanduser() if folder else platformdirs.user_cache_path("rankfold")


@contextmanager
def new_folder(target: Path) -> Generator[Path]:
    """Give a temporary folder that becomes `target` when the block ends without an error.

    A reader sees either no `target` or a complete one. When another process was first, its result stays.

    Args:
        target: A folder that does not exist yet; its parents are made.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
        work = Path(scratch) / "new"
        work.mkdir()
        yield work
        try:
            work.rename(target)
        except OSError:
            if not target.is_dir():
                raise
