"""Explain every byte of a saved adapter, in any form and of any PEFT method: learned, copied, or overhead."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, final

from torch import Tensor

from rankfold.store import container
from rankfold.store.adapter import CONFIG_NAME, WEIGHTS_NAME, SavedAdapter
from rankfold.store.basis import digests_in, size_of
from rankfold.store.certificate import RoundingCertificate
from rankfold.store.manifest import MANIFEST_NAME
from rankfold.store.rounding import rounded_entries
from rankfold.store.saved import open_adapter, open_stored, other_files
from rankfold.store.tensors import TensorEntry, bytes_of, copies_of

PartType = Literal["factor", "head", "scale", "frozen", "duplicate", "header", "padding"]

_TYPES: tuple[PartType, ...] = ("factor", "head", "scale", "frozen", "duplicate", "header", "padding")
_SCALES = "scales"
_LEAVES = ("weight", "bias")
_BASE_WEIGHT = ".base_layer.weight"
_OUR_PREFIX = "rankfold_"

# Tensors that PEFT saves although the method never trains them.
_FROZEN = {
    "ADAMSS": ("adamss_newB",),
    "DELORA": ("delora_w_norm",),
    "FROD": ("frod_V", "frod_s_size", "frod_s_indices"),
    "PVERA": ("pvera_A", "pvera_B"),
    "RANDLORA": ("randlora_A", "randlora_B"),
    "SHIRA": ("shira_indices",),
    "TINYLORA": ("tinylora_A", "tinylora_B", "tinylora_P"),
    "UNILORA": ("unilora_indices_A", "unilora_indices_B", "unilora_scales_A", "unilora_scales_B"),
    "VERA": ("vera_A", "vera_B"),
}


@final
@dataclass(frozen=True, slots=True)
class Part:
    """Some bytes of a file and their purpose.

    Args:
        name: A role, a head, a single tensor, or the overhead around the tensors.
        type: Whether they were learned; if not, why they are there.
        tensors: How many tensors; 0 for overhead.
        numbers: How many numbers these hold.
        bytes: How many bytes.
        stored_as: The type that the numbers are stored in, such as F32 or int4; "" for overhead.
    """

    name: str
    type: PartType
    tensors: int
    numbers: int
    bytes: int
    stored_as: str = ""


@final
@dataclass(frozen=True, slots=True)
class Explanation:
    """A file taken apart; `parts`, and as well `tensors`, add up to `file_bytes`.

    Args:
        file: The weights file, the packed file, or the store's record.
        file_bytes: Its size; of a record, that of its weights file as it is stored.
        method: PEFT's name of the method.
        bytes_by_type: The bytes of each type of part that occurs.
        learned_bytes: The bytes of adapter and task head with their scales, each tensor once.
        parts: The file's parts in groups.
        tensors: The file's parts tensor by tensor.
        other_files: Sizes of the other files in the adapter's folder.
        certificate: The measured change by its rounding, if it has one.
        bases: Bytes of the learned bases that it needs, which adapters share, by digest; None if not at hand.
    """

    file: str
    file_bytes: int
    method: str
    bytes_by_type: Mapping[str, int]
    learned_bytes: int
    parts: tuple[Part, ...]
    tensors: tuple[Part, ...]
    other_files: Mapping[str, int]
    certificate: RoundingCertificate | None = None
    bases: Mapping[str, int | None] = field(default_factory=dict[str, int | None])


def explain(location: Path) -> Explanation:
    """Take a saved adapter apart.

    Args:
        location: As for `open_adapter`.

    Raises:
        AdapterFileError: If there is no adapter, a file is damaged, or its weights are a pickle.
        SpecError: If the store has no record of this name.
        StoreError: If the store cannot be read.
    """
    open_adapter(location)  # every check of its numbers
    adapter = open_stored(location)
    tensors = adapter.tensors
    if container.is_container(location):
        # Without the copies, which are left out.
        tensors = container.read(location).tensors
        size = location.stat().st_size - sum(len(bytes_of(tensor)) for tensor in tensors.values())
        overhead = [Part("names, configuration and checksum", "header", 0, 0, size)]
    else:
        header = adapter.layout.header_bytes()
        text = len(header.rstrip(b" "))
        overhead = [
            Part("names, shapes and offsets", "header", 0, 0, text),
            Part("alignment", "padding", 0, 0, len(header) - text),
        ]
    parts = [*_tensor_parts(adapter, tensors), *overhead]
    if not location.is_dir():
        return _explain(str(location), adapter, parts, {})
    files = {CONFIG_NAME: len(adapter.config)}
    if adapter.manifest_text is not None:
        files[MANIFEST_NAME] = len(adapter.manifest_text)
    files |= other_files(location)
    return _explain(str(location / WEIGHTS_NAME), adapter, parts, files)


def _tensor_parts(adapter: SavedAdapter, tensors: Mapping[str, Tensor]) -> list[Part]:
    copies = copies_of(tensors)
    entries = dict(rounded_entries(adapter))
    parts: list[Part] = []
    for name, tensor in tensors.items():
        type_ = "duplicate" if name in copies else _type_of(name, adapter)
        plain_entry, entry = TensorEntry.of(name, tensor), entries[name]
        if entry is None:
            parts.append(Part(name, type_, 1, plain_entry.numbers, plain_entry.bytes, plain_entry.dtype))
            continue
        parts.append(Part(name, type_, 1, entry.numbers, entry.step_bytes, entry.grid.name))
        type_ = type_ if type_ in ("duplicate", "frozen") else "scale"
        parts.append(Part(f"{name}.{_SCALES}", type_, 1, entry.blocks, entry.scale_bytes, "BF16"))
    return parts


def _type_of(name: str, adapter: SavedAdapter) -> PartType:
    """Return the type of a tensor, as far as its name shows it."""
    if _head_of(name, adapter):
        return "head"
    frozen = _FROZEN.get(adapter.method, ())
    # PEFT saves the base model's embeddings beside adapters on them.
    return (
        "frozen" if name.endswith(_BASE_WEIGHT) or not set(frozen).isdisjoint(name.split(".")) else "factor"
    )


def _role_of(name: str, adapter: SavedAdapter) -> str:
    """Return the role of a tensor in its layer, from the module path in its name."""
    if head := _head_of(name, adapter):
        return head
    parts = [part for part in name.split(".") if not part.isdigit()]
    if parts[-1] == _SCALES:
        return _SCALES
    while len(parts) > 1 and parts[-1] in _LEAVES:
        parts.pop()
    prefixes = (_OUR_PREFIX, f"{adapter.method.lower()}_")
    begin = next((index for index, part in enumerate(parts) if part.startswith(prefixes)), len(parts) - 1)
    return ".".join(parts[begin:]).removeprefix(_OUR_PREFIX)


def _head_of(name: str, adapter: SavedAdapter) -> str | None:
    parts = name.split(".")
    return next((head for head in adapter.modules_to_save if head in parts), None)


def _explain(
    file: str, adapter: SavedAdapter, tensors: Sequence[Part], files: Mapping[str, int]
) -> Explanation:
    groups: dict[tuple[PartType, str, str], list[Part]] = {}
    for part in tensors:
        role = _role_of(part.name, adapter) if part.tensors else part.name
        name = f"{role}, again" if part.type == "duplicate" else role
        groups.setdefault((part.type, name, part.stored_as), []).append(part)
    parts = (_sum(*key, group) for key, group in groups.items())
    by_type = {type_: sum(part.bytes for part in tensors if part.type == type_) for type_ in _TYPES}
    return Explanation(
        file=file,
        file_bytes=sum(part.bytes for part in tensors),
        method=adapter.method,
        bytes_by_type={type_: size for type_, size in by_type.items() if size},
        learned_bytes=by_type["factor"] + by_type["head"] + by_type["scale"],
        parts=tuple(sorted(_nonempty(parts), key=_sort_key)),
        tensors=tuple(_nonempty(tensors)),
        other_files=files,
        certificate=adapter.certificate,
        bases={digest: size_of(digest) for digest in digests_in(adapter.config_values)},
    )


def _sum(type_: PartType, name: str, stored_as: str, group: Sequence[Part]) -> Part:
    return Part(
        name,
        type_,
        sum(part.tensors for part in group),
        sum(part.numbers for part in group),
        sum(part.bytes for part in group),
        stored_as,
    )


def _nonempty(parts: Iterable[Part]) -> list[Part]:
    return [part for part in parts if part.bytes]


def _sort_key(part: Part) -> tuple[int, int, str]:
    """Return the key that sorts parts by type, and the largest of a type first."""
    return _TYPES.index(part.type), -part.bytes, part.name
