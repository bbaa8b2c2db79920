"""Strict JSON: headers and configurations, compressed or not, read as if an enemy had written them."""

import json
import math
import zlib
from pathlib import Path
from typing import cast

from pydantic import JsonValue

from rankfold.errors import AdapterFileError
from rankfold.files import unique_pairs

MOST_BYTES = 8 << 20
"""The most bytes of a JSON text; the table of a hundred thousand tensors fits."""

MOST_BRACKETS = 300_000
"""The most `[` and `{` of a text: each costs a reader more memory than the file has bytes."""

_MOST_COMMAS = 1_000_000
_LEVEL = 9


def compress(values: JsonValue) -> tuple[bytes, int]:
    """Return JSON values as compressed canonical text, and how long the text is.

    Equal values give equal bytes: keys are sorted, and nothing is padded.

    Raises:
        AdapterFileError: If it is too long, or holds a number that JSON has not.
    """
    try:
        text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        plain = text.encode()
    except ValueError as error:
        raise AdapterFileError(
            f"a header cannot be written ({error}); use finite numbers and text."
        ) from error
    _check_size(plain)
    return zlib.compress(plain, _LEVEL), len(plain)


def expand(data: bytes | memoryview, plain_bytes: int) -> JsonValue:
    """Return the values of a compressed header, checked before they cost anything.

    Args:
        data: The result of `compress`.
        plain_bytes: The length that the text should have.

    Raises:
        AdapterFileError: If it is damaged, of another length, longer than allowed, or no strict JSON: a
            repeated key, a number that is not finite, lists within lists without end.
    """
    if not 0 <= plain_bytes <= MOST_BYTES:
        raise _refusal(f"it should have {plain_bytes:,} bytes, and {MOST_BYTES:,} are allowed")
    return parse(inflate(data, plain_bytes))


def read_text(file: Path) -> bytes:
    """Return the bytes of a JSON file; a file that is too large is refused before it is read.

    Raises:
        AdapterFileError: If it is.
        OSError: If it cannot be read.
    """
    if (size := file.stat().st_size) > MOST_BYTES:
        raise AdapterFileError(
            f"it has {size:,} bytes, and {MOST_BYTES:,} are allowed; restore the file that was saved."
        )
    return file.read_bytes()


def parse(text: bytes, name: str = "the header", *, most_bytes: int = MOST_BYTES) -> JsonValue:
    """Read JSON strictly: every key once, every number finite, UTF-8, of bounded size and depth.

    Args:
        text: The JSON.
        name: Its name in errors.
        most_bytes: The most that it may have.

    Raises:
        AdapterFileError: If it is anything else.
    """
    _check_size(text, name, most_bytes)
    try:
        return strict_values(text)
    except ValueError as error:
        raise _refusal(f"it is no strict JSON: {error}", name) from error


def strict_values(text: bytes) -> JsonValue:
    """Return the values of JSON of which every reader would read the same.

    Raises:
        ValueError: If it is not UTF-8, no JSON or too deep, has a key twice, a number that is not finite, or
            a lone surrogate, which is a letter that no file name and no other program can spell.
    """
    try:
        values = json.loads(
            text.decode(),
            object_pairs_hook=unique_pairs,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
        json.dumps(values, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("lists within lists without end") from error
    return cast("JsonValue", values)


def inflate(data: bytes | memoryview, plain_bytes: int, *, dictionary: bytes = b"") -> bytes:
    """Expand compressed bytes to exactly the stated length, and never beyond.

    Args:
        data: A zlib stream.
        plain_bytes: The length of its content.
        dictionary: The text it was compressed against, if any.

    Raises:
        AdapterFileError: If it is damaged, shorter or longer.
    """
    try:
        stream = zlib.decompressobj(zdict=dictionary)
        plain = stream.decompress(data, plain_bytes + 1)
    except zlib.error as error:
        raise _refusal(str(error)) from error
    if len(plain) != plain_bytes or not stream.eof or stream.unused_data:
        raise _refusal("it has another length than stated")
    return plain


def _check_size(text: bytes, name: str = "the header", most_bytes: int = MOST_BYTES) -> None:
    if len(text) > most_bytes:
        raise _refusal(f"it has {len(text):,} bytes, and {most_bytes:,} are allowed", name)
    if text.count(b"[") + text.count(b"{") > MOST_BRACKETS or text.count(b",") > _MOST_COMMAS:
        raise _refusal("it has too many parts", name)


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is too large")
    return number


def _refusal(reason: str, name: str = "the header") -> AdapterFileError:
    return AdapterFileError(f"{name} is damaged ({reason}); copy the file again or write it anew.")
