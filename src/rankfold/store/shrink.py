"""A PEFT adapter without what it says twice or what follows from a seed, as one file, and back."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

from rankfold.files import check_free_file, write_whole
from rankfold.store import container
from rankfold.store.contents import Contents, role_of, understand
from rankfold.store.peft_config import parse_config
from rankfold.store.regenerable import Proof
from rankfold.store.rounding import Rounding, keep, relative_error, restore
from rankfold.store.saved import CONFIG_NAME, WEIGHTS_NAME, SavedAdapter, other_files
from rankfold.store.shrunk import FORMAT, Shrunk, read_shrunk, sha256_of, to_container, versions
from rankfold.store.weights import PREFIX_BYTES, join
from rankfold.store.weights_file import WeightsFile


@final
@dataclass(frozen=True, slots=True)
class Shrinkage:
    """What came of shrinking an adapter.

    Args:
        bytes_before: Of its weights file and its configuration.
        bytes_after: Of the file that was written.
        duplicate_bytes: Left out because an earlier tensor has the same.
        regenerable_bytes: Left out because they follow from a seed.
        errors: The largest relative error of each group of tensors; empty if nothing was rounded.
        left_out: Name and size of the directory's other files, which a shrunk adapter does not carry.
    """

    bytes_before: int
    bytes_after: int
    duplicate_bytes: int
    regenerable_bytes: int
    errors: Mapping[str, float]
    left_out: Mapping[str, int]


def shrink_adapter(
    directory: str | Path,
    file: str | Path,
    *,
    dtype: Rounding | None = None,
    regenerate: bool = False,
    overwrite: bool = False,
) -> Shrinkage:
    """Write a saved adapter as one file, from which `expand_adapter` gives its directory back.

    Args:
        directory: What `save_pretrained` of a PEFT model wrote.
        file: The file to write, in one step.
        dtype: Round the numbers that are kept; what comes back is then not the adapter byte for byte.
        regenerate: Also leave out what only a like processor draws again.
        overwrite: Whether to replace the file.

    Raises:
        AdapterFileError: If the directory holds no adapter, a damaged one, or a pickle.
        OutputExistsError: If the file exists, or is a folder.
        SpecError: If a number cannot be rounded, or nothing can be written there.
    """
    source, target = Path(directory), Path(file)
    check_free_file(target, overwrite=overwrite)
    saved = SavedAdapter.read(source)
    weights = WeightsFile(source / WEIGHTS_NAME, saved.layout, saved.tensors)
    contents = understand(weights, parse_config(saved.config, source / CONFIG_NAME))
    proofs = tuple(proof for proof in contents.proofs if regenerate or proof.recipe.portable)
    shrunk, numbers = _shrunk(saved, contents, proofs, dtype)
    data = container.encode(to_container(shrunk, numbers))
    # Nothing is written that does not come back.
    shrunk.expand(memoryview(numbers))
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, data)
    entries = saved.layout.entries
    return Shrinkage(
        bytes_before=len(saved.config) + len(saved.weights_file()),
        bytes_after=len(data),
        duplicate_bytes=sum(entries[place].bytes for place, _ in shrunk.copies),
        regenerable_bytes=sum(entries[place].bytes for proof in proofs for place in proof.recipe.tensors),
        errors=shrunk.errors,
        left_out=other_files(source, CONFIG_NAME, WEIGHTS_NAME, target=target),
    )


def expand_adapter(file: str | Path, directory: str | Path) -> bool:
    """Write the directory that a shrunk adapter was made from.

    Args:
        file: What `shrink_adapter` wrote.
        directory: The directory to write; it must not exist or be empty.

    Returns:
        Whether it is the adapter byte for byte: if not, its numbers were rounded.

    Raises:
        AdapterFileError: If the file is none, damaged, of another kind, or if this machine makes other
            numbers of a seed than the one that wrote it; nothing is written then.
        OutputExistsError: If the directory has something in it.
        SpecError: If nothing can be written there.
    """
    shrunk, saved = read_shrunk(Path(file))
    saved.write(Path(directory))
    return shrunk.rounding is None


def _shrunk(
    saved: SavedAdapter, contents: Contents, proofs: tuple[Proof, ...], rounding: Rounding | None
) -> tuple[Shrunk, bytes]:
    """Return what a shrunk adapter says, and its numbers."""
    made = {place for proof in proofs for place in proof.recipe.tensors}
    copies = tuple(
        (place, first) for place, first in enumerate(contents.firsts) if first != place and place not in made
    )
    elsewhere = made.union(place for place, _ in copies)
    after = dict(saved.tensors)
    numbers = bytearray()
    errors: dict[str, float] = {}
    for place, entry in enumerate(saved.layout.entries):
        if place in elsewhere:
            continue
        kept = keep(entry, saved.tensors[entry.name], rounding)
        numbers += kept
        if rounding is not None:
            after[entry.name] = restore(entry, memoryview(kept), rounding)
            role = role_of(entry.name, contents.config)
            error = relative_error(saved.tensors[entry.name], after[entry.name])
            errors[role] = max(error, errors.get(role, 0.0))
    for place, first in copies:
        after[saved.layout.entries[place].name] = after[saved.layout.entries[first].name]
    shrunk = Shrunk(
        format=FORMAT,
        weights_sha256=sha256_of(saved.weights_file()),
        expanded_sha256=sha256_of(join(saved.layout, after)),
        rounding=rounding,
        errors=errors,
        config=saved.config.decode(),
        weights_header=saved.layout.header_bytes()[PREFIX_BYTES:].decode(),
        copies=copies,
        proofs=proofs,
        versions=versions(),
    )
    return shrunk, bytes(numbers)
