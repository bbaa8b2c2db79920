"""The format of a shrunk adapter: what a PEFT directory holds, each thing once, and how to get it back."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal, final

import numpy as np
import torch
from pydantic import Field, JsonValue, TypeAdapter, ValidationError, with_config
from torch import Tensor

from rankfold.errors import AdapterFileError
from rankfold.store import container
from rankfold.store.container import Container, naming
from rankfold.store.draws import STRICT
from rankfold.store.regenerable import Proof, digest
from rankfold.store.rounding import Rounding, kept_bytes, restore
from rankfold.store.saved import SavedAdapter, config_values
from rankfold.store.tensors import TensorEntry
from rankfold.store.weights import read_layout

KIND = "shrunk"
FORMAT = 1
NUMBERS = "numbers"

MOST_BYTES = 2 << 30
"""How long an expanded weights file may be; a few hundred bytes could ask for any size."""

MOST_PROOFS = 64
"""How many recipes a file may have; a method has one for all layers, or one for each shape of layer."""


@final
@with_config(STRICT)
@dataclass(frozen=True, slots=True)
class Shrunk:
    """What the header of a shrunk adapter says.

    Args:
        format: Version of this layout.
        weights_sha256: Of the weights file that was shrunk.
        expanded_sha256: Of the weights file that comes back: the same unless numbers were rounded.
        rounding: How numbers were rounded, if they were.
        errors: The largest relative error of each group of tensors, if they were.
        config: The text of the adapter's configuration.
        weights_header: The text of the header of the weights file.
        copies: Pairs of a tensor and the earlier one that it equals, by their places in the file.
        proofs: The tensors that are made again, and how.
        versions: What made and proved them.
    """

    format: Literal[1]
    weights_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    expanded_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    rounding: Rounding | None
    errors: Mapping[str, float]
    config: str
    weights_header: str
    copies: tuple[tuple[int, int], ...]
    proofs: Annotated[tuple[Proof, ...], Field(max_length=MOST_PROOFS)]
    versions: Mapping[str, str]

    def kept(self) -> list[TensorEntry]:
        """Return the tensors whose numbers are in the file, in its order.

        Raises:
            AdapterFileError: If it does not say, of each tensor once, where it comes from.
        """
        entries = read_layout(self.weights_header.encode()).entries
        made = [place for proof in self.proofs for place in proof.recipe.tensors]
        copied = {place for place, _ in self.copies}
        elsewhere = copied.union(made)
        if len(elsewhere) != len(self.copies) + len(made) or not elsewhere <= set(range(len(entries))):
            raise _wrong("a tensor comes from two places, or is not there")
        for place, source in self.copies:
            if (
                source in copied
                or not 0 <= source < place
                or entries[source].to_json()[1:] != entries[place].to_json()[1:]
            ):
                raise _wrong(f"'{entries[place].name}' is no copy of an earlier tensor")
        if sum(entry.bytes for entry in entries) > MOST_BYTES:
            raise _wrong(f"its tensors take more than {MOST_BYTES:,} bytes")
        return [entry for place, entry in enumerate(entries) if place not in elsewhere]

    def expand(self, numbers: memoryview) -> SavedAdapter:
        """Return the adapter, whose weights file has been compared with the hash of the one to come back.

        Args:
            numbers: The numbers of the kept tensors.

        Raises:
            AdapterFileError: If anything that it says does not fit the rest, or if this machine makes other
                numbers than the one that wrote the file.
        """
        kept = self.kept()
        if sum(kept_bytes(entry, self.rounding) for entry in kept) != len(numbers):
            raise _wrong("it has more or fewer numbers than its tensors")
        if self.rounding is None and self.expanded_sha256 != self.weights_sha256:
            raise _wrong("nothing was rounded, and yet another file is to come back")
        config_values(self.config.encode())
        layout = read_layout(self.weights_header.encode())
        found = self._make_all(layout.entries)
        begin = 0
        for entry in kept:
            end = begin + kept_bytes(entry, self.rounding)
            found[entry.name] = restore(entry, numbers[begin:end], self.rounding)
            begin = end
        for place, source in self.copies:
            found[layout.entries[place].name] = found[layout.entries[source].name]
        saved = SavedAdapter(self.config.encode(), layout, found)
        if sha256_of(saved.weights_file()) != self.expanded_sha256:
            raise _wrong("what comes back has another hash")
        return saved

    def _make_all(self, entries: tuple[TensorEntry, ...]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for proof in self.proofs:
            wanted = [entries[place] for place in proof.recipe.tensors]
            try:
                made = proof.make(wanted)
            except ValueError as error:
                raise _wrong(str(error)) from error
            if digest(made) != proof.sha256:
                raise _other_numbers(wanted[0].name, self.versions)
            found.update((entry.name, tensor) for entry, tensor in zip(wanted, made, strict=True))
        return found


_SHRUNK = TypeAdapter(Shrunk)


def to_container(shrunk: Shrunk, numbers: bytes) -> Container:
    """Return a shrunk adapter as what one file holds."""
    return Container(KIND, json.loads(json.dumps(asdict(shrunk))), {}, {NUMBERS: numbers})


def read_shrunk(file: Path) -> tuple[Shrunk, SavedAdapter]:
    """Read a shrunk adapter and expand it in memory.

    Raises:
        AdapterFileError: If the file is none, damaged, of another kind, or cannot be expanded here.
    """
    content = container.read(file)
    with naming(file):
        if content.kind != KIND or set(content.blobs) != {NUMBERS} or content.tensors:
            raise AdapterFileError(
                f"this file holds '{content.kind}', not a shrunk adapter; give one that --shrink wrote."
            )
        shrunk = parse_shrunk(content.header)
        return shrunk, shrunk.expand(memoryview(content.blobs[NUMBERS]))


def parse_shrunk(header: Mapping[str, JsonValue]) -> Shrunk:
    """Read what the header of a shrunk adapter says.

    Raises:
        AdapterFileError: If anything in it is wrong.
    """
    try:
        return _SHRUNK.validate_json(json.dumps(header))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise _wrong(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def versions() -> dict[str, str]:
    """Return what decides which numbers come of a seed."""
    instructions = torch.backends.cpu.get_cpu_capability()
    return {"torch": torch.__version__, "numpy": np.__version__, "processor": instructions}


def sha256_of(data: bytes) -> str:
    """Return the hash by which a file is known again."""
    return hashlib.sha256(data).hexdigest()


def _other_numbers(name: str, there: Mapping[str, str]) -> AdapterFileError:
    here, before = (
        ", ".join(f"{key} {value}" for key, value in sorted(each.items())) for each in (versions(), there)
    )
    return AdapterFileError(
        f"'{name}' was left out as a seed, and this machine ({here}) makes other numbers of it than the one "
        f"that wrote the file ({before}); expand it on one like that."
    )


def _wrong(reason: str) -> AdapterFileError:
    return AdapterFileError(f"the shrunk adapter is wrong ({reason}); shrink the adapter again.")
