"""The processor of a base model: a tokenizer, an image processor, or both, without code of its files."""

from pathlib import Path
from typing import Any, Literal, cast

from transformers import AutoImageProcessor, AutoProcessor

from rankfold.errors import SpecError
from rankfold.models.tokenizer import load_tokenizer

Inputs = Literal["text", "picture", "picture_and_text"]
"""The inputs of a kind of task, which its processor reads."""

_PICTURE_FILES = ("preprocessor_config.json", "processor_config.json")


def load_processor_files(location: str, name: str, inputs: Inputs, *, trust_remote_code: bool = False) -> Any:
    """Return the processor of a folder or hub id.

    Pillow resizes the pictures whether torchvision is installed or not, so that they have the same pixels on
    every machine.

    Args:
        location: For `from_pretrained`.
        name: The model as the user wrote it, for messages.
        inputs: What it reads.
        trust_remote_code: Whether code that comes with the files may run.

    Raises:
        SpecError: If its files are missing, or Pillow is.
        OSError: If they cannot be read; so do other errors of transformers.
    """
    if inputs == "text":
        return load_tokenizer(location, name, trust_remote_code=trust_remote_code)
    folder = Path(location)
    if folder.is_dir() and not any((folder / file).is_file() for file in _PICTURE_FILES):
        raise SpecError(
            f"the model '{name}' lacks its processor's file {_PICTURE_FILES[0]}, so it reads no pictures; "
            "copy it from where the model is from, or name a model for pictures."
        )
    auto_class = AutoImageProcessor if inputs == "picture" else AutoProcessor
    return cast(Any, auto_class).from_pretrained(location, trust_remote_code=trust_remote_code, backend="pil")


def tokenizer_of(processor: Any) -> Any:
    """Return the tokenizer of a processor; None of a processor of pictures alone."""
    inner = getattr(processor, "tokenizer", processor)
    return inner if hasattr(inner, "convert_tokens_to_ids") else None
