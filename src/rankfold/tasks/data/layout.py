"""Layouts: which files of a folder are which split, and which are none."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from rankfold.errors import DataError
from rankfold.tasks.data.decode import COMPRESSIONS
from rankfold.tasks.data.table import Finding, quote_list

SPLIT_NAMES: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": (
        *("validation", "valid", "val", "dev", "eval", "evaluation", "development"),
        *("validation_matched", "dev_matched"),
    ),
    "test": ("test", "testing", "test_matched"),
    "validation_mismatched": ("validation_mismatched", "dev_mismatched"),
}
"""The names of files, folders and hub splits for each split."""

FORMATS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".conll", ".bio")
"""The endings of files that can be read, perhaps with one of a compression behind."""

PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".jfif", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
"""The endings of files that are pictures."""

_ARCHIVES = re.compile(r"(.*[\W_])?(images?|pictures?|photos?)([\W_].*)?\.zip", re.IGNORECASE)
_SHARD = re.compile(r"[-_.]?(?:part[-_]?)?(\d+)(?:-of-(\d+))?(?:[-_.]\w+)?")
_STATE = "state.json"
_OTHER_FILES = re.compile(
    r"(readme|licen[cs]e|dataset_infos?\.json|dataset_dict\.json|state\.json|\.)", re.IGNORECASE
)
_DEPTH = 3


@dataclass(frozen=True, slots=True)
class Layout:
    """The files of a folder by split.

    Args:
        files: The files of each split, in order.
        findings: The files that belong to none, and where the others are if that is not obvious.
    """

    files: Mapping[str, Sequence[Path]]
    findings: tuple[Finding, ...] = ()


@dataclass(slots=True)
class _Matches:
    """Files that could be a split: named exactly so, numbered parts of it, or with its name among others."""

    exact: list[Path] = field(default_factory=list[Path])
    shards: list[Path] = field(default_factory=list[Path])
    near: list[Path] = field(default_factory=list[Path])


def split_of(name: str) -> str | None:
    """Return the split that a name stands for, such as validation for "dev"; None if for none."""
    return next((split for split, names in SPLIT_NAMES.items() if name.lower() in names), None)


def format_of(path: Path) -> str | None:
    """Return the ending of a file that can be read, without that of a compression; None for other files."""
    name = path.name.lower()
    for ending in COMPRESSIONS:
        name = name.removesuffix(ending)
    return next((ending for ending in FORMATS if name.endswith(ending) and name != ending), None)


def is_picture_file(path: Path) -> bool:
    """Return whether a file is a picture by its name."""
    return path.suffix.lower() in PICTURE_ENDINGS and not path.name.startswith(".")


def find_layout(folder: Path) -> Layout:
    """Return the splits of a folder.

    In this order: a folder that `save_to_disk` wrote; files named after splits, which may be numbered parts;
    folders named after splits; the one folder that has such files; the only file, as the training split;
    folders of pictures, perhaps one for each split, as they are.

    Raises:
        DataError: If there are none, or several could be one split, or a part is missing.
    """
    layout = _search(folder, _DEPTH) or _picture_layout(folder)
    if layout is None:
        raise DataError(
            f"'{folder}' has no split to read; it needs train.jsonl, train.csv or train.parquet "
            "(and the same for validation and test), which may be compressed, or pictures in a folder for "
            f"each class{_content(folder)}."
        )
    return layout


def _content(folder: Path) -> str:
    names = [path.name for path in _entries(folder)]
    return f"; it has {quote_list(names)}" if names else ""


def _search(folder: Path, depth: int) -> Layout | None:
    if (folder / _STATE).is_file():
        return Layout({"train": _saved_files(folder)})
    files = _split_files(folder) or _split_folders(folder)
    if files:
        return Layout(files, _find_ignored(folder, files))
    if depth == 0:
        return None
    inner = {path: layout for path in _folders(folder) if (layout := _search_inside(path, depth - 1))}
    if len(inner) > 1:
        names = quote_list(path.name for path in inner)
        raise DataError(f"'{folder}' has several data sets: {names}; name one of these folders.")
    if inner:
        path, layout = next(iter(inner.items()))
        return Layout(layout.files, (*_find_ignored(folder, {"": [path]}), *layout.findings))
    return _only_file(folder)


def _search_inside(folder: Path, depth: int) -> Layout | None:
    """Return the splits of a folder inside another, where a single file of any name is no data set."""
    layout = _search(folder, depth)
    return None if layout is None or any(item.name == "only_file" for item in layout.findings) else layout


def _only_file(folder: Path) -> Layout | None:
    """Return the only file that can be read as the training split."""
    files = [path for path in _entries(folder) if path.is_file() and format_of(path)]
    if len(files) > 1:
        raise DataError(
            f"'{folder}' has {quote_list(path.name for path in files)}, none of them named after a split; "
            "name one of the files, or call them train, validation and test."
        )
    if not files:
        return None
    note = Finding("only_file", f"'{files[0]}' is read as the training split, as the only file.")
    return Layout({"train": files}, (note, *_find_ignored(folder, {"train": files})))


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not _OTHER_FILES.match(path.name))
    except OSError as error:
        raise DataError(
            f"cannot read the folder '{folder}' ({error.strerror}); check its permissions."
        ) from error


def _folders(folder: Path) -> list[Path]:
    return [path for path in _entries(folder) if path.is_dir() and not path.is_symlink()]


def _find_ignored(folder: Path, files: Mapping[str, Sequence[Path]]) -> tuple[Finding, ...]:
    used = {path for paths in files.values() for path in paths}
    used |= {parent for path in used for parent in path.parents}
    names = [
        f"{path.name}/" if path.is_dir() else path.name
        for path in _entries(folder)
        if path not in used and not _are_pictures(path)
    ]
    if not names:
        return ()
    return (Finding("ignored_files", f"not read in '{folder}': {quote_list(names)}."),)


def _several(
    folder: Path, noun: str, split: str, paths: Iterable[Path], remedy: str = "keep one of them"
) -> DataError:
    names = quote_list(path.name for path in paths)
    return DataError(f"'{folder}' has several {noun} for the split '{split}' ({names}); {remedy}.")


# Folders of pictures.


def _are_pictures(path: Path) -> bool:
    """Return whether a path is a picture, an archive or a folder of some, as rows name them."""
    return is_picture_file(path) or bool(_ARCHIVES.fullmatch(path.name)) or _has_pictures(path)


def _has_pictures(folder: Path) -> bool:
    """Return whether there is a picture in a folder, or in a folder of a class."""
    patterns = ("*", "*/*", "*/*/*")
    return any(is_picture_file(path) for pattern in patterns for path in folder.glob(pattern))


def _picture_layout(folder: Path) -> Layout | None:
    """Return folders of pictures by split; a folder without splits is the training split."""
    for _ in range(_DEPTH):
        files: dict[str, list[Path]] = {}
        for path in _folders(folder):
            if (split := split_of(path.name)) and _has_pictures(path):
                if split in files:
                    raise _several(folder, "folders", split, (files[split][0], path))
                files[split] = [path]
        if files:
            return Layout(files, _find_ignored(folder, files))
        inner = _folders(folder)
        if len(inner) != 1 or not _folders(inner[0]) or any(map(is_picture_file, _entries(folder))):
            break
        folder = inner[0]  # classes are one level deeper
    return Layout({"train": [folder]}) if _has_pictures(folder) else None


# Files named after splits.


def _split_files(folder: Path) -> dict[str, list[Path]]:
    matches = {split: _Matches() for split in SPLIT_NAMES}
    for path in _entries(folder):
        if path.is_file() and format_of(path):
            _sort(path, matches)
    files = {split: _choose(folder, split, found) for split, found in matches.items()}
    return {split: paths for split, paths in files.items() if paths}


def _sort(path: Path, matches: Mapping[str, _Matches]) -> None:
    """Put a file to the split that it is named after, if there is one."""
    stem = _stem(path)
    words = set(re.split(r"[\W_]+", stem))
    near: list[str] = []
    for split, names in SPLIT_NAMES.items():
        if stem in names:
            matches[split].exact.append(path)
            return
        if any(stem.startswith(name) and _SHARD.fullmatch(stem[len(name) :]) for name in names):
            matches[split].shards.append(path)
            return
        if words & set(names) and "mismatched" not in words:
            near.append(split)
    if len(near) == 1:
        matches[near[0]].near.append(path)


def _stem(path: Path) -> str:
    """Return the name of a file in small letters, without the endings of its format and compression."""
    name = path.name.lower()
    for ending in COMPRESSIONS:
        name = name.removesuffix(ending)
    return name.removesuffix(format_of(path) or "")


def _choose(folder: Path, split: str, matches: _Matches) -> list[Path]:
    """Return the files of a split: the one of its name, else its parts, else the one with its name in it."""
    if not matches.exact and matches.shards:
        return _in_order(folder, split, matches.shards)
    candidates = matches.exact or matches.near
    if len(candidates) > 1:
        raise _several(folder, "files", split, candidates)
    return candidates


def _in_order(folder: Path, split: str, shards: Sequence[Path]) -> list[Path]:
    """Return the parts of a split by number: each once, and all of them if their names say how many."""
    numbers = {path: _shard_number(path) for path in shards}
    totals = {total for _, total in numbers.values()}
    ordered = sorted(shards, key=lambda path: numbers[path][0])
    present = [numbers[path][0] for path in ordered]
    total = next(iter(totals)) if len(totals) == 1 else None
    if len(totals) > 1 or len(set(present)) < len(present):
        raise _several(folder, "files", split, ordered, "keep those of one series")
    if total is not None and present != list(range(total)):
        missing = [str(number) for number in range(total) if number not in present]
        raise DataError(
            f"the split '{split}' of '{folder}' lacks the parts {', '.join(missing[:5])} of {total} (counted "
            "from 0); copy them too."
        )
    return ordered


def _shard_number(path: Path) -> tuple[int, int | None]:
    stem = _stem(path)
    name = max((name for names in SPLIT_NAMES.values() for name in names if stem.startswith(name)), key=len)
    match = cast("re.Match[str]", _SHARD.fullmatch(stem[len(name) :]))
    return int(match[1]), None if match[2] is None else int(match[2])


# Folders named after splits, and folders of `save_to_disk`.


def _split_folders(folder: Path) -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = {}
    for split, names in SPLIT_NAMES.items():
        matches = [path for path in _folders(folder) if path.name.lower() in names and _folder_files(path)]
        if len(matches) > 1:
            raise _several(folder, "folders", split, matches)
        if matches:
            files[split] = _folder_files(matches[0])
    return files


def _folder_files(folder: Path) -> list[Path]:
    """Return the files of a split's own folder, in the order of their names and numbers."""
    if (folder / _STATE).is_file():
        return _saved_files(folder)
    files = [path for path in _entries(folder) if path.is_file() and format_of(path)]
    if len({format_of(path) for path in files}) > 1:
        raise DataError(
            f"'{folder}' mixes formats ({quote_list(path.name for path in files)}); keep files of one format."
        )
    return sorted(files, key=_natural_order)


def _natural_order(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", path.name)]


def _saved_files(folder: Path) -> list[Path]:
    """Return the files that `save_to_disk` of the library `datasets` wrote, in their order.

    Raises:
        DataError: If its `state.json` is damaged, or a file is missing.
    """
    try:
        files = json.loads((folder / _STATE).read_text("utf-8"))["_data_files"]
        names = [Path(str(file["filename"])).name for file in files]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise DataError(f"cannot read '{folder / _STATE}'; save the data set again.") from error
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not names:
        raise DataError(f"'{folder}' lacks {quote_list(missing) or 'its rows'}; save the data set again.")
    return [folder / name for name in names]
