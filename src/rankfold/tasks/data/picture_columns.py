"""Columns of pictures: which ones there are, their cells, and checks of all pictures before a training."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from rankfold.errors import DataError
from rankfold.tasks.data.image_decoding import begins_encoded, is_image_bytes, is_pillow
from rankfold.tasks.data.layout import is_picture_file
from rankfold.tasks.data.pictures import REMEDY, Picture, PictureCell, PictureFolder
from rankfold.tasks.data.table import Finding, Rows, Table, quote_list

PICTURE_NAMES = ("image", "images", "picture", "pictures", "photo", "img", "file_name", "image_path", "path")
"""The usual names of columns of pictures."""

_SAMPLE_ROWS = 200
_NAMED = 5
_FULLY_CHECKED = 2000
"""The most pictures that are decoded before a training; of more only the headers are read."""

_LONGEST_PATH = 4096


# Columns.


def picture_columns(rows: Rows) -> list[str]:
    """Return the columns that hold pictures in any form, one or several a row."""
    sample = rows[:_SAMPLE_ROWS]
    return [name for name in rows[0] if _are_pictures(name, [row.get(name) for row in sample])]


def _are_pictures(name: str, values: Sequence[object]) -> bool:
    present = [value for value in values if value is not None and not (isinstance(value, str) and not value)]
    # "see a.png" is a text, unless it is an image; the odd value of a column of images is a fault.
    is_usual = name.lower() in PICTURE_NAMES
    pictures = sum(is_picture(value, takes_spaces=is_usual) for value in present)
    return pictures > len(present) / 2 if is_usual else 0 < pictures == len(present)


def is_picture(value: object, *, takes_spaces: bool = True) -> bool:
    """Return whether a value is a picture by its form, or a list of such; nothing is opened.

    Args:
        value: Of a column.
        takes_spaces: Whether a path may have spaces.
    """
    match value:
        case str():
            return _is_picture_text(value, takes_spaces=takes_spaces)
        case bytes():
            return is_image_bytes(value)
        case list():
            items = cast("list[object]", value)
            return bool(items) and all(is_picture(item, takes_spaces=takes_spaces) for item in items)
        case Mapping():  # as `datasets` stores its feature Image
            return set(cast("Mapping[object, object]", value)) == {"bytes", "path"}
        case _:
            return is_pillow(value)


def _is_picture_text(text: str, *, takes_spaces: bool) -> bool:
    if begins_encoded(text):
        return True
    if len(text) > _LONGEST_PATH or "\n" in text or (not takes_spaces and " " in text):
        return False
    return is_picture_file(Path(text))


def with_cells(tables: Mapping[str, Table], column: str) -> dict[str, Table]:
    """Return tables in which each value of a column of pictures knows its folder and its row."""
    return {
        split: replace(
            table,
            rows=[
                {
                    **row,
                    column: PictureCell(
                        row.get(column), PictureFolder.of(table, index), table.locate(index, split)
                    ),
                }
                for index, row in table.enumerate_rows()
            ],
        )
        for split, table in tables.items()
    }


# Checks before a training.


def picture_digests(table: Table, column: str) -> list[str]:
    """Return a text for each row that is equal for rows with the same bytes of pictures.

    Of many files the names are compared instead, which takes no reading.
    """
    digests: dict[object, str] = {}

    def digest(picture: Picture) -> str:
        if picture.key not in digests:
            is_read = len(digests) < _FULLY_CHECKED
            digests[picture.key] = picture.digest() if is_read else f"{picture.folder.path}/{picture.title}"
        return digests[picture.key]

    texts: list[str] = []
    for number, row in enumerate(with_cells({"": table}, column)[""].rows):
        try:
            texts.append(" ".join(map(digest, cast("PictureCell", row[column]).pictures())))
        except DataError:  # which reading the rows says; none of these is a copy of another
            texts.append(f"row {number}")
    return texts


def pictures_of(splits: Mapping[str, Sequence[Any]]) -> list[Picture]:
    """Return the pictures of examples of any kind, in order: each is in `picture`, several in `pictures`."""
    items = (item for examples in splits.values() for item in examples)
    found = (getattr(item, "pictures", None) or [getattr(item, "picture", None)] for item in items)
    return [picture for pictures in found for picture in pictures if isinstance(picture, Picture)]


def sha256_of_pictures(pictures: Iterable[Picture]) -> str:
    """Return the SHA-256 of the content of pictures, each of which is read once; empty if there are none.

    Raises:
        DataError: If one cannot be read, with its row.
    """
    digests: dict[object, str] = {}
    total = hashlib.sha256()
    for picture in pictures:
        if picture.key not in digests:
            digests[picture.key] = picture.digest()
        total.update(digests[picture.key].encode())
    return total.hexdigest() if digests else ""


def check_pictures(pictures: Iterable[Picture]) -> list[Finding]:
    """Check that all pictures can be read, and return a finding if some of them are animated.

    Raises:
        DataError: If some cannot, with their number, and the rows and faults of the first.
    """
    firsts: dict[object, Picture] = {}
    for picture in pictures:
        firsts.setdefault(picture.key, picture)
    items = [*firsts.values()]
    faults: list[DataError] = []
    animated: list[Picture] = []
    for picture in items:
        try:
            if picture.check(is_full=len(items) <= _FULLY_CHECKED):
                animated.append(picture)
        except DataError as error:
            faults.append(error)
    if faults:
        if len(faults) == 1:
            raise faults[0]
        reasons = "; ".join(str(fault).removesuffix(f"; {REMEDY}.") for fault in faults[:_NAMED])
        more = "; …" if len(faults) > _NAMED else ""
        raise DataError(
            f"{len(faults):,} of {len(items):,} pictures cannot be read: {reasons}{more}; restore the "
            "pictures, or remove the rows."
        )
    if not animated:
        return []
    places = ", ".join(
        f"{item.name.removeprefix('the picture ')} ({item.place})" for item in animated[:_NAMED]
    )
    return [
        Finding(
            "animated_pictures",
            f"{len(animated):,} pictures are animated, and their first frame is read: {places}.",
        )
    ]


def find_picture_column(rows: Rows, name: str | None) -> str | None:
    """Return the column of the pictures: the named one, or the one that holds some; None if none does.

    Args:
        rows: At least one row.
        name: The name that the user gave.

    Raises:
        DataError: If there is no such column, or several hold pictures.
    """
    if name is not None:
        if name not in rows[0]:
            raise DataError(
                f"there is no column '{name}'; name one that the data has: {quote_list(rows[0])}."
            )
        return name
    columns = picture_columns(rows)
    if len(columns) > 1:
        usual = [column for column in columns if column.lower() in PICTURE_NAMES]
        if len(usual) != 1:
            raise DataError(
                f"the columns {quote_list(columns)} hold pictures; name one with --picture-column."
            )
        columns = usual
    return columns[0] if columns else None
