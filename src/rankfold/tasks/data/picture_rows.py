"""Rows of a folder of pictures: one for each file, with the name of its class folder as the label."""

import os
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
    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        parts = Path(parent).relative_to(folder).parts
        for name in sorted(files):
            if is_picture_file(Path(name)):
                pictures.append((*parts, name))
            elif not name.startswith(".") and name != "Thumbs.db":
                others.append("/".join((*parts, name)))
    has_classes = any(len(parts) > 1 for parts in pictures)
    findings = [Finding("ignored_files", f"not read in '{folder}': {quote_list(others)}.")] if others else []
    return FileRows([_row(parts, has_classes=has_classes) for parts in pictures], findings=findings)


def _row(parts: tuple[str, ...], *, has_classes: bool) -> Row:
    path = "/".join(parts)
    if not has_classes:
        return {"image": path}
    # A picture beside the class folders has no class, which the kind of task says with its row.
    return {"image": path, "label": parts[0] if len(parts) > 1 else None}
