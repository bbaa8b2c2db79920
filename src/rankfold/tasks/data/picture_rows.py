"""Rows of a folder of pictures: one for each file, with the name of its class folder as the label."""

import os
from collections.abc import Sequence
from pathlib import Path

from rankfold.errors import DataError
from rankfold.tasks.data.layout import is_picture_file
from rankfold.tasks.data.table import FileRows, Finding, Row, quote_list


def read_picture_folder(folder: Path) -> FileRows:
    """Return the pictures below a folder in the order of their paths.

    Args:
        folder: It has pictures, or a folder of them for each class, at any depth.

    Raises:
        DataError: If a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise DataError(
            f"cannot read the folder '{error.filename}' ({error.strerror}); check its permissions."
        ) from error

    pictures: list[tuple[str, ...]] = []
    others: list[str] = []
    chains = {str(folder): {os.path.realpath(folder)}}
    for parent, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        inner = {name: os.path.join(parent, name) for name in sorted(folders) if not name.startswith(".")}
        # A link to a folder that it is in has nothing new.
        reals = {name: os.path.realpath(path) for name, path in inner.items()}
        folders[:] = [name for name in inner if reals[name] not in chains[parent]]
        chains |= {inner[name]: chains[parent] | {reals[name]} for name in folders}
        parts = Path(parent).relative_to(folder).parts
        for name in sorted(files):
            if is_picture_file(Path(name)):
                pictures.append((*parts, name))
            elif not name.startswith(".") and name != "Thumbs.db":
                others.append(_readable("/".join((*parts, name))))
    _check_names(folder, ["/".join(parts) for parts in pictures])
    has_classes = any(len(parts) > 1 for parts in pictures)
    findings = [Finding("ignored_files", f"not read in '{folder}': {quote_list(others)}.")] if others else []
    return FileRows([_row(parts, has_classes=has_classes) for parts in pictures], findings=findings)


def _check_names(folder: Path, names: Sequence[str]) -> None:
    wrong = [_readable(name) for name in names if _readable(name) != name]
    if wrong:
        raise DataError(
            f"the names of {len(wrong):,} of {len(names):,} pictures in '{folder}' are no UTF-8: "
            f"{quote_list(wrong)}; rename them."
        )


def _readable(name: str) -> str:
    """Return a name in which bytes that are no UTF-8 are written in hexadecimal."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _row(parts: tuple[str, ...], *, has_classes: bool) -> Row:
    path = "/".join(parts)
    if not has_classes:
        return {"image": path}
    # A picture beside the class folders has no class, which the kind of task says with its row.
    return {"image": path, "label": parts[0] if len(parts) > 1 else None}
