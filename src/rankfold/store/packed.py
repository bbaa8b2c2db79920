"""The packed adapter: a PEFT directory as one file, and back byte for byte."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

import torch
from pydantic import JsonValue
from torch import Tensor

from rankfold.errors import AdapterFileError
from rankfold.files import check_free_file, write_whole
from rankfold.store import container
from rankfold.store.container import Container
from rankfold.store.saved import CONFIG_NAME, WEIGHTS_NAME, SavedAdapter, config_values, other_files
from rankfold.store.tensors import TensorEntry
from rankfold.store.weights import Layout, read_layout

KIND = "adapter"
FORMAT = 1

Dtype = Literal["fp32", "fp16", "bf16"]

DTYPES: Mapping[Dtype, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""The types that an adapter can be rounded to, as the command line names them."""


@final
@dataclass(frozen=True, slots=True)
class Packed:
    """What came of packing.

    Args:
        file_bytes: The size of the file.
        learned_bytes: The bytes of the values in it.
        relative_error: The largest error of a rounded tensor, root mean square of the error by that of its
            values; 0 if nothing was rounded.
        left_out: The directory's other files, which a packed adapter does not carry.
    """

    file_bytes: int
    learned_bytes: int
    relative_error: float
    left_out: tuple[str, ...]


def pack_adapter(
    directory: str | Path, file: str | Path, *, dtype: Dtype | None = None, overwrite: bool = False
) -> Packed:
    """Write a saved adapter as one file, from which `unpack_adapter` gives its directory back byte for byte.

    Args:
        directory: What `save_pretrained` of a PEFT model, or `rankfold train`, wrote; of any PEFT method.
        file: The file to write, in one step.
        dtype: Round the floating-point tensors to this type; `unpack_adapter` then gives the rounded ones.
        overwrite: Whether to replace the file.

    Raises:
        AdapterFileError: If the directory holds no adapter, a damaged one, or a pickle; or if a value is too
            large for the type.
        OutputExistsError: If the file exists, or is a folder.
        SpecError: If nothing can be written there.
    """
    source, target = Path(directory), Path(file)
    check_free_file(target, overwrite=overwrite)
    saved = SavedAdapter.read(source)
    kept = saved if dtype is None else saved.in_dtype(DTYPES[dtype])
    data = container.encode(to_container(kept))
    _prove(kept, from_container(container.decode(data)))
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, data)
    return Packed(
        file_bytes=len(data),
        learned_bytes=kept.learned_bytes,
        relative_error=_relative_error(saved.tensors, kept.tensors),
        left_out=tuple(other_files(source, CONFIG_NAME, WEIGHTS_NAME, target=target)),
    )


def unpack_adapter(file: str | Path, directory: str | Path) -> None:
    """Write the directory that a packed adapter was made from.

    Args:
        file: What `pack_adapter` wrote.
        directory: The directory to write; it must not exist or be empty.

    Raises:
        AdapterFileError: If the file is none, damaged, or of another kind.
        OutputExistsError: If the directory has something in it.
        SpecError: If nothing can be written there.
    """
    read_packed(Path(file)).write(Path(directory))


def read_packed(file: Path) -> SavedAdapter:
    """Read a packed adapter.

    Raises:
        AdapterFileError: If the file is none, damaged, or of another kind.
    """
    content = container.read(file)
    with container.naming(file):
        return from_container(content)


def to_container(saved: SavedAdapter) -> Container:
    """Return an adapter as what one file holds."""
    values = config_values(saved.config)
    metadata: JsonValue = None if saved.layout.metadata is None else dict(saved.layout.metadata)
    header: dict[str, JsonValue] = {"format": FORMAT, "metadata": metadata}
    # PEFT's own spelling follows from the values, which take less room.
    header |= (
        {"config": values} if _spelled(values) == saved.config else {"config_text": saved.config.decode()}
    )
    if saved.layout.header is not None:
        header["weights_header"] = saved.layout.header.decode()
    return Container(KIND, header, saved.tensors)


def from_container(content: Container) -> SavedAdapter:
    """Return the adapter that a container holds.

    Raises:
        AdapterFileError: If it holds something else.
    """
    if content.kind != KIND or content.blobs:
        raise AdapterFileError(
            f"this file holds '{content.kind}', not a packed adapter; choose another file."
        )
    header = dict(content.header)
    if header.pop("format", None) != FORMAT:
        raise AdapterFileError("the packed adapter has a format that is not known here; update rankfold.")
    config = _read_config(header)
    entries = tuple(TensorEntry.of(name, tensor) for name, tensor in content.tensors.items())
    metadata = _read_metadata(header.pop("metadata", None))
    match header:
        case {"weights_header": str() as spelled} if len(header) == 1:
            layout = read_layout(spelled.encode())
        case {} if not header:
            layout = Layout(entries, metadata)
        case _:
            raise _wrong(f"the entry '{min(header)}' is unknown")
    if (layout.entries, layout.metadata) != (entries, metadata):
        raise _wrong("what it says of its tensors differs")
    return SavedAdapter(config, layout, content.tensors)


def _read_config(header: dict[str, JsonValue]) -> bytes:
    """Take the configuration out of a header."""
    values, text = header.pop("config", None), header.pop("config_text", None)
    if isinstance(text, str) == isinstance(values, dict):
        raise _wrong("it has no configuration, or two")
    config = text.encode() if isinstance(text, str) else _spelled(values)
    config_values(config)
    return config


def _read_metadata(values: JsonValue) -> dict[str, str] | None:
    if values is None:
        return None
    if not isinstance(values, dict):
        raise _wrong("its metadata is not text")
    texts = {name: text for name, text in values.items() if isinstance(text, str)}
    if len(texts) != len(values):
        raise _wrong("its metadata is not text")
    return texts


def _spelled(values: JsonValue) -> bytes:
    """Return a configuration as PEFT writes it."""
    return json.dumps(values, indent=2, sort_keys=True).encode()


def _prove(saved: SavedAdapter, again: SavedAdapter) -> None:
    """Check, before anything is written, that both files come back byte for byte."""
    if again.config != saved.config or again.weights_file() != saved.weights_file():
        raise _wrong("it would not come back byte for byte")


def _relative_error(exact: Mapping[str, Tensor], rounded: Mapping[str, Tensor]) -> float:
    return max((_rms_error(tensor, rounded[name]) for name, tensor in exact.items()), default=0.0)


def _rms_error(exact: Tensor, rounded: Tensor) -> float:
    if exact.dtype == rounded.dtype:
        return 0.0
    wide = exact.double()
    size = wide.square().sum().sqrt().item()
    return (rounded.double() - wide).square().sum().sqrt().item() / size if size else 0.0


def _wrong(reason: str) -> AdapterFileError:
    return AdapterFileError(f"the packed adapter is wrong ({reason}); pack the adapter again.")
