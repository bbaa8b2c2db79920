"""Where the bytes of a saved adapter go: a PEFT directory of any method, or one of rankfold's own files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, final

from rankfold.store import container, packed, shrunk
from rankfold.store.contents import (
    Contents,
    TensorKind,
    kind_of,
    read_contents,
    role_of,
    understand,
)
from rankfold.store.hints import hints
from rankfold.store.peft_config import SavedConfig, parse_config
from rankfold.store.rounding import kept_bytes
from rankfold.store.saved import other_files
from rankfold.store.weights_file import WeightsFile

Kind = TensorKind | Literal["header", "padding"]

_KINDS: tuple[Kind, ...] = ("factor", "head", "frozen", "regenerable", "duplicate", "header", "padding")


@final
@dataclass(frozen=True, slots=True)
class Part:
    """Some bytes of a file and what they are for.

    Args:
        name: What they are: a role, a head, a single tensor, or what lies around the tensors.
        kind: Whether they were learned; if not, why they are there.
        tensors: How many tensors; 0 for what lies around them.
        numbers: How many numbers these hold.
        bytes: How many bytes.
    """

    name: str
    kind: Kind
    tensors: int
    numbers: int
    bytes: int


@final
@dataclass(frozen=True, slots=True)
class Explanation:
    """A file taken apart; `parts`, and as well `tensors`, add up to `file_bytes`.

    Args:
        file: The file.
        file_bytes: Its size.
        method: PEFT's name of the method; empty if nothing says it.
        bytes_by_kind: The bytes of each kind that there is.
        learned_bytes: The bytes of adapter and task head, each tensor once.
        shrinkable_bytes: What `--shrink` leaves out: equal tensors, and what follows from a seed anywhere.
        hints: What cannot be said for certain, or needs an option: each a sentence.
        parts: What the file is made of, in groups.
        tensors: The same, tensor by tensor.
        other_files: Name and size of what else lies in the adapter's directory.
    """

    file: str
    file_bytes: int
    method: str
    bytes_by_kind: Mapping[str, int]
    learned_bytes: int
    shrinkable_bytes: int
    hints: tuple[str, ...]
    parts: tuple[Part, ...]
    tensors: tuple[Part, ...]
    other_files: Mapping[str, int]


def explain(path: Path) -> Explanation:
    """Take a saved adapter apart.

    Args:
        path: A PEFT adapter directory, a `.safetensors` file, or a file that rankfold packed or shrank.

    Raises:
        AdapterFileError: If the file is damaged, a pickle, or there is none.
        SpecError: If the path does not exist.
    """
    if path.is_file() and _is_ours(path):
        return _explain_container(path)
    contents = read_contents(path)
    file = contents.file.path
    header = contents.file.layout.header_bytes()
    text = len(header.rstrip(b" "))
    around = [
        Part("names, shapes and offsets", "header", 0, 0, text),
        Part("alignment", "padding", 0, 0, len(header) - text),
    ]
    found = _explanation(file, contents.config, [*_tensor_parts(contents), *around])
    return replace(
        found,
        shrinkable_bytes=_shrinkable_bytes(contents),
        hints=hints(contents),
        other_files=other_files(path, file.name) if path.is_dir() else {},
    )


def _is_ours(file: Path) -> bool:
    with container.naming(file), file.open("rb") as opened:
        return opened.read(len(container.MAGIC)) == container.MAGIC


def _explain_container(file: Path) -> Explanation:
    """Take one of rankfold's own files apart."""
    content = container.read(file)
    with container.naming(file):
        if content.kind == shrunk.KIND:
            config, tensors = _shrunk_parts(shrunk.parse_shrunk(content.header), file)
        else:
            saved = packed.from_container(content)
            config = parse_config(saved.config, file)
            tensors = _tensor_parts(understand(WeightsFile(file, saved.layout, saved.tensors), config))
    around = file.stat().st_size - sum(part.bytes for part in tensors)
    return _explanation(
        file, config, [*tensors, Part("names, configuration and checksum", "header", 0, 0, around)]
    )


def _shrunk_parts(says: shrunk.Shrunk, file: Path) -> tuple[SavedConfig, list[Part]]:
    config = parse_config(says.config.encode(), file)
    parts: list[Part] = []
    for entry in says.kept():
        kind, size = kind_of(entry.name, config), kept_bytes(entry, says.rounding)
        parts.append(Part(entry.name, kind, 1, entry.numbers, size))
    return config, parts


def _tensor_parts(contents: Contents) -> list[Part]:
    return [
        Part(entry.name, kind, 1, entry.numbers, entry.bytes)
        for entry, kind in zip(contents.file.entries, contents.kinds(), strict=True)
    ]


def _shrinkable_bytes(contents: Contents) -> int:
    made = {place for proof in contents.proofs if proof.recipe.portable for place in proof.recipe.tensors}
    return sum(
        entry.bytes
        for place, entry in enumerate(contents.file.entries)
        if place in made or contents.firsts[place] != place
    )


def _explanation(file: Path, config: SavedConfig, tensors: Sequence[Part]) -> Explanation:
    groups: dict[tuple[Kind, str], list[Part]] = {}
    for part in tensors:
        role = role_of(part.name, config) if part.tensors else part.name
        name = f"{role}, again" if part.kind == "duplicate" else role
        groups.setdefault((part.kind, name), []).append(part)
    parts = (_sum(name, kind, group) for (kind, name), group in groups.items())
    by_kind = {kind: sum(part.bytes for part in tensors if part.kind == kind) for kind in _KINDS}
    return Explanation(
        file=str(file),
        file_bytes=sum(part.bytes for part in tensors),
        method=config.peft_type,
        bytes_by_kind={kind: size for kind, size in by_kind.items() if size},
        learned_bytes=by_kind["factor"] + by_kind["head"],
        shrinkable_bytes=0,
        hints=(),
        parts=tuple(sorted((part for part in parts if part.bytes), key=_rank)),
        tensors=tuple(part for part in tensors if part.bytes),
        other_files={},
    )


def _sum(name: str, kind: Kind, group: Sequence[Part]) -> Part:
    return Part(
        name,
        kind,
        sum(part.tensors for part in group),
        sum(part.numbers for part in group),
        sum(part.bytes for part in group),
    )


def _rank(part: Part) -> tuple[int, int, str]:
    """Return what parts are sorted by: by kind, and the largest of a kind first."""
    return _KINDS.index(part.kind), -part.bytes, part.name
