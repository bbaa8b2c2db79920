"""Decoding of images: encoded bytes, base64, arrays and images of Pillow, as RGB pixels.

Transparency is put on white, the EXIF orientation is applied, and of 16 bits 8 are kept.
"""

import base64
import binascii
import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from rankfold.errors import DataError
from rankfold.limits import MOST_PIXELS

if TYPE_CHECKING:  # of an extra, and slow to import
    from PIL.Image import Image

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
_MOST_SLENDER = 200
"""The most times that a picture is longer than wide: the shorter side is scaled, and the longer with it."""

_RUNS_PROGRAMS = {"EPS", "WMF"}
"""Formats that Pillow hands to a program or to the system."""


# Forms, by which nothing is opened.


def is_image_bytes(content: bytes) -> bool:
    """Return whether bytes begin like an encoded image."""
    return content.startswith(_SIGNATURES)


def begins_encoded(text: str) -> bool:
    """Return whether a text is an image in base64, by its first 64 KiB."""
    return bool(_DATA_URL.match(text) or _BASE64.fullmatch(text, 0, 1 << 16))


def is_encoded(text: str) -> bool:
    """Return whether a text is an image in base64, with or without `data:` before it."""
    return bool(_DATA_URL.match(text) or _BASE64.fullmatch(text))


def is_pillow(value: object) -> bool:
    """Return whether a value is an image of Pillow, which need not be installed."""
    return any(cls.__module__.startswith("PIL.") for cls in type(value).__mro__)


def is_array(value: object) -> bool:
    """Return whether a value is an array or tensor of numbers, or nested lists of them."""
    if isinstance(value, list | tuple):
        items = cast("Sequence[object]", value)
        return bool(items) and isinstance(items[0], list | tuple) and not isinstance(items[0], str)
    return hasattr(value, "shape") and (hasattr(value, "__array__") or hasattr(value, "numpy"))


# Pixels.


def from_array(value: Any) -> "Image":
    """Return the image of an array.

    Args:
        value: [height, width], perhaps with 1, 3 or 4 channels before or behind: 0 to 255, or fractions
            from 0 to 1.

    Raises:
        ValueError: If it has other values, or too many pixels, with the reason.
    """
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


def decode_base64(text: str) -> bytes:
    """Return the bytes of base64, with any of the two alphabets and with or without its padding.

    Raises:
        ValueError: If it is none, with the reason.
    """
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


def open_image(content: bytes) -> "Image":
    """Return an encoded image, of which the header has been read.

    Raises:
        DataError: If Pillow is not installed.
        ValueError: If it is none, or has too many pixels, with the reason.
    """
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


def as_rgb(image: "Image") -> "Image":
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
