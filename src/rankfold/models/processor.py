"""The processor of a base model: a tokenizer, an image processor, or both, without code of its files."""

from importlib.util import find_spec
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
    try:
        return cast(Any, auto_class).from_pretrained(
            location, trust_remote_code=trust_remote_code, backend="pil"
        )
    except ImportError as error:
        # Pillow reads no videos, and a processor that does is loaded with all its parts or not at all.
        if "Video processor" not in str(error):
            raise
        return _load_with_videos(location, name, trust_remote_code=trust_remote_code)


def _load_with_videos(location: str, name: str, *, trust_remote_code: bool) -> Any:
    """Return a processor that also reads videos, whose pictures are resized by Pillow all the same."""
    if find_spec("torchvision") is None:
        raise SpecError(
            f"the processor of '{name}' also reads videos, for which it needs the package 'torchvision'; "
            "install the version that belongs to your torch."
        )
    processor = cast(Any, AutoProcessor).from_pretrained(location, trust_remote_code=trust_remote_code)
    processor.image_processor = cast(Any, AutoImageProcessor).from_pretrained(
        location, trust_remote_code=trust_remote_code, backend="pil"
    )
    return processor


def tokenizer_of(processor: Any) -> Any:
    """Return the tokenizer of a processor; None of a processor of pictures alone."""
    inner = getattr(processor, "tokenizer", processor)
    return inner if hasattr(inner, "convert_tokens_to_ids") else None
