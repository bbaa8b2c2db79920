"""`rankfold size`: every byte of a saved adapter, of rankfold or of any other PEFT method."""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Literal, cast

import click
from safetensors import SafetensorError, safe_open

from rankfold.cli.console import print_json, print_table
from rankfold.cli.options import json_option
from rankfold.errors import AdapterFileError, SpecError

WEIGHTS_NAME = "adapter_model.safetensors"
CONFIG_NAME = "adapter_config.json"

_PREFIX_BYTES = 8
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_LEAVES = ("weight", "bias")
_OUR_PREFIX = "rankfold_"

Kind = Literal["factor", "head", "duplicate", "header", "padding"]


@dataclass(frozen=True, slots=True)
class Part:
    """Some bytes of the weights file and what they are for."""

    name: str
    kind: Kind
    tensors: int
    numbers: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Explanation:
    """The weights file taken apart; `parts` add up to `file_bytes`.

    Attributes:
        file: The weights file.
        file_bytes: Its size.
        learned_bytes: The bytes of adapter and task head, each tensor once.
        parts: What the file is made of, largest first within a kind.
        other_files: Name and size of what else lies in the adapter's directory.
    """

    file: str
    file_bytes: int
    learned_bytes: int
    parts: tuple[Part, ...]
    other_files: dict[str, int]


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    shape: tuple[int, ...]
    begin: int
    bytes: int


def explain(path: Path) -> Explanation:
    """Take a saved adapter apart.

    Args:
        path: A PEFT adapter directory or a `.safetensors` file.

    Raises:
        AdapterFileError: If the file is damaged, a pickle, or there is none.
        SpecError: If the path does not exist.
    """
    weights = _weights_file(path)
    size = weights.stat().st_size
    tensors, header, padding = _read_header(weights)
    heads = _head_modules(weights.with_name(CONFIG_NAME))
    parts = [
        *_tensor_parts(weights, tensors, heads, data_begin=_PREFIX_BYTES + header + padding),
        Part("names, shapes and offsets", "header", 0, 0, _PREFIX_BYTES + header),
        Part("alignment", "padding", 0, 0, padding),
    ]
    explained = sum(part.bytes for part in parts)
    if explained != size:
        raise AdapterFileError(
            f"'{weights}' has {size} bytes but describes {explained}; save the adapter again."
        )
    return Explanation(
        file=str(weights),
        file_bytes=size,
        learned_bytes=sum(part.bytes for part in parts if part.kind in ("factor", "head")),
        parts=tuple(part for part in parts if part.bytes),
        other_files=_other_files(path, weights) if path.is_dir() else {},
    )


def _weights_file(path: Path) -> Path:
    if not path.exists():
        raise SpecError(f"'{path}' does not exist; give an adapter directory or a .safetensors file.")
    found = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    if path.is_dir() and (path / WEIGHTS_NAME).is_file():
        found = [path / WEIGHTS_NAME]
    pickles = [
        file for file in ([path] if path.is_file() else sorted(path.iterdir())) if file.suffix in _PICKLES
    ]
    if pickles and (not found or path.is_file()):
        raise AdapterFileError(
            f"'{pickles[0]}' is a pickle, which can run code when it is opened, so it is not read; "
            "save the adapter again as safetensors."
        )
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise AdapterFileError(
            f"'{path}' should hold one .safetensors file but has: {names}; name the file itself."
        )
    return found[0]


def _read_header(weights: Path) -> tuple[list[_Tensor], int, int]:
    """Return the tensors in file order, the bytes of the header's text, and of its padding."""
    try:
        with safe_open(weights, framework="numpy"):  # checks lengths, offsets, overlaps and data types
            pass
        with weights.open("rb") as file:
            raw = file.read(int.from_bytes(file.read(_PREFIX_BYTES), "little"))
        entries = cast("dict[str, dict[str, list[int]]]", json.loads(raw))
    except (SafetensorError, OSError, ValueError) as error:
        raise AdapterFileError(
            f"'{weights}' is damaged or no safetensors file ({error}); save it again."
        ) from error
    tensors = [
        _Tensor(
            name,
            tuple(entry["shape"]),
            entry["data_offsets"][0],
            entry["data_offsets"][1] - entry["data_offsets"][0],
        )
        for name, entry in entries.items()
        if name != "__metadata__"
    ]
    text = len(raw.rstrip(b" "))
    return sorted(tensors, key=lambda tensor: tensor.begin), text, len(raw) - text


def _head_modules(config: Path) -> tuple[str, ...]:
    if not config.is_file():
        return ()
    try:
        read = json.loads(config.read_bytes())
    except ValueError as error:
        raise AdapterFileError(
            f"'{config}' is damaged ({error}); restore it or save the adapter again."
        ) from error
    return (
        tuple(cast("dict[str, list[str] | None]", read).get("modules_to_save") or ())
        if isinstance(read, dict)
        else ()
    )


def _tensor_parts(
    weights: Path, tensors: list[_Tensor], heads: tuple[str, ...], *, data_begin: int
) -> list[Part]:
    groups: dict[tuple[Kind, str], list[_Tensor]] = {}
    seen: set[tuple[tuple[int, ...], bytes]] = set()
    with weights.open("rb") as file:
        for tensor in tensors:
            digest, is_zero = _digest(file, data_begin + tensor.begin, tensor.bytes)
            # Untrained factors are all zero and therefore equal without being copies.
            is_copy = (tensor.shape, digest) in seen and not is_zero
            seen.add((tensor.shape, digest))
            kind, name = _group(tensor.name, heads)
            groups.setdefault(("duplicate", f"{name}, again") if is_copy else (kind, name), []).append(tensor)
    order: dict[Kind, int] = {"factor": 0, "head": 1, "duplicate": 2}
    parts = [
        Part(name, kind, len(group), sum(math.prod(t.shape) for t in group), sum(t.bytes for t in group))
        for (kind, name), group in groups.items()
    ]
    return sorted(parts, key=lambda part: (order[part.kind], -part.bytes, part.name))


def _group(name: str, heads: tuple[str, ...]) -> tuple[Kind, str]:
    """Return what a tensor is, from the place in the model that its name spells."""
    places = name.split(".")
    for head in heads:
        if head in places:
            return "head", head
    while len(places) > 1 and places[-1] in _LEAVES:
        places.pop()
    ours = next(
        (index for index, place in enumerate(places) if place.startswith(_OUR_PREFIX)), len(places) - 1
    )
    return "factor", ".".join(places[ours:]).removeprefix(_OUR_PREFIX)


def _digest(file: BinaryIO, begin: int, count: int) -> tuple[bytes, bool]:
    """Return the hash of some bytes, and whether all are zero."""
    digest, is_zero = hashlib.sha256(), True
    file.seek(begin)
    for block in _blocks(file, count):
        digest.update(block)
        is_zero = is_zero and not any(block)
    return digest.digest(), is_zero


def _blocks(file: BinaryIO, count: int, block: int = 1 << 20) -> Iterator[bytes]:
    while count > 0 and (data := file.read(min(count, block))):
        count -= len(data)
        yield data


def _other_files(directory: Path, weights: Path) -> dict[str, int]:
    files = (file for file in sorted(directory.rglob("*")) if file.is_file() and file != weights)
    return {file.relative_to(directory).as_posix(): file.lstat().st_size for file in files}


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@json_option
def command(path: Path, *, as_json: bool) -> None:
    """Explain every byte of a saved adapter: PATH is its directory or its .safetensors file."""
    explanation = explain(path)
    if as_json:
        print_json(asdict(explanation))
        return
    total = explanation.file_bytes
    rows = [
        [
            part.name,
            part.kind,
            f"{part.tensors:,}" if part.tensors else "",
            f"{part.numbers:,}" if part.tensors else "",
            f"{part.bytes:,}",
            f"{part.bytes / total:.1%}",
        ]
        for part in explanation.parts
    ]
    rows.append(["whole file", "", "", "", f"{total:,}", "100.0%"])
    learned = explanation.learned_bytes
    print_table(
        ["part", "kind", "tensors", "numbers", "bytes", "share"],
        rows,
        title=explanation.file,
        left=(0, 1),
        caption=f"learned: {learned:,} bytes; everything else in this file: {total - learned:,} bytes",
    )
    if explanation.other_files:
        others = [[name, f"{size:,}"] for name, size in explanation.other_files.items()]
        others.append(["directory", f"{total + sum(explanation.other_files.values()):,}"])
        print_table(["other files", "bytes"], others)
