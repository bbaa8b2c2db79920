"""Open a saved adapter in any form: a PEFT folder, a packed file, or a record of a store.

Nothing else in rankfold reads the bytes of an adapter. Whatever the form, the result is a `SavedAdapter`, and
damaged or hostile bytes are refused by the same checks; a pickle is never opened.
"""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import final

from rankfold.errors import AdapterFileError, OutputExistsError
from rankfold.files import check_free_file, write_whole
from rankfold.store import container
from rankfold.store.adapter import CONFIG_NAME, WEIGHTS_NAME, SavedAdapter, parse_config
from rankfold.store.basis import digests_in, look_beside
from rankfold.store.certificate import RoundingCertificate
from rankfold.store.database import Database
from rankfold.store.manifest import MANIFEST_NAME, Manifest
from rankfold.store.packed import from_container, to_container
from rankfold.store.rounding import Dtype, check_exact, relative_error, restore, round_adapter
from rankfold.store.rows import load
from rankfold.store.strict_json import read_text
from rankfold.store.weights import split

RECORD_SIGN = "#"
"""Separates the file of a store from the name of a record: `adapters.db#customers/a`."""

_SQLITE = b"SQLite format 3\0"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_WAIT_SECONDS = 30.0
_FACTOR = ".rankfold_"


@final
@dataclass(frozen=True, slots=True)
class Packed:
    """Sizes and error of a packed file.

    Args:
        file_bytes: The size of the file.
        learned_bytes: The bytes of the values in it, each tensor once.
        relative_error: The largest error of a rounded tensor, root mean square of the error by that of its
            values; 0 if nothing was rounded.
        left_out: The folder's other files, which a packed adapter does not carry.
        certificate: The measured change, of an adapter in integers.
    """

    file_bytes: int
    learned_bytes: int
    relative_error: float
    left_out: tuple[str, ...]
    certificate: RoundingCertificate | None = None


def open_adapter(location: SavedAdapter | str | Path) -> SavedAdapter:
    """Read a saved adapter, whatever its form.

    Args:
        location: A PEFT folder, or its `.safetensors` file with `adapter_config.json` beside it; a packed
            file; or a record of a store as `STORE#NAME`. An adapter that is open is returned as it is.

    Raises:
        AdapterFileError: If there is no adapter, a file is damaged, or its weights are a pickle.
        SpecError: If the store has no record of this name.
        StoreError: If the store cannot be read.
    """
    if isinstance(location, SavedAdapter):
        location.check_weights()
        return location
    restored = restore(open_stored(location))
    _check_types(restored)
    restored.check_weights()
    return restored


def open_stored(location: str | Path) -> SavedAdapter:
    """Read a saved adapter as it is stored: in integers where it was rounded to them.

    Args:
        location: As for `open_adapter`.

    Raises:
        AdapterFileError: If there is no adapter, a file is damaged, or its weights are a pickle.
        SpecError: If the store has no record of this name.
        StoreError: If the store cannot be read.
    """
    path = Path(location)
    if path.is_dir():
        adapter = _read_folder(path)
    elif path.is_file():
        adapter = _read_file(path)
    elif path.exists():
        raise AdapterFileError(f"'{location}' is neither a file nor a folder; name a saved adapter.")
    elif store := _store_of(location):
        adapter = _read_record(*store)
    else:
        raise AdapterFileError(
            f"there is no folder or file '{location}'; name a saved adapter: a folder, a packed file, "
            "or a record of a store as STORE#NAME."
        )
    for digest in digests_in(adapter.config_values):
        look_beside(digest, path if path.is_dir() else path.parent)
    return dataclasses.replace(adapter, source=str(location))


def _check_types(adapter: SavedAdapter) -> None:
    """Check that the factors of a rankfold adapter hold floating-point numbers: nothing else is learned."""
    for key, tensor in adapter.tensors.items():
        if _FACTOR in key and not tensor.is_floating_point():
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise AdapterFileError(
                f"{adapter.title} is damaged: '{key}' holds numbers of type {dtype}, and an adapter learns "
                "floating-point numbers; copy the adapter again."
            )


def other_files(location: str | Path, *, but: Path | None = None) -> dict[str, int]:
    """Return the files of an adapter's folder, at any depth, that are not part of the adapter.

    Args:
        location: As for `open_adapter`; only a folder has other files.
        but: A file that is left out, since it is going to be written.

    Returns:
        Sizes by path within the folder.
    """
    folder = Path(location)
    own = (folder / name for name in (CONFIG_NAME, WEIGHTS_NAME, MANIFEST_NAME))
    skip = {path.resolve() for path in (*own, but) if path}
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() and file.resolve() not in skip)
    return {file.relative_to(folder).as_posix(): file.lstat().st_size for file in files}


def write_packed(
    adapter: SavedAdapter | str | Path,
    file: str | Path,
    *,
    dtype: Dtype | None = None,
    certificate: RoundingCertificate | None = None,
    overwrite: bool = False,
) -> Packed:
    """Write a saved adapter, of any PEFT method, as one file; `unpack_adapter` gives the folder back.

    Args:
        adapter: As for `open_adapter`.
        file: The file to write, in one step.
        dtype: Round the floating-point tensors to this type; without it the folder comes back byte for byte.
            Of a type of integers come back rounded numbers in the original types.
        certificate: The measured change by the rounding.
        overwrite: Whether to replace an earlier packed file; no other file is replaced.

    Raises:
        AdapterFileError: If there is no adapter, it is damaged, or its weights are a pickle; or if a value is
            not finite or too large for the type.
        OutputExistsError: If the file exists, or is a folder; with `overwrite`, if it is no packed file.
        SpecError: If nothing can be written there.
    """
    target = Path(file)
    check_packable(target, overwrite=overwrite)
    exact = open_adapter(adapter)
    exact.check_finite()
    small = exact if dtype is None else round_adapter(exact, dtype, certificate)
    content = to_container(small)
    data = container.encode(content)
    _check_round_trip(small, from_container(container.decode(data)))
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, data)
    return Packed(
        file_bytes=len(data),
        learned_bytes=sum(tensor.nbytes for tensor in content.tensors.values()),
        relative_error=relative_error(exact, restore(small)),
        left_out=tuple(other_files(exact.source, but=target)) if exact.source else (),
        certificate=small.certificate,
    )


def check_packable(file: Path, *, overwrite: bool) -> None:
    """Check that a packed file may be written, before any work is done.

    Raises:
        OutputExistsError: If the file exists, or is a folder; with `overwrite`, if it is no packed file.
        SpecError: If nothing can be written there.
    """
    check_free_file(file, overwrite=overwrite)
    if file.exists() and not container.is_container(file):
        raise OutputExistsError(f"'{file}' is no packed file, so it is not replaced; choose another file.")


def unpack_adapter(file: str | Path, folder: str | Path) -> None:
    """Write the PEFT folder of a packed adapter.

    Args:
        file: A file that `rankfold.pack_adapter` wrote.
        folder: The folder to write; it must not exist or be empty.

    Raises:
        AdapterFileError: If the file is no packed adapter, or damaged.
        OutputExistsError: If the folder has something in it.
        SpecError: If nothing can be written there.
    """
    adapter = restore(_read_packed(Path(file)))
    adapter.check_weights()
    adapter.write(Path(folder))


def _read_folder(folder: Path) -> SavedAdapter:
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (folder / name).is_file():
            raise _missing(folder, name)
    return _read_weights(folder / WEIGHTS_NAME)


def _read_file(file: Path) -> SavedAdapter:
    with container.naming(file):
        if file.suffix in _PICKLES:
            raise AdapterFileError(
                "it is a pickle, which can run code when opened, so it is not read; "
                "save the adapter again with safetensors."
            )
        if file.suffix == ".safetensors":
            return _read_weights(file)
        if _is_database(file):
            raise AdapterFileError(f"this is a store; name a record of it as {file}{RECORD_SIGN}NAME.")
    return _read_packed(file)


def _is_database(file: Path) -> bool:
    with file.open("rb") as content:
        return content.read(len(_SQLITE)) == _SQLITE


def _read_packed(file: Path) -> SavedAdapter:
    content = container.read(file)
    with container.naming(file):
        return from_container(content)


def _read_weights(file: Path) -> SavedAdapter:
    config, manifest = file.with_name(CONFIG_NAME), file.with_name(MANIFEST_NAME)
    with container.naming(config):
        text = read_text(config)
        parse_config(text)
    with container.naming(manifest):
        manifest_text = read_text(manifest) if os.path.lexists(manifest) else None
        if manifest_text is not None:
            Manifest.from_json(manifest_text)
    with container.naming(file):
        adapter = SavedAdapter(text, *split(file.read_bytes()), manifest_text=manifest_text)
        check_exact(adapter)
    return adapter


def _store_of(location: str | Path) -> tuple[Path, str] | None:
    """Return the store and the name in `STORE#NAME`, if there is such a file."""
    # A file may have the sign in its name; a record has not.
    file, sign, name = str(location).rpartition(RECORD_SIGN)
    if not sign or not Path(file).is_file():
        return None
    if not name:
        raise AdapterFileError(f"'{location}' names no record; write it as {file}{RECORD_SIGN}NAME.")
    return Path(file), name


def _read_record(file: Path, name: str) -> SavedAdapter:
    database = Database(file, "read", _WAIT_SECONDS)
    try:
        with database.read() as connection:
            return load(connection, name)[1]
    finally:
        database.close()


def _check_round_trip(adapter: SavedAdapter, again: SavedAdapter) -> None:
    """Check, before anything is written, that all files come back byte for byte."""
    texts, same_texts = ((one.config, one.manifest_text, one.certificate_text) for one in (adapter, again))
    if texts != same_texts or again.weights_file() != adapter.weights_file():
        raise AdapterFileError("the packed file would not unpack to the same bytes; report this as a fault.")


def _missing(folder: Path, name: str) -> AdapterFileError:
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLES)
    if name == WEIGHTS_NAME and pickles:
        return AdapterFileError(
            f"'{folder}' has its weights in '{pickles[0]}', a pickle, which can run code when opened; "
            "save the adapter again with safetensors."
        )
    return AdapterFileError(f"'{folder}' has no {name}; name a folder that holds a saved adapter.")
