"""The record of one adapter in a store; `rankfold store list --json` prints it as JSON."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache
from math import isfinite
from typing import Annotated, Any, Literal, cast, final

from pydantic import AfterValidator, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError, with_config

from rankfold.errors import AdapterFileError, SpecError
from rankfold.store.container import checksum

FORMAT = 1
ROUNDED_FORMAT = 2
"""The format of a record whose adapter is stored in integers."""

MANIFEST_FORMAT = 3
"""The format of a record whose adapter has a manifest, rounded or not."""

BASIS_FORMAT = 4
"""The format of a record whose adapter needs a learned basis, with a manifest or without, rounded or not."""

FORMATS = (FORMAT, ROUNDED_FORMAT, MANIFEST_FORMAT, BASIS_FORMAT)

_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.@:=+/-]{0,254}$"
_TIME_PATTERN = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$"
TIME = "%Y-%m-%dT%H:%M:%SZ"
"""The spelling of `created`."""

NO_DIGEST = "0" * 32
"""The digest of a record before it is stored."""

_LABEL_LETTERS = 255
_EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)


def moment_of(text: str) -> datetime:
    """Read a time that is spelled as `TIME`.

    Raises:
        ValueError: If there is no such time, or it was before 1970.
    """
    try:
        moment = datetime.strptime(text, TIME).replace(tzinfo=UTC)
    except ValueError:
        moment = None
    if moment is None or moment < _EARLIEST:
        raise ValueError(f"'{text}' is no time since 1970")
    return moment


def _check_time(text: str) -> str:
    moment_of(text)
    return text


Name = Annotated[str, Field(pattern=_NAME)]
Text = Annotated[str, Field(max_length=_LABEL_LETTERS)]
Number = Annotated[float, Field(allow_inf_nan=False)]


@final
@with_config(ConfigDict(extra="forbid", strict=True))
@dataclass(frozen=True, slots=True)
class Record:
    """One adapter of a store, without its values.

    Args:
        name: Its key in the store.
        base: The base model's name as its configuration has it; "" if it has none.
        method: The preset, or PEFT's name of the method in lower case.
        bytes: The bytes of its tensors as they are stored.
        created: The time it was put, in UTC.
        digest: The checksum over all of it, in hexadecimal.
        tags: Texts to find it by, by key.
        metrics: Measured numbers, by name.
        format: 4 if it needs a learned basis; else 3 if it has a manifest; else 2 if it is in integers,
            or 1.
    """

    name: Name
    base: str
    method: str
    bytes: Annotated[int, Field(ge=0)]
    created: Annotated[str, Field(pattern=_TIME_PATTERN), AfterValidator(_check_time)]
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    tags: Mapping[Name, Text] = field(default_factory=dict[str, str])
    metrics: Mapping[Name, Number] = field(default_factory=dict[str, float])
    format: Literal[1, 2, 3, 4] = FORMAT

    def to_dict(self) -> dict[str, JsonValue]:
        """Return the record as JSON values."""
        return cast("dict[str, JsonValue]", asdict(self))

    @classmethod
    def from_dict(cls, values: JsonValue) -> "Record":
        """Read a record from JSON values, strictly.

        Raises:
            AdapterFileError: If a field is missing, unknown, or of another type, or there is no such time.
        """
        try:
            return _adapter().validate_json(json.dumps(values))
        except ValidationError as error:
            faults = "; ".join(
                f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()
            )
            raise AdapterFileError(f"this is no record ({faults}); export it again.") from error


def schema() -> dict[str, Any]:
    """Return the JSON schema of a record."""
    values = _adapter().json_schema()
    for field_name in ("tags", "metrics"):
        # pydantic leaves this out, although it refuses other names.
        values["properties"][field_name]["additionalProperties"] = False
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **values}


def check_labels(name: str, tags: Mapping[str, str], metrics: Mapping[str, float]) -> None:
    """Check the name, the tags and the metrics of a record.

    Raises:
        SpecError: If a name has other letters, a text is too long, or a number is not finite.
    """
    for key in (name, *tags, *metrics):
        if not re.fullmatch(_NAME, key) or "//" in key or ".." in key:
            raise SpecError(
                f"'{key[:60]}' cannot be a name; use letters, digits and _.@:=+/-, without '..' or '//'."
            )
    for key, text in tags.items():
        if len(text) > _LABEL_LETTERS:
            raise SpecError(f"the tag '{key}' is longer than {_LABEL_LETTERS} letters; shorten it.")
    for key, number in metrics.items():
        if not isfinite(number):
            raise SpecError(f"the metric '{key}' is {number}; give a finite number.")


def digest_of(record: Record, blobs: Sequence[bytes], parts: Sequence[tuple[int, bytes]]) -> str:
    """Return the checksum over everything that makes up a record.

    Args:
        record: The record; its size follows from the rest, and its own digest is left out.
        blobs: The compressed columns of its row and of that of its family.
        parts: The position and the hash of each part.
    """
    fields = (record.format, record.name, record.base, record.method, record.created)
    labels = (dict(record.tags), dict(record.metrics))
    digests = [checksum(blob).hex() for blob in blobs]
    uses = [(position, digest.hex()) for position, digest in parts]
    return checksum(json.dumps((*fields, *labels, digests, uses)).encode()).hex()


@cache
def _adapter() -> TypeAdapter[Record]:
    return TypeAdapter(Record)
