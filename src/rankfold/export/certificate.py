"""The certificate of an export: its files, their measured error, and the files they were made from."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, cast, final

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from rankfold.errors import AdapterFileError
from rankfold.files import sha256_of_file

FORMAT = 1
CERTIFICATE_NAME = "certificate.json"

Method = Literal["folded", "compressed", "merged"]
"""By algebra alone; by a truncated decomposition, which is approximate; or added to the base weights."""


@final
@dataclass(frozen=True, slots=True)
class LayerError:
    """The relative errors of one layer, and the rank it was written with.

    Args:
        name: The layer's name in the base model.
        rank: The rank of the written matrices; of a merged layer that of the adapter.
        fp32: Error of the update in float32; of a merged weight the share of the update that rounding takes.
        written: Error of the values in the files.
    """

    name: str
    rank: int
    fp32: float
    written: float


@final
@dataclass(frozen=True, slots=True)
class LogitsError:
    """The base with the export, as other programs load it, against the base with the adapter.

    Args:
        source: Name of the texts' data.
        texts: Number of texts.
        sha256: Hash of the texts.
        largest: The largest difference of a text's logits, relative to the size of all texts' logits.
        mean: The mean of these differences.
    """

    source: str
    texts: int
    sha256: str
    largest: float
    mean: float


@final
@dataclass(frozen=True, slots=True)
class LabelScale:
    """The scale of standardised labels in the task head of an export, whose outputs are in their unit.

    Args:
        head: Name of the linear layer in the base model.
        mean: The number that was added to its outputs; 0 for a head without a bias, which cannot hold it.
        std: The number that its outputs were multiplied by.
    """

    head: str
    mean: float
    std: float


@final
@dataclass(frozen=True, slots=True)
class BaseFiles:
    """The base model: its name and the hash of its weights, None where they were not at hand."""

    name: str | None
    sha256: str | None


@final
@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """The adapter: its location as it was named, and the hash of each of the files in its PEFT folder."""

    folder: str
    sha256: Mapping[str, str]


@final
@dataclass(frozen=True, slots=True)
class Certificate:
    """The measured promise of an export; `certificate.json` is this as JSON.

    Args:
        target: Name of the format.
        method: How the files were made. Folded and merged ones are exact up to the rounding that is stated.
        dtype: The dtype of the written weights.
        rank: The largest rank.
        layers: The error of every adapted layer.
        logits: The difference of the logits; None if they were not compared.
        logits_skipped: The reason that they were not.
        base: The base model.
        adapter: The adapter that was exported.
        result: Hash of each written file.
        versions: Versions of the programs that took part.
        label_scale: The scale of the labels that was folded into the task head; None if none was.
        format: Version of this record.
    """

    target: str
    method: Method
    dtype: str
    rank: int
    layers: tuple[LayerError, ...]
    logits: LogitsError | None
    logits_skipped: str | None
    base: BaseFiles
    adapter: AdapterFiles
    result: Mapping[str, str]
    versions: Mapping[str, str]
    label_scale: LabelScale | None = None
    format: Literal[1] = FORMAT

    @property
    def is_exact(self) -> bool:
        """Whether only rounding is between the adapter and the export."""
        return self.method != "compressed"

    @property
    def worst_fp32(self) -> LayerError:
        """The layer with the largest error in float32."""
        return max(self.layers, key=lambda layer: layer.fp32)

    @property
    def worst_written(self) -> LayerError:
        """The layer with the largest error in the files."""
        return max(self.layers, key=lambda layer: layer.written)

    def to_dict(self) -> dict[str, Any]:
        """Return the certificate as JSON values, the format first."""
        values = cast("dict[str, Any]", json.loads(json.dumps(asdict(self))))
        return {"format": values.pop("format"), **values}


def read_certificate(folder: Path) -> Certificate:
    """Return the certificate of an export.

    Raises:
        AdapterFileError: If there is none, or it is damaged.
    """
    path = folder / CERTIFICATE_NAME
    if not folder.is_dir():
        raise AdapterFileError(f"there is no folder '{folder}'; name that of an export.")
    try:
        return _reader().validate_json(path.read_bytes())
    except OSError as error:
        raise AdapterFileError(
            f"'{folder}' has no {CERTIFICATE_NAME} that can be read; name the folder of an export."
        ) from error
    except ValidationError as error:
        fault = error.errors()[0]
        field = ".".join(str(part) for part in fault["loc"]) or "the file"
        raise AdapterFileError(
            f"'{path}' is damaged ({field}: {fault['msg']}); export the adapter again."
        ) from error


@cache
def _reader() -> Any:
    # Built on first use: it takes longer than reading.
    return TypeAdapter(with_config(ConfigDict(extra="forbid", strict=True))(Certificate))


def file_hashes(folder: Path) -> dict[str, str]:
    """Return the hash of each file of an export but its certificate."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != CERTIFICATE_NAME)
    return {path.relative_to(folder).as_posix(): sha256_of_file(path) for path in files}


def program_versions() -> dict[str, str]:
    """Return the versions of the programs that take part in an export."""
    return {name: version(name) for name in ("rankfold", "torch", "peft", "transformers", "safetensors")}
