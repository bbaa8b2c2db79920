"""Pictures: columns of them in any form, opened when they are needed, as RGB pixels.

A value is a path (from the folder of the data file), encoded bytes, base64 with or without `data:` before it,
a dictionary of `datasets.Image`, an image of Pillow or an array. Pictures may also be in a zip archive beside
the data file. Transparency is put on white, the EXIF orientation is applied, and of 16 bits 8 are kept.
"""

import base64
import binascii
import hashlib
import io
import re
import struct
import warnings
import zlib
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, final
from urllib.parse import unquote, urlsplit
from zipfile import BadZipFile, ZipFile

from rankfold.errors import DataError
from rankfold.limits import MOST_PICTURE_BYTES, MOST_PIXELS
from rankfold.tasks.data.layout import SPLIT_NAMES, is_picture_file
from rankfold.tasks.data.table import Finding, Rows, Table, quote_list

if TYPE_CHECKING:  # of an extra, and slow to import
    from PIL.Image import Image

PICTURE_NAMES = ("image", "images", "picture", "pictures", "photo", "img", "file_name", "image_path", "path")
"""The usual names of columns of pictures."""

_SAMPLE_ROWS = 200
_NAMED = 5
_FULLY_CHECKED = 2000
"""The most pictures that are decoded before a training; of more only the headers are read."""

_SIGNATURES = (
    b"\x89PNG",
    b"\xff\xd8\xff",
    b"GIF8",
    b"BM",
    b"RIFF",
    b"II*\x00",
    b"MM\x00*",
    b"\x00\x00\x00 ftyp",
)
# The same in base64: a JPEG begins like an absolute path.
_BASE64 = re.compile(r"(iVBORw0KG|/9j/|_9j_|R0lGOD|Qk[0-3]|UklGR|SUkqA|TU0AK)[A-Za-z0-9+/_\s-]{24,}=*\s*")
_DATA_URL = re.compile(r"data:image/[\w.+-]+(;[\w=.-]+)*;base64,", re.IGNORECASE)
_URL = re.compile(r"(?!file:)[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_LONGEST_PATH, _LONGEST_TITLE = 4096, 200
_MOST_SLENDER = 200
"""The most times that a picture is longer than wide: the shorter side is scaled, and the longer with it."""

_RUNS_PROGRAMS = {"EPS", "WMF"}
"""Formats that Pillow hands to a program or to the system."""

_REMEDY = "restore the picture, or remove the row"


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
            return value.startswith(_SIGNATURES)
        case list():
            items = cast("list[object]", value)
            return bool(items) and all(is_picture(item, takes_spaces=takes_spaces) for item in items)
        case Mapping():  # as `datasets` stores its feature Image
            return set(cast("Mapping[object, object]", value)) == {"bytes", "path"}
        case _:
            return _is_pillow(value)


def _is_picture_text(text: str, *, takes_spaces: bool) -> bool:
    if _DATA_URL.match(text) or _BASE64.fullmatch(text, 0, 1 << 16):
        return True
    if len(text) > _LONGEST_PATH or "\n" in text or (not takes_spaces and " " in text):
        return False
    return is_picture_file(Path(text))


def _is_pillow(value: object) -> bool:
    return any(cls.__module__.startswith("PIL.") for cls in type(value).__mro__)


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
        return value if isinstance(value, str) and not _is_encoded(value) else "(embedded)"

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
            return _as_rgb(self._open())

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
                _ = _as_rgb(image)
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
            return _open_bytes(content)
        return cast("Image", self.value) if _is_pillow(self.value) else _from_array(self.value)

    def _content(self) -> bytes | None:
        """Return the bytes of the encoded picture; None of an image of Pillow or an array."""
        value = self.value
        if isinstance(value, str):
            return _decode(value) if _is_encoded(value) else self.folder.read(value)
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
            raise DataError(f"{self.name}{place} {reason}; {_REMEDY}.") from error


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
        if isinstance(value, list | tuple) and not _is_array(cast("Sequence[object]", value)):
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


def _plain(value: object) -> object:
    """Return a picture without the dictionary or object around it.

    Raises:
        DataError: If there is none, or it is of no known form.
    """
    if value is None or (isinstance(value, str | bytes) and not value):
        raise DataError(f"the picture is missing; {_REMEDY}.")
    match value:
        case str():
            return _without_scheme(value)
        case bytes() | bytearray() | memoryview():
            return bytes(cast("bytes", value))
        case Path():
            return str(value)
        case Mapping():
            return _from_mapping(cast("Mapping[str, object]", value))
        case _ if _is_pillow(value) or _is_array(value):
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


def _is_array(value: object) -> bool:
    """Return whether a value is an array or tensor of numbers, or nested lists of them."""
    if isinstance(value, list | tuple):
        items = cast("Sequence[object]", value)
        return bool(items) and isinstance(items[0], list | tuple) and not isinstance(items[0], str)
    return hasattr(value, "shape") and (hasattr(value, "__array__") or hasattr(value, "numpy"))


def _from_array(value: Any) -> "Image":
    """Return an array of height, width and perhaps 1, 3 or 4 channels: 0 to 255, or fractions from 0 to 1."""
    import numpy as np

    pixels = np.asarray(value)
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3) and pixels.shape[2] not in (1, 3, 4):  # noqa: PLR2004
        pixels = pixels.transpose(1, 2, 0)  # as torch has them
    _check_size(pixels.shape[1], pixels.shape[0])
    if pixels.dtype.kind == "f":
        pixels = np.rint(pixels * 255)
    if pixels.size and not 0 <= pixels.min() <= pixels.max() <= 255:  # noqa: PLR2004
        raise ValueError("has values outside 0 to 255")
    if pixels.ndim == 3 and pixels.shape[2] == 1:  # noqa: PLR2004
        pixels = pixels[:, :, 0]
    return _pillow().fromarray(pixels.astype(np.uint8))


def _is_encoded(text: str) -> bool:
    return bool(_DATA_URL.match(text) or _BASE64.fullmatch(text))


def _decode(text: str) -> bytes:
    """Return the bytes of base64, with any of the two alphabets and with or without its padding."""
    body = "".join(_DATA_URL.sub("", text).split()).translate(str.maketrans("-_", "+/")).rstrip("=")
    try:
        return base64.b64decode(body + "=" * (-len(body) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError(f"is no base64 ({error})") from error


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(
            "reading pictures takes the package 'pillow'; install it with `pip install 'rankfold[vision]'`."
        ) from error
    return Image


def _open_bytes(content: bytes) -> "Image":
    library = _pillow()
    try:
        library.init()
        image: Image = library.open(io.BytesIO(content), formats=sorted({*library.ID} - _RUNS_PROGRAMS))
    except library.UnidentifiedImageError as error:
        raise ValueError("is empty" if not content else "is no picture, or of an unknown format") from error
    except library.DecompressionBombError as error:
        raise ValueError(f"is enormous: it has more pixels than the {MOST_PIXELS:,} that are read") from error
    _check_size(*image.size)
    return image


def _check_size(width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise ValueError(
            f"is enormous: it has {width:,} × {height:,} pixels, and {MOST_PIXELS:,} are the most that are "
            "read"
        )
    if not width * height:
        raise ValueError("has no pixels")
    if max(width, height) > _MOST_SLENDER * min(width, height):
        raise ValueError(
            f"is too slender: it has {width:,} × {height:,} pixels, and a side may be {_MOST_SLENDER} times "
            "the other"
        )


def _as_rgb(image: "Image") -> "Image":
    """Return the first frame of an image in the mode RGB, upright, on white."""
    from PIL import ImageOps

    if getattr(image, "is_animated", False):
        image.seek(0)
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        image = _from_wide(image)
    if image.mode == "LAB":
        image = _from_lab(image)
    if image.has_transparency_data or image.mode in ("La", "RGBa"):
        rgba = image.convert("RGBA")
        return _pillow().alpha_composite(_pillow().new("RGBA", image.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _from_wide(image: "Image") -> "Image":
    """Return a picture of 16-bit or floating-point numbers with those of 8 bits."""
    import numpy as np

    values = np.asarray(image)
    if image.mode == "F":
        most = 1 if values.max(initial=0) <= 1 else 255
        return _pillow().fromarray(np.clip(np.rint(values * (255 / most)), 0, 255).astype(np.uint8))
    values = np.clip(values.astype(np.int64), 0, 65535)
    return _pillow().fromarray(np.rint(values / 257).astype(np.uint8))


def _from_lab(image: "Image") -> "Image":
    from PIL import ImageCms

    library = cast("Any", ImageCms)
    profiles = (library.createProfile("LAB"), library.createProfile("sRGB"))
    return library.profileToProfile(image, *profiles, outputMode="RGB")


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
        reasons = "; ".join(str(fault).removesuffix(f"; {_REMEDY}.") for fault in faults[:_NAMED])
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


OWN_PATHS = PictureFolder(Path(), is_own=True)
"""Paths that a caller writes: from the working folder, and to anywhere."""
