"""A saved PEFT adapter in memory: its configuration and tensors, whatever it was read from."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import cast, final

from pydantic import JsonValue
from torch import Tensor

from rankfold.errors import AdapterFileError, OutputExistsError
from rankfold.files import CONFIG_NAME, WEIGHTS_NAME, check_writable, whole_folder, write_whole
from rankfold.store.certificate import RoundingCertificate
from rankfold.store.manifest import MANIFEST_NAME, Manifest
from rankfold.store.strict_json import parse
from rankfold.store.weights import Layout, join

_SHOWN_DIGITS = 8


@final
@dataclass(frozen=True, slots=True, eq=False)
class SavedAdapter:
    """The files of an adapter's folder as values; all can be written back byte for byte.

    Args:
        config: The text of `adapter_config.json`.
        layout: The order, types, shapes and metadata of the weights file.
        tensors: The values by name.
        source: The location it was read from, for messages.
        manifest_text: The text of `rankfold.json`; None if there is none, as PEFT itself writes none.
        certificate_text: The certificate of its rounding, for one that is in integers.
    """

    config: bytes
    layout: Layout
    tensors: Mapping[str, Tensor]
    source: str = ""
    manifest_text: bytes | None = None
    certificate_text: bytes | None = None

    @property
    def certificate(self) -> RoundingCertificate | None:
        """The measured change by its rounding; None if it is not in integers, or was not measured.

        Raises:
            AdapterFileError: If the text is no certificate.
        """
        text = self.certificate_text
        return None if text is None else RoundingCertificate.from_json(text)

    @property
    def manifest(self) -> Manifest | None:
        """The manifest of its training; None if it was not trained by `rankfold train`.

        Raises:
            AdapterFileError: If the text is no manifest.
        """
        return None if self.manifest_text is None else Manifest.from_json(self.manifest_text)

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
        """Return the SHA-256 of configuration and weights file, by their names."""
        files = {CONFIG_NAME: self.config, WEIGHTS_NAME: self.weights_file()}
        return {name: sha256(content).hexdigest() for name, content in files.items()}

    def weights_file(self) -> bytes:
        """Return the bytes of `adapter_model.safetensors`."""
        return join(self.layout, self.tensors)

    def check_weights(self) -> None:
        """Check that the weights are those that the manifest was written for, if there is one.

        Raises:
            AdapterFileError: If they are not, or the manifest is none.
        """
        digest = None if (manifest := self.manifest) is None else manifest.weights_sha256
        if digest is not None and digest != sha256(self.weights_file()).hexdigest():
            raise AdapterFileError(
                f"the weights of {self.title} have changed since they were saved: {MANIFEST_NAME} has the "
                f"digest {digest[:_SHOWN_DIGITS]}… of others; copy the adapter again or, if you changed them "
                f"yourself, remove {MANIFEST_NAME}."
            )

    def check_finite(self) -> None:
        """Check that every number is finite: with others no output is one.

        Raises:
            AdapterFileError: If some are not; it names the first such tensor.
        """
        for name, tensor in self.tensors.items():
            # Eight-bit types do not know which of their numbers are finite.
            wide = tensor.float() if tensor.is_floating_point() and tensor.itemsize == 1 else tensor
            if not (is_finite := wide.isfinite()).all():
                raise AdapterFileError(
                    f"{self.title} is of no use: '{name}' has {int((~is_finite).sum()):,} values that are "
                    "not finite (NaN or infinite); restore the file, or train with a lower learning rate."
                )

    def with_manifest(self, manifest: Manifest | None) -> "SavedAdapter":
        """Return the adapter with another manifest, or with none."""
        return replace(self, manifest_text=None if manifest is None else manifest.to_json())

    def with_digest_of(self, weights: "SavedAdapter") -> "SavedAdapter":
        """Return the adapter with the digest of an adapter's weights in its manifest, if it has one."""
        if (manifest := self.manifest) is None or manifest.weights_sha256 is None:
            return self
        return self.with_manifest(manifest.with_weights(sha256(weights.weights_file()).hexdigest()))

    def write(self, folder: Path) -> None:
        """Write the adapter as a PEFT folder, whole or not at all; the manifest beside it, if it has one.

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
            if self.manifest_text is not None:
                write_whole(work / MANIFEST_NAME, self.manifest_text)


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


def _check_free(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputExistsError(f"'{folder}' exists; choose another folder, or remove it first.")
