"""A saved PEFT adapter in memory: what its directory says and holds, byte for byte."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast, final

import torch
from pydantic import JsonValue
from torch import Tensor

from rankfold.errors import AdapterFileError, OutputExistsError
from rankfold.files import check_writable, whole_folder, write_whole
from rankfold.store.header import parse
from rankfold.store.tensors import TensorEntry
from rankfold.store.weights import Layout, join, split

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"

_PICKLE_NAME = "adapter_model.bin"


@final
@dataclass(frozen=True, slots=True, eq=False)
class SavedAdapter:
    """What PEFT's `save_pretrained` wrote.

    Args:
        config: The text of `adapter_config.json`.
        layout: How the weights file spells its tensors.
        tensors: Their values by name.
    """

    config: bytes
    layout: Layout
    tensors: Mapping[str, Tensor]

    @classmethod
    def read(cls, folder: Path) -> "SavedAdapter":
        """Read an adapter's directory.

        Raises:
            AdapterFileError: If it is none, a file is damaged, or the weights are a pickle: none is opened.
        """
        for name in (CONFIG_NAME, WEIGHTS_NAME):
            if not (folder / name).is_file():
                raise _missing(folder, name)
        config = (folder / CONFIG_NAME).read_bytes()
        try:
            config_values(config)
            layout, tensors = split((folder / WEIGHTS_NAME).read_bytes())
        except AdapterFileError as error:
            raise AdapterFileError(f"'{folder}': {error}") from error
        return cls(config, layout, tensors)

    def write(self, folder: Path) -> None:
        """Write the adapter's directory, whole or not at all.

        Raises:
            OutputExistsError: If something is there already.
            SpecError: If nothing can be written there.
        """
        check = partial(_check_free, folder)
        check()
        check_writable(folder.resolve())
        with whole_folder(folder, check=check, last=CONFIG_NAME) as work:
            write_whole(work / CONFIG_NAME, self.config)
            write_whole(work / WEIGHTS_NAME, self.weights_file())

    def weights_file(self) -> bytes:
        """Return the bytes of `adapter_model.safetensors`."""
        return join(self.layout, self.tensors)

    def in_dtype(self, dtype: torch.dtype) -> "SavedAdapter":
        """Return the adapter with its floating-point tensors rounded to another type.

        Raises:
            AdapterFileError: If a value is too large for it.
        """
        rounded = {name: _rounded(name, tensor, dtype) for name, tensor in self.tensors.items()}
        entries = tuple(TensorEntry.of(name, tensor) for name, tensor in rounded.items())
        return SavedAdapter(self.config, Layout(entries, self.layout.metadata), rounded)

    @property
    def learned_bytes(self) -> int:
        """The bytes of the tensors' values."""
        return self.layout.payload_bytes


def config_values(config: bytes) -> dict[str, JsonValue]:
    """Return what an `adapter_config.json` says.

    Raises:
        AdapterFileError: If it is no strict JSON object, or names no method.
    """
    values = parse(config)
    if not isinstance(values, dict) or not isinstance(values.get("peft_type"), str):
        raise AdapterFileError(f"'{CONFIG_NAME}' names no method ('peft_type'); save the adapter again.")
    return cast("dict[str, JsonValue]", values)


def _rounded(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    rounded = tensor.to(dtype)
    if not torch.equal(rounded.isfinite(), tensor.isfinite()):
        raise AdapterFileError(f"'{name}' has values too large for {dtype}; keep more bits.")
    return rounded


def other_files(directory: Path, *known: str, target: Path | None = None) -> dict[str, int]:
    """Return name and size of a directory's files, at any depth.

    Args:
        directory: The directory.
        *known: Names that are left out.
        target: A file that is left out too, since it is going to be written.
    """
    written = None if target is None else target.resolve()
    names = {
        file.relative_to(directory).as_posix(): file
        for file in sorted(directory.rglob("*"))
        if file.is_file() and file.resolve() != written
    }
    return {name: file.lstat().st_size for name, file in names.items() if name not in known}


def _check_free(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputExistsError(f"'{folder}' exists; choose another directory, or remove it first.")


def _missing(folder: Path, name: str) -> AdapterFileError:
    if not folder.is_dir():
        return AdapterFileError(f"there is no folder '{folder}'; name one that holds a saved adapter.")
    if name == WEIGHTS_NAME and (folder / _PICKLE_NAME).exists():
        return AdapterFileError(
            f"'{folder}' has its weights in '{_PICKLE_NAME}', a pickle, which may run code when opened; "
            "save the adapter again with safetensors."
        )
    return AdapterFileError(f"'{folder}' has no {name}; name a directory that holds a saved adapter.")
