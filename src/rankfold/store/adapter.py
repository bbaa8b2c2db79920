"""A saved PEFT adapter in memory: its configuration and tensors, whatever it was read from."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import cast, final

import torch
from pydantic import JsonValue
from torch import Tensor

from rankfold.errors import AdapterFileError, OutputExistsError
from rankfold.files import check_writable, whole_folder, write_whole
from rankfold.store.header import parse
from rankfold.store.tensors import TensorEntry
from rankfold.store.weights import Layout, join

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"


@final
@dataclass(frozen=True, slots=True, eq=False)
class SavedAdapter:
    """The two files that PEFT's `save_pretrained` writes, as values; both can be written back byte for byte.

    Args:
        config: The text of `adapter_config.json`.
        layout: The order, types, shapes and metadata of the weights file.
        tensors: The values by name.
        source: The location it was read from, for messages.
    """

    config: bytes
    layout: Layout
    tensors: Mapping[str, Tensor]
    source: str = ""

    @property
    def config_values(self) -> dict[str, JsonValue]:
        """The configuration as JSON values.

        Raises:
            AdapterFileError: If it is no strict JSON object, or names no method.
        """
        return parse_config(self.config)

    @property
    def method(self) -> str:
        """PEFT's name of the method, in capitals."""
        return str(self.config_values["peft_type"])

    @property
    def modules_to_save(self) -> tuple[str, ...]:
        """The modules that were trained in full, such as a task head."""
        names = self.config_values.get("modules_to_save")
        return tuple(map(str, names)) if isinstance(names, list) else ()

    @property
    def sizes(self) -> dict[str, int]:
        """The bytes of each tensor's values, by name, in the order of the file."""
        return {entry.name: entry.bytes for entry in self.layout.entries}

    @property
    def learned_bytes(self) -> int:
        """The bytes of all tensors' values."""
        return self.layout.payload_bytes

    @property
    def title(self) -> str:
        """The adapter with its location, as messages name it."""
        return f"adapter '{self.source}'" if self.source else "the adapter"

    def sha256(self) -> dict[str, str]:
        """Return the SHA-256 of both files, by their names."""
        files = {CONFIG_NAME: self.config, WEIGHTS_NAME: self.weights_file()}
        return {name: sha256(content).hexdigest() for name, content in files.items()}

    def weights_file(self) -> bytes:
        """Return the bytes of `adapter_model.safetensors`."""
        return join(self.layout, self.tensors)

    def write(self, folder: Path) -> None:
        """Write the adapter as a PEFT folder, whole or not at all.

        Raises:
            OutputExistsError: If the folder exists and is not empty.
            SpecError: If nothing can be written there.
        """
        check = partial(_check_free, folder)
        check()
        check_writable(folder.resolve())
        with whole_folder(folder, check=check, last=CONFIG_NAME) as work:
            write_whole(work / CONFIG_NAME, self.config)
            write_whole(work / WEIGHTS_NAME, self.weights_file())

    def in_dtype(self, dtype: torch.dtype) -> "SavedAdapter":
        """Return the adapter with its floating-point tensors rounded to another type.

        Raises:
            AdapterFileError: If a value is too large for it.
        """
        return self.with_tensors({name: _round(name, tensor, dtype) for name, tensor in self.tensors.items()})

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "SavedAdapter":
        """Return the adapter with other tensors, in their order, as safetensors would write them."""
        entries = tuple(TensorEntry.of(name, tensor) for name, tensor in tensors.items())
        return replace(self, layout=Layout(entries, self.layout.metadata), tensors=tensors)


def parse_config(config: bytes) -> dict[str, JsonValue]:
    """Read the text of an `adapter_config.json`.

    Raises:
        AdapterFileError: If it is no strict JSON object, or names no method.
    """
    values = parse(config, CONFIG_NAME)
    if not isinstance(values, dict) or not isinstance(values.get("peft_type"), str):
        raise AdapterFileError(f"'{CONFIG_NAME}' names no method ('peft_type'); save the adapter again.")
    return cast("dict[str, JsonValue]", values)


def spell_config(values: JsonValue) -> bytes:
    """Return a configuration's text as PEFT writes it."""
    return json.dumps(values, indent=2, sort_keys=True).encode()


def relative_error(exact: SavedAdapter, changed: SavedAdapter) -> float:
    """Return the largest relative error of a tensor: RMS of its change over RMS of its values."""
    errors = (_rms_error(tensor, changed.tensors[name]) for name, tensor in exact.tensors.items())
    return max(errors, default=0.0)


def _rms_error(exact: Tensor, changed: Tensor) -> float:
    if not exact.is_floating_point():
        return 0.0
    wide = exact.double()
    size = wide.square().sum().sqrt().item()
    return (changed.double() - wide).square().sum().sqrt().item() / size if size else 0.0


def _round(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    narrow = tensor.to(dtype)
    if not torch.equal(narrow.isfinite(), tensor.isfinite()):
        raise AdapterFileError(f"'{name}' has values too large for {dtype}; keep more bits.")
    return narrow


def _check_free(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputExistsError(f"'{folder}' exists; choose another folder, or remove it first.")
