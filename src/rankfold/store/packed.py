"""The packed form of an adapter: a PEFT folder as the content of one container, and back byte for byte.

A tensor that equals an earlier one is stored once. A file that needs this, or is in integers, has
format 2, one with a manifest format 3; both are refused by rankfold 0.1. Any other has format 1.
"""

from collections.abc import Mapping
from itertools import islice

from pydantic import JsonValue
from torch import Tensor

from rankfold.errors import AdapterFileError
from rankfold.store.adapter import SavedAdapter, parse_config, spell_config
from rankfold.store.container import Container
from rankfold.store.rounding import grid_of
from rankfold.store.tensors import TensorEntry, check_name, copies_of
from rankfold.store.weights import Layout, read_layout

TYPE = "adapter"

MOST_COPIED_BYTES = 2 << 30
"""How many bytes the copies may take in the weights file; a few bytes could ask for any number."""

_FORMATS = (1, 2, 3)


def to_container(adapter: SavedAdapter) -> Container:
    """Return an adapter as the content of one file."""
    values = adapter.config_values
    metadata: JsonValue = None if adapter.layout.metadata is None else dict(adapter.layout.metadata)
    copies = _copies(adapter.tensors)
    header: dict[str, JsonValue] = {"format": _format_of(adapter, copies), "metadata": metadata}
    # PEFT's own spelling follows from the values, which take less room.
    header |= (
        {"config": values}
        if spell_config(values) == adapter.config
        else {"config_text": adapter.config.decode()}
    )
    if adapter.manifest_text is not None:
        header["manifest"] = adapter.manifest_text.decode()
    if adapter.certificate_text is not None:
        header["certificate"] = adapter.certificate_text.decode()
    if adapter.layout.header is not None:
        header["weights_header"] = adapter.layout.header.decode()
    if copies:
        index = {name: position for position, name in enumerate(adapter.tensors)}
        header["copies"] = [[index[name], name, index[first]] for name, first in copies.items()]
    tensors = {name: tensor for name, tensor in adapter.tensors.items() if name not in copies}
    return Container(TYPE, header, tensors)


def from_container(container: Container) -> SavedAdapter:
    """Return the adapter that a container holds, in integers if it was packed in it.

    Raises:
        AdapterFileError: If it holds something else, or contradicts itself.
    """
    if container.type == "shrunk":
        raise AdapterFileError(
            "this file was written by `rankfold size --shrink` of rankfold 0.1, which alone can expand it; "
            "expand it with that version, then pack the adapter."
        )
    if container.type != TYPE:
        raise AdapterFileError(
            f"this file holds '{container.type}', not a packed adapter; choose another file."
        )
    header = dict(container.header)
    if header.pop("format", None) not in _FORMATS:
        raise AdapterFileError("the packed adapter has a format that is not known here; update rankfold.")
    config, manifest = _read_config(header), _read_text(header, "manifest")
    certificate = _read_text(header, "certificate")
    metadata = _read_metadata(header.pop("metadata", None))
    tensors = _with_copies(container.tensors, header.pop("copies", []))
    entries = tuple(TensorEntry.of(name, tensor) for name, tensor in tensors.items())
    match header:
        case {"weights_header": str() as text} if len(header) == 1:
            layout = read_layout(text.encode())
        case {} if not header:
            layout = Layout(entries, metadata)
        case _:
            raise _wrong(f"the entry '{min(header)}' is unknown")
    if (layout.entries, layout.metadata) != (entries, metadata):
        raise _wrong("its header does not fit its tensors")
    adapter = SavedAdapter(config, layout, tensors, manifest_text=manifest, certificate_text=certificate)
    _ = adapter.manifest, adapter.certificate  # damaged ones are refused here
    if certificate is not None and grid_of(adapter) is None:
        raise _wrong("it has the certificate of a rounding, and is exact")
    return adapter


def _format_of(adapter: SavedAdapter, copies: Mapping[str, str]) -> int:
    if adapter.manifest_text is not None:
        return 3
    return 2 if copies or grid_of(adapter) else 1


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the copies among tensors with the name of the first; none if they are too large to be read."""
    copies = copies_of(tensors)
    size = sum(tensors[name].nbytes for name in copies)
    return copies if size <= MOST_COPIED_BYTES else {}


def _with_copies(tensors: Mapping[str, Tensor], copies: JsonValue) -> dict[str, Tensor]:
    """Return stored tensors and copies in their order.

    Args:
        tensors: The stored ones.
        copies: A list of `[position, name, position of the first]`, by position.
    """
    if not isinstance(copies, list):
        raise _wrong("its copies are no list")
    remaining = iter(tensors.items())
    pairs: list[tuple[str, Tensor]] = []
    size = 0
    for copy in copies:
        position, name, first = _read_copy(copy)
        pairs += islice(remaining, max(0, position - len(pairs)))
        if not 0 <= first < position == len(pairs):
            raise _wrong(f"'{name}' is no copy of an earlier tensor")
        pairs.append((name, pairs[first][1]))
        size += pairs[first][1].nbytes
    pairs += remaining
    if size > MOST_COPIED_BYTES or len(dict(pairs)) != len(pairs):
        raise _wrong("its copies take too many bytes, or have a name twice")
    return dict(pairs)


def _read_copy(values: JsonValue) -> tuple[int, str, int]:
    match values:
        case [int() as position, str() as name, int() as first] if type(position) is type(first) is int:
            check_name(name)
        case _:
            raise _wrong("an entry of its copies is not [position, name, position of the first]")
    return position, name, first


def _read_config(header: dict[str, JsonValue]) -> bytes:
    """Take the configuration out of a header."""
    values, text = header.pop("config", None), header.pop("config_text", None)
    if isinstance(text, str) == isinstance(values, dict):
        raise _wrong("it has no configuration, or two")
    config = text.encode() if isinstance(text, str) else spell_config(values)
    parse_config(config)
    return config


def _read_text(header: dict[str, JsonValue], name: str) -> bytes | None:
    """Take a text, the manifest or the certificate, out of a header."""
    text = header.pop(name, None)
    if text is not None and not isinstance(text, str):
        raise _wrong(f"its {name} is not text")
    return None if text is None else text.encode()


def _read_metadata(values: JsonValue) -> dict[str, str] | None:
    if values is None:
        return None
    if not isinstance(values, dict):
        raise _wrong("its metadata is not text")
    texts = {name: text for name, text in values.items() if isinstance(text, str)}
    if len(texts) != len(values):
        raise _wrong("its metadata is not text")
    return texts


def _wrong(reason: str) -> AdapterFileError:
    return AdapterFileError(f"the packed adapter is wrong ({reason}); pack the adapter again.")
