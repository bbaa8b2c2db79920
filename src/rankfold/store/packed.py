"""The packed form of an adapter: a PEFT folder as the content of one container, and back byte for byte."""

from pydantic import JsonValue

from rankfold.errors import AdapterFileError
from rankfold.store.adapter import SavedAdapter, parse_config, spell_config
from rankfold.store.container import Container
from rankfold.store.tensors import TensorEntry
from rankfold.store.weights import Layout, read_layout

KIND = "adapter"
FORMAT = 1


def to_container(saved: SavedAdapter) -> Container:
    """Return an adapter as what one file holds."""
    values = saved.config_values
    metadata: JsonValue = None if saved.layout.metadata is None else dict(saved.layout.metadata)
    header: dict[str, JsonValue] = {"format": FORMAT, "metadata": metadata}
    # PEFT's own spelling follows from the values, which take less room.
    header |= (
        {"config": values} if spell_config(values) == saved.config else {"config_text": saved.config.decode()}
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
    config = text.encode() if isinstance(text, str) else spell_config(values)
    parse_config(config)
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


def _wrong(reason: str) -> AdapterFileError:
    return AdapterFileError(f"the packed adapter is wrong ({reason}); pack the adapter again.")
