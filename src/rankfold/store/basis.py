"""Basis files: directions learned once for a base model, in one container, found again by their digest.

The digest of a basis is the checksum that ends its file, so it is proved whenever the file is read. A basis
is looked for in this process, beside an adapter that needs it, and in the user's folder, where every basis
that was named by its file is put too; a store holds the bases of its adapters itself.
"""

import json
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, cast, final

import platformdirs
import torch
from pydantic import ConfigDict, Field, JsonValue, TypeAdapter, ValidationError, with_config
from torch import Tensor

from rankfold.errors import AdapterFileError, DiskError, RankfoldWarning, SpecError
from rankfold.factors.basis import Basis, BasisLayer, add_basis, is_known
from rankfold.files import write_into
from rankfold.limits import MOST_LAYERS, MOST_RANK
from rankfold.store.container import DIGEST_BYTES, Container, decode, encode, naming
from rankfold.store.manifest import Sha256

TYPE = "basis"
FORMAT = 1
SUFFIX = ".basis"

_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
_DIGEST = re.compile(r"[0-9a-f]{32}")
_STRICT = ConfigDict(extra="forbid", strict=True)
_SIDES = ("down", "up")
_AXES = 2


@final
@with_config(_STRICT)
@dataclass(frozen=True, slots=True)
class BasisSource:
    """An adapter that a basis was learned from.

    Args:
        name: Its location, as it was named.
        method: Its method, in PEFT's capitals.
        sha256: The digest of its weights.
        task: The task it had learned; None if it is not known.
    """

    name: str
    method: str
    sha256: Sha256
    task: str | None = None


@final
@with_config(_STRICT)
@dataclass(frozen=True, slots=True)
class BasisInfo:
    """The header of a basis file.

    Args:
        name: The name of the basis.
        base: The base model of its sources, if they name one.
        sources: The adapters it was learned from.
        seeded_share: The share of each layer's directions that are seeded, not learned.
        seed: Their seed.
        update_shares: The mean share of the sources' updates, in squares, that lies within the first 1, 2, …
            directions of both sides.
    """

    name: Annotated[str, Field(pattern=_NAME)]
    base: str | None
    sources: tuple[BasisSource, ...]
    seeded_share: Annotated[float, Field(ge=0, le=1)]
    seed: int
    update_shares: tuple[float, ...]
    format: Literal[1] = FORMAT

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that the sources had learned, as far as they are known."""
        return tuple(sorted({source.task for source in self.sources if source.task is not None}))


_CONTENTS: dict[str, bytes] = {}
"""The file of each basis that this process knows, by digest: stores and streams take it as it is."""


def write_basis(file: Path, info: BasisInfo, layers: Mapping[str, BasisLayer]) -> Basis:
    """Write a basis as one file, whole or not at all, and return it as it will be read.

    Args:
        file: The file to write.
        info: Its header.
        layers: Its directions, in the dtype to store.

    Raises:
        AdapterFileError: If it could not be read again.
        SpecError: If the file cannot be written.
    """
    tensors = {f"{name}.{side}": getattr(layer, side) for name, layer in layers.items() for side in _SIDES}
    content = encode(Container(TYPE, _header().dump_python(info, mode="json"), tensors))
    basis = read_content(content)[1]
    write_into(file.parent, file.name, content)
    return basis


def read_basis(file: Path) -> tuple[BasisInfo, Basis]:
    """Read a basis file; its adapters in this process find the basis from then on.

    Raises:
        AdapterFileError: If there is no such file, or it is no basis or damaged.
    """
    with naming(file):
        return read_content(file.read_bytes())


def read_content(content: bytes) -> tuple[BasisInfo, Basis]:
    """Read a basis from the bytes of its file, as `read_basis` does.

    Raises:
        AdapterFileError: If they are no basis, or damaged.
    """
    container = decode(content)
    if container.type != TYPE:
        raise AdapterFileError(
            f"the file holds '{container.type}', not a basis; name one that `rankfold basis learn` wrote."
        )
    try:
        # Strict reading takes lists for tuples from JSON only.
        info = _header().validate_json(json.dumps(container.header))
    except ValidationError as error:
        fault = error.errors()[0]
        field = ".".join(map(str, fault["loc"]))[:80]
        raise _damage(f"its header has {field or 'no fields'}: {fault['msg']}") from error
    digest = content[-DIGEST_BYTES:].hex()
    _CONTENTS.setdefault(digest, content)
    return info, add_basis(Basis(digest, info.name, _layers(container.tensors), info.tasks))


def find_basis(reference: str) -> Basis:
    """Return a basis by its file, by its name or digest in the user's folder.

    Raises:
        SpecError: If there is none, or several have the name.
        AdapterFileError: If its file is damaged.
    """
    file = Path(reference)
    if file.is_file():
        return keep_basis(file)
    matches = [file for file in bases_folder().glob(f"*{SUFFIX}") if reference in _name_and_digest(file)]
    if len(matches) == 1:
        return read_basis(matches[0])[1]
    if matches:
        digests = ", ".join(sorted(_name_and_digest(match)[1] for match in matches))
        raise SpecError(f"several bases are named '{reference}'; give the digest of one: {digests}.")
    if _DIGEST.fullmatch(reference):
        raise SpecError(
            f"the basis with the digest {reference} is not at hand; put its file beside the adapter, or add "
            f"it once with 'rankfold basis add FILE{SUFFIX}'."
        )
    raise SpecError(
        f"there is no basis '{reference}': no such file, and none of this name in '{bases_folder()}'; name "
        "the file that `rankfold basis learn` wrote."
    )


def keep_basis(file: Path) -> Basis:
    """Read a basis file and put it into the user's folder, where adapters that refer to it find it later.

    Raises:
        AdapterFileError: If it is damaged, or no basis.
    """
    basis = read_basis(file)[1]
    name = f"{basis.name}-{basis.digest}{SUFFIX}"
    if not (bases_folder() / name).exists():
        try:
            write_into(bases_folder(), name, _CONTENTS[basis.digest])
        except (SpecError, DiskError) as error:
            message = f"{basis.title} is not kept for later ({error}); keep its file beside its adapters."
            warnings.warn(message, RankfoldWarning, stacklevel=3)
    return basis


def look_beside(digest: str, folder: Path) -> None:
    """Let a basis be found that lies in the folder of an adapter, or in the folder around it, if one does.

    Raises:
        AdapterFileError: If it is damaged.
    """
    if is_known(digest):
        return
    for file in (*sorted(folder.glob(f"*{SUFFIX}")), *sorted(folder.absolute().parent.glob(f"*{SUFFIX}"))):
        if file.is_file() and _digest_of(file) == digest:
            read_basis(file)
            return


def digests_in(config: Mapping[str, JsonValue]) -> list[str]:
    """Return the digests of the bases that an adapter's configuration refers to."""
    factors = (config.get(side) for side in _SIDES)
    digests = {
        digest
        for factor in factors
        if isinstance(factor, dict)
        and factor.get("kind") == "basis"
        and isinstance(digest := factor.get("digest"), str)
    }
    return sorted(digests)


def content_of(digest: str) -> bytes:
    """Return the bytes of a basis' file, to be stored with an adapter that needs it.

    Raises:
        SpecError: If it is not at hand.
        AdapterFileError: If its file is damaged.
    """
    if digest not in _CONTENTS:
        find_basis(digest)
    return _CONTENTS[digest]


def size_of(digest: str) -> int | None:
    """Return the bytes of a basis' file; None if it is not at hand."""
    try:
        return len(content_of(digest))
    except (SpecError, AdapterFileError):
        return None


def bases_folder() -> Path:
    """Return the user's folder of bases: in that named by `RANKFOLD_HOME`, or in the platform's own place."""
    home = os.environ.get("RANKFOLD_HOME")
    return (Path(home).expanduser() if home else platformdirs.user_data_path("rankfold")) / "bases"


def _name_and_digest(file: Path) -> tuple[str, str]:
    """Return the name and the digest in the name of a file of the user's folder."""
    name, _, digest = file.stem.rpartition("-")
    return name, digest


def _digest_of(file: Path) -> str:
    """Return the digest that a file claims."""
    with naming(file), file.open("rb") as content:
        content.seek(max(file.stat().st_size - DIGEST_BYTES, 0))
        return content.read(DIGEST_BYTES).hex()


def _layers(tensors: Mapping[str, Tensor]) -> dict[str, BasisLayer]:
    """Return the directions by layer, in float32, after checking that both sides are there and fit."""
    names = {key.rpartition(".")[0] for key in tensors}
    if not 0 < len(names) <= MOST_LAYERS or len(tensors) != 2 * len(names):
        raise _damage(f"it has {len(tensors):,} tensors for {len(names):,} layers")
    layers: dict[str, BasisLayer] = {}
    for name in sorted(names):
        sides = [tensors.get(f"{name}.{side}") for side in _SIDES]
        if not name or any(side is None for side in sides):
            raise _damage(f"its layer '{name}' lacks a side")
        down, up = cast("list[Tensor]", sides)
        rank, ends = down.shape[:1], up.shape[1:]
        if {down.ndim, up.ndim} != {_AXES} or rank != ends or not 0 < len(down) <= MOST_RANK:
            raise _damage(f"its layer '{name}' is {tuple(up.shape)} by {tuple(down.shape)}")
        if not down.is_floating_point() or not up.is_floating_point():
            raise _damage(f"its layer '{name}' holds no floating-point numbers")
        # A copy of its own: a pickle of one side would hold the bytes of the whole file.
        layer = BasisLayer(down.to(torch.float32, copy=True), up.to(torch.float32, copy=True))
        if not (layer.down.isfinite().all() and layer.up.isfinite().all()):
            raise _damage(f"its layer '{name}' holds numbers that are not finite")
        layers[name] = layer
    return layers


def _damage(reason: str) -> AdapterFileError:
    return AdapterFileError(f"the basis is damaged ({reason}); copy it again, or learn it anew.")


@cache
def _header() -> TypeAdapter[BasisInfo]:
    return TypeAdapter(BasisInfo)
