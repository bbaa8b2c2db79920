"""Pictures: values of a column that are opened when they are needed, as RGB pixels.

A value is a path (from the folder of the data file), encoded bytes, base64 with or without `data:` before it,
a dictionary of `datasets.Image`, an image of Pillow or an array. Pictures may also be in a zip archive beside
the data file.
"""

import hashlib
import re
import struct
import warnings
import zlib
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, cast, final
from urllib.parse import unquote, urlsplit
from zipfile import BadZipFile, ZipFile

from rankfold.errors import DataError
from rankfold.limits import MOST_PICTURE_BYTES
from rankfold.tasks.data.image_decoding import (
    as_rgb,
    decode_base64,
    from_array,
    is_array,
    is_encoded,
    is_pillow,
    open_image,
)
from rankfold.tasks.data.layout import SPLIT_NAMES
from rankfold.tasks.data.table import Table, quote_list

if TYPE_CHECKING:  # of an extra, and slow to import
    from PIL.Image import Image

_URL = re.compile(r"(?!file:)[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_LONGEST_TITLE = 200
REMEDY = "restore the picture, or remove the row"
"""The end of an error about a picture."""


# Folders and archives that paths begin at.


@final
@dataclass(frozen=True, slots=True)
class PictureFolder:
    """The folder at which relative paths of pictures begin.

    Args:
        path: The folder of the data file; None for data of the hub, which names no files of this machine.
        file: The name of the data file, whose split decides between archives.
        is_own: Whether the paths were written by the caller, so that they may lead out of the folder.
    """

    path: Path | None
    file: str = ""
    is_own: bool = False

    @classmethod
    def of(cls, table: Table, index: int) -> "PictureFolder":
        """Return the folder of a row of a table.

        Args:
            table: From files, or from the hub.
            index: The row's index in the source.
        """
        origin = table.origin_of(index)
        return cls(None) if origin is None else cls.beside(Path(origin.file))

    @classmethod
    def beside(cls, path: Path) -> "PictureFolder":
        """Return the folder of a data file, or a folder of pictures itself."""
        return cls(path, is_own=True) if path.is_dir() else cls(path.parent, path.name)

    def read(self, name: str) -> bytes:
        """Return the bytes of a picture.

        Raises:
            ValueError: If there is none, or it may not be read, with the reason.
            OSError: If it cannot be read.
        """
        if self.path is None:
            raise ValueError("is a path, and data of the hub must bring its pictures itself")
        path = Path(name).expanduser()
        if not path.is_absolute() and ".." in path.parts and not self.is_own:
            raise ValueError(f"leads out of the folder '{self.path}', which a data file may not")
        path = self.path / path
        if path.is_dir():
            raise ValueError("is a folder, and a row needs a file")
        if path.is_file():
            if path.stat().st_size > MOST_PICTURE_BYTES:
                raise ValueError(_too_many_bytes(path.stat().st_size))
            return path.read_bytes()
        content = self._read_archived(name)
        if content is None:
            raise ValueError(
                f"is not there (looked for in '{self.path}' and in archives of pictures beside it)"
            )
        return content

    def _read_archived(self, name: str) -> bytes | None:
        """Return the bytes of a member of an archive beside the data file; None if none has it."""
        owners = [path for path in _archives(cast(Path, self.path)) if _member(path, name)]
        splits = _splits_of(self.file)
        # An archive of another split may have a picture of the same name.
        owners = [
            path for path in owners if not (words := _splits_of(path.name)) or words & splits or not splits
        ]
        named = [path for path in owners if _splits_of(path.name)] or owners
        if len(named) > 1:
            raise ValueError(f"is in several archives ({quote_list(path.name for path in named)}); keep one")
        if not named:
            return None
        archive, member = _open_archive(named[0]), _member(named[0], name)
        size = archive.getinfo(member).file_size
        if size > MOST_PICTURE_BYTES:
            raise ValueError(_too_many_bytes(size))
        return archive.read(member)


def _too_many_bytes(size: int) -> str:
    return f"has {size:,} bytes, and {MOST_PICTURE_BYTES:,} are the most that are read"


def _splits_of(name: str) -> set[str]:
    """Return the splits that the words of a file's name stand for."""
    words = set(re.split(r"[\W_]+", name.lower()))
    return {split for split, names in SPLIT_NAMES.items() if words & set(names)}


@lru_cache(64)
def _archives(folder: Path) -> tuple[Path, ...]:
    return tuple(sorted(folder.glob("*.zip")))


@lru_cache(64)
def _open_archive(path: Path) -> ZipFile:
    return ZipFile(path)


def _member(path: Path, name: str) -> str:
    """Return the member of an archive that a path means, perhaps in a folder; empty if there is none."""
    try:
        names = _open_archive(path).NameToInfo
    except (OSError, BadZipFile):
        return ""
    name = Path(name).as_posix()
    stem = path.name.removesuffix(".zip")
    candidates = (name, f"{stem}/{name}", f"images/{name}")
    return next((candidate for candidate in candidates if candidate in names), "")


# Pictures.


@final
@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that has been found, not opened.

    Args:
        value: A path, bytes, base64, an image of Pillow or an array.
        folder: Where a path begins.
        place: The row in words, such as "line 3 of 'train.csv'"; empty if another names it.
    """

    value: object
    folder: PictureFolder
    place: str = ""

    @property
    def title(self) -> str:
        """The path, or a word for a picture that has none."""
        value = self.value
        return value if isinstance(value, str) and not is_encoded(value) else "(embedded)"

    @property
    def key(self) -> object:
        """A value that is equal for the same picture, without opening it."""
        is_hashable = isinstance(self.value, str | bytes)
        return (self.folder, self.value) if is_hashable else id(self.value)

    @property
    def name(self) -> str:
        """The picture as messages have it."""
        title = self.title if len(self.title) <= _LONGEST_TITLE else f"{self.title[:_LONGEST_TITLE]}…"
        return f"the picture '{title}'" if self.title is self.value else "the picture"

    def read(self) -> "Image":
        """Return the picture in the mode RGB.

        Raises:
            DataError: If it is missing, broken or enormous, with its row.
        """
        with self._naming_faults():
            return as_rgb(self._open())

    def check(self, *, is_full: bool) -> bool:
        """Check that the picture can be read, and return whether it is animated.

        Args:
            is_full: Decode it, and not its header alone.

        Raises:
            DataError: If it is missing, broken or enormous, with its row.
        """
        with self._naming_faults():
            image = self._open()
            if is_full:
                _ = as_rgb(image)
            return bool(getattr(image, "is_animated", False))

    def digest(self) -> str:
        """Return the SHA-256 of the encoded picture, or of the pixels of one that is not.

        Raises:
            DataError: If it cannot be read, with its row.
        """
        with self._naming_faults():
            content = self._content()
        return hashlib.sha256(self.read().tobytes() if content is None else content).hexdigest()

    def _open(self) -> "Image":
        content = self._content()
        if content is not None:
            return open_image(content)
        return cast("Image", self.value) if is_pillow(self.value) else from_array(self.value)

    def _content(self) -> bytes | None:
        """Return the bytes of the encoded picture; None of an image of Pillow or an array."""
        value = self.value
        if isinstance(value, str):
            return decode_base64(value) if is_encoded(value) else self.folder.read(value)
        return value if isinstance(value, bytes) else None

    @contextmanager
    def _naming_faults(self) -> Generator[None]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of broken metadata, and of sizes, which have a limit here
                yield
        except _FAULTS as error:
            place = f" ({self.place})" if self.place else ""
            reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            if not reason.startswith(_REASONS):
                reason = f"is broken ({reason})"
            raise DataError(f"{self.name}{place} {reason}; {REMEDY}.") from error


_FAULTS = (
    *(OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, AttributeError, OverflowError),
    *(MemoryError, NotImplementedError, struct.error, zlib.error, BadZipFile, RuntimeError),
)
"""Errors of Pillow's decoders on hostile bytes."""

_REASONS = ("is ", "leads ", "has ")


@final
@dataclass(frozen=True, slots=True)
class PictureCell:
    """The value of a row in a column of pictures, and where it is.

    Args:
        value: A picture in any form, or a list of them.
        folder: Where paths begin.
        place: The row in words.
    """

    value: object
    folder: PictureFolder
    place: str = ""

    def pictures(self) -> tuple[Picture, ...]:
        """Return one picture, or those of a list.

        Raises:
            DataError: If there is none, or the value is of no such form.
        """
        value = self.value
        if isinstance(value, list | tuple) and not is_array(cast("Sequence[object]", value)):
            cells = [replace(self, value=item) for item in cast("Sequence[object]", value)]
            return tuple(picture for cell in cells for picture in cell.pictures())
        return (Picture(_plain(cast("object", value)), self.folder, self.place),)

    def picture(self) -> Picture:
        """Return the one picture.

        Raises:
            DataError: If there is none or several, or the value is of no such form.
        """
        pictures = self.pictures()
        if len(pictures) != 1:
            raise DataError(f"there are {len(pictures)} pictures where one is needed; keep one in a row.")
        return pictures[0]


def _plain(value: object) -> object:
    """Return a picture without the dictionary or object around it.

    Raises:
        DataError: If there is none, or it is of no known form.
    """
    if value is None or (isinstance(value, str | bytes) and not value):
        raise DataError(f"the picture is missing; {REMEDY}.")
    match value:
        case str():
            return _without_scheme(value)
        case bytes() | bytearray() | memoryview():
            return bytes(cast("bytes", value))
        case Path():
            return str(value)
        case Mapping():
            return _from_mapping(cast("Mapping[str, object]", value))
        case _ if is_pillow(value) or is_array(value):
            return value
        case _:
            raise DataError(
                f"'{str(value)[:40]}' is no picture; give a path, bytes, base64, or an image of Pillow."
            )


def _without_scheme(text: str) -> str:
    """Return a path that may be written as a `file:` URL; base64 as it is."""
    if _URL.match(text):
        raise DataError(f"the picture is at '{text}', and nothing is downloaded; save it beside the data.")
    return unquote(urlsplit(text).path) if text.startswith("file:") else text


def _from_mapping(value: Mapping[str, object]) -> object:
    names = ("bytes", "base64", "image", "image_url", "url", "path", "file_name")
    inner = next((item for name in names if (item := value.get(name)) is not None), None)
    return _plain(inner)


OWN_PATHS = PictureFolder(Path(), is_own=True)
"""Paths that a caller writes: from the working folder, and to anywhere."""
