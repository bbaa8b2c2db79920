"""What alike adapters share, stored once: the table of their tensors, and most of their configuration."""

import sqlite3
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import final

from pydantic import JsonValue

from rankfold.errors import AdapterFileError
from rankfold.store.adapter import SavedAdapter
from rankfold.store.container import checksum
from rankfold.store.header import MOST_BYTES, compress, expand, inflate
from rankfold.store.tensors import TensorEntry
from rankfold.store.weights import Layout, read_layout

_LEVEL = 9
_METHOD_OF_PRESETS = "RANKFOLD"


@final
@dataclass(frozen=True, slots=True)
class Kind:
    """What the adapters of one kind have in common.

    Args:
        base: The base model's name as their configurations have it; "" if they have none.
        method: The preset, or PEFT's name of the method in lower case.
        layout: How their weights files spell the tensors.
    """

    base: str
    method: str
    layout: Layout

    @classmethod
    def of(cls, saved: SavedAdapter) -> "Kind":
        """Return the kind of an adapter."""
        values = saved.config_values
        base, preset, peft_type = (
            values.get(key) for key in ("base_model_name_or_path", "preset", "peft_type")
        )
        by_preset = peft_type == _METHOD_OF_PRESETS and isinstance(preset, str)
        method = preset if by_preset else str(peft_type).lower()
        return cls(base if isinstance(base, str) else "", str(method), saved.layout)

    def to_json(self) -> dict[str, JsonValue]:
        """Return the kind as JSON values; `read_outline` is the way back."""
        layout = self.layout
        return {
            "base": self.base,
            "method": self.method,
            "tensors": [entry.to_json() for entry in layout.entries],
            "metadata": None if layout.metadata is None else dict(layout.metadata),
            "header": None if layout.header is None else layout.header.decode(),
        }


def put_kind(connection: sqlite3.Connection, kind: Kind, config: bytes) -> tuple[int, bytes, bytes, int]:
    """Store a kind, unless it is there.

    Args:
        connection: In a transaction that may write.
        kind: What to store.
        config: An adapter's configuration; the first of a kind is the template of the others.

    Returns:
        The kind's id, its outline and its template, both compressed, and the template's length.
    """
    outline, outline_bytes = compress(kind.to_json())
    digest = checksum(outline)
    known = connection.execute(
        "SELECT id, outline, template, template_bytes FROM kinds WHERE digest = ?", (digest,)
    ).fetchone()
    if known is not None:
        return known
    template = zlib.compress(config, _LEVEL)
    found = connection.execute(
        "INSERT INTO kinds (digest, base, method, outline, outline_bytes, template, template_bytes)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (digest, kind.base, kind.method, outline, outline_bytes, template, len(config)),
    ).lastrowid
    assert found is not None
    return found, outline, template, len(config)


@lru_cache(maxsize=1024)
def read_outline(outline: bytes, outline_bytes: int) -> tuple[Kind, bytes]:
    """Read a kind's outline; return it with its hash.

    Raises:
        AdapterFileError: If it is damaged.
    """
    match expand(outline, outline_bytes):
        case {
            "base": str() as base,
            "method": str() as method,
            "tensors": list() as tensors,
            "metadata": None | dict() as metadata,
            "header": None | str() as header,
            **rest,
        } if not rest:
            entries = tuple(map(TensorEntry.read, tensors))
            texts = None if metadata is None else {name: str(text) for name, text in metadata.items()}
        case _:
            raise AdapterFileError("a kind of adapters is damaged in the store; restore a copy.")
    layout = Layout(entries, texts) if header is None else read_layout(header.encode())
    if len({entry.name for entry in entries}) != len(entries) or layout.entries != entries:
        raise AdapterFileError("a kind of adapters contradicts itself in the store; restore a copy.")
    return Kind(base, method, layout), checksum(outline)


def deflate_config(config: bytes, template: bytes, template_bytes: int) -> bytes:
    """Return what a configuration adds to its kind's template; nothing if they are equal.

    Args:
        config: The configuration.
        template: The kind's template, compressed.
        template_bytes: How long that is said to be.
    """
    dictionary = _inflate_template(template, template_bytes)
    if config == dictionary:
        return b""
    stream = zlib.compressobj(_LEVEL, zdict=dictionary)
    return stream.compress(config) + stream.flush()


def inflate_config(delta: bytes, size: int, template: bytes, template_bytes: int) -> bytes:
    """Return the configuration that `deflate_config` was given.

    Args:
        delta: What it returned.
        size: How long the configuration is said to be.
        template: The kind's template, compressed.
        template_bytes: How long that is said to be.

    Raises:
        AdapterFileError: If either is damaged.
    """
    dictionary = _inflate_template(template, template_bytes)
    config = inflate(delta, _allowed(size), dictionary=dictionary) if delta else dictionary
    if len(config) != size:
        raise AdapterFileError("a configuration has not the length it says; restore a copy of the store.")
    return config


@lru_cache(maxsize=1024)
def _inflate_template(template: bytes, size: int) -> bytes:
    return inflate(template, _allowed(size))


def _allowed(size: int) -> int:
    if not 0 <= size <= MOST_BYTES:
        raise AdapterFileError(f"a configuration says {size:,} bytes; restore a copy of the store.")
    return size
