"""Text of a data file: decompressed within a limit of bytes, and decoded from its encoding."""

import bz2
import codecs
import gzip
import logging
import lzma
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from rankfold.errors import DataError, SpecError
from rankfold.tasks.data.table import Finding

logger = logging.getLogger("rankfold.tasks")

MAX_BYTES = 2 << 30
"""The most bytes of a split, decompressed, unless the user allows more."""

MAX_LINE_BYTES = 64 << 20
"""The most bytes of one row of JSONL or one line of CSV."""

MAX_VALUES = 100_000_000
"""The most cells, or values of JSON, in a file: each takes far more memory than its bytes in the file."""

COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz")
"""The endings of compressed files."""

_CHUNK_BYTES = 1 << 20
_NOTE_BYTES = 256 << 20
_SAMPLE_BYTES = 64 << 10
_QUOTED_WORDS = 5
_DELIMITER_NAMES = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|"}


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How files are read where they do not say it themselves.

    Args:
        encoding: A name that Python knows, such as cp1252; found by the file's bytes if None.
        delimiter: One character, or tab, comma, semicolon or pipe; found by the header of a CSV file if None.
        max_bytes: The most bytes of a split, decompressed.

    Raises:
        SpecError: If there is no such encoding, or the delimiter cannot separate fields.
    """

    encoding: str | None = None
    delimiter: str | None = None
    max_bytes: int = MAX_BYTES

    def __post_init__(self) -> None:
        """Check both names."""
        if self.encoding is not None:
            _check_encoding(self.encoding)
        character = self.delimiter_character
        if character is not None and (len(character) != 1 or character in '"\r\n'):
            raise SpecError(
                f"delimiter is '{self.delimiter}'; give one character, or tab, comma, semicolon or pipe."
            )

    @property
    def delimiter_character(self) -> str | None:
        """The delimiter as the character it is."""
        return None if self.delimiter is None else _DELIMITER_NAMES.get(self.delimiter, self.delimiter)


def _check_encoding(name: str) -> None:
    try:
        "a".encode(name)
    except (LookupError, ValueError) as error:
        raise SpecError(
            f"there is no encoding '{name}'; give one such as utf-8, utf-16, cp1252, cp1250 or shift_jis."
        ) from error


def read_text(path: Path, options: ReadOptions, *, has_lines: bool) -> tuple[str, int, list[Finding]]:
    """Return the text of a file, its number of bytes, and a finding if its encoding was guessed.

    Args:
        path: The file, compressed or not.
        options: The encoding, if it is known, and the most bytes.
        has_lines: Whether each row is a line, which then has a limit of its own.

    Raises:
        DataError: If it cannot be read, is larger than allowed, damaged, or of an unknown encoding.
    """
    content = read_bytes(path, options.max_bytes, has_lines=has_lines)
    text, findings = decode(content, path, options.encoding)
    if (place := text.find("\0")) >= 0:
        raise DataError(
            f"line {text.count(chr(10), 0, place) + 1} of '{path}' has a NUL character, which no text has; "
            "remove it, or name the encoding with --encoding if the file is of another one."
        )
    return text.removeprefix("\ufeff"), len(content), findings


def read_bytes(path: Path, max_bytes: int, *, has_lines: bool = False) -> bytes:
    """Return the decompressed bytes of a file, counted while they are read.

    Raises:
        DataError: If it cannot be read, is larger than allowed, or damaged.
    """
    content = bytearray()
    line_bytes = 0
    try:
        with _open(path) as file:
            while chunk := file.read(_CHUNK_BYTES):
                content += chunk
                check_size(path, len(content), max_bytes)
                first, last = chunk.find(b"\n"), chunk.rfind(b"\n")
                if has_lines and line_bytes + (len(chunk) if first < 0 else first) > MAX_LINE_BYTES:
                    raise _too_long(path, content.count(b"\n", 0, len(content) - len(chunk)) + 1)
                line_bytes = line_bytes + len(chunk) if last < 0 else len(chunk) - last - 1
                if len(content) % _NOTE_BYTES < len(chunk) and len(content) >= _NOTE_BYTES:
                    logger.info("reading '%s': %d MiB so far.", path, len(content) >> 20)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(
            f"cannot read '{path}' ({reason_of(error)}); check that the file is whole."
        ) from error
    return bytes(content)


def check_size(path: Path, size: int, max_bytes: int) -> None:
    """Refuse a file of more bytes than are allowed.

    Raises:
        DataError: If it has more.
    """
    if size > max_bytes:
        raise DataError(
            f"'{path}' has more than {max_bytes:,} bytes, decompressed; "
            "raise --max-bytes if it is meant to be that large."
        )


def check_values(name: str, text: str, marks: str, max_values: int = MAX_VALUES) -> None:
    """Refuse a text with more values than are allowed, before any of them is made.

    Args:
        name: The text in messages.
        text: The content of a file, or a part of it.
        marks: The characters that separate values.
        max_values: The most of them.

    Raises:
        DataError: If it has more.
    """
    if len(text) > max_values and sum(map(text.count, marks)) > max_values:
        raise DataError(f"{name} has more than {max_values:,} values; split it.")


def _too_long(path: Path, line: int) -> DataError:
    return DataError(
        f"line {line} of '{path}' is longer than {MAX_LINE_BYTES >> 20} MiB; write one row a line."
    )


def reason_of(error: BaseException) -> str:
    """Return the words of an error on one line, without its full stop."""
    words = " ".join(str(error).split()).rstrip(".")
    return words[:200] or type(error).__name__


# Compression, by the first bytes: a name may lie.


def _open(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        start = file.read(6)
    for magic, opener in _OPENERS.items():
        if start.startswith(magic):
            return opener(path)
    if start.startswith(b"PK\x03\x04"):
        raise DataError(f"'{path}' is a zip archive or a spreadsheet; unpack it, or save it as CSV in UTF-8.")
    return path.open("rb")


def _open_zstd(path: Path) -> IO[bytes]:
    try:
        import pyarrow
    except ImportError as error:
        raise DataError(
            f"reading '{path}' takes the package 'pyarrow'; install it with `pip install 'rankfold[bench]'`."
        ) from error
    library = cast(Any, pyarrow)
    return library.CompressedInputStream(library.OSFile(str(path)), "zstd")


_OPENERS: dict[bytes, Callable[[Path], IO[bytes]]] = {
    b"\x1f\x8b": cast("Callable[[Path], IO[bytes]]", gzip.open),
    b"\x28\xb5\x2f\xfd": _open_zstd,
    b"BZh": cast("Callable[[Path], IO[bytes]]", bz2.open),
    b"\xfd7zXZ\x00": cast("Callable[[Path], IO[bytes]]", lzma.open),
}


def is_compressed(path: Path) -> bool:
    """Return whether a file begins like a compressed one."""
    with path.open("rb") as file:
        start = file.read(6)
    return any(start.startswith(magic) for magic in _OPENERS)


# Encoding.

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins like the mark of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def decode(content: bytes, path: Path, encoding: str | None) -> tuple[str, list[Finding]]:
    """Return bytes as text, and a finding if the encoding was guessed.

    A byte order mark decides; then UTF-8, if the bytes are; then UTF-16, if every other byte of the beginning
    is zero; then cp1252, if the text is safely a Western European one.

    Args:
        content: The bytes of a file.
        path: Its name, for messages.
        encoding: The encoding, if it is known.

    Raises:
        DataError: If the bytes are not of that encoding, or of none that can be told safely.
    """
    if encoding is None:
        encoding = next((codec for mark, codec in _MARKS if content.startswith(mark)), None)
    if encoding is not None:
        try:
            text = content.decode(encoding)
        except UnicodeError as error:
            raise _undecodable(content, path, encoding, error) from error
        is_usual = encoding.lower().replace("_", "-").startswith(("utf-8", "utf8"))
        return text, [] if is_usual else [Finding("encoding", f"'{path}' is read as {encoding}.")]
    if guess := _guess_utf16(content):
        return decode(content, path, guess)[0], [_guess_finding(path, "UTF-16 without a mark", guess, "")]
    try:
        return content.decode("utf-8"), []
    except UnicodeDecodeError as error:
        text = _western_text(content)
        if text is None:
            raise _undecodable(content, path, "utf-8", error) from error
    words = ", ".join(f"'{word}'" for word in _accented_words(text)[:_QUOTED_WORDS])
    return text, [
        _guess_finding(path, "not UTF-8", "cp1252 (Western European)", f": {words}" if words else "")
    ]


def _guess_finding(path: Path, description: str, encoding: str, words: str) -> Finding:
    return Finding(
        "encoding",
        f"'{path}' is {description} and is read as {encoding}{words}; "
        "if that is wrong, name the encoding with --encoding.",
    )


def _undecodable(content: bytes, path: Path, encoding: str, error: UnicodeError) -> DataError:
    start = error.start if isinstance(error, UnicodeDecodeError) else 0
    line = content[:start].decode(encoding, "ignore").count("\n") + 1
    byte = f"the byte 0x{content[start]:02x}" if start < len(content) else "an end that is cut off"
    return DataError(
        f"line {line} of '{path}' has {byte}, which is not {encoding.removesuffix('-sig').upper()} "
        f"(byte {start + 1} of the file); name the encoding with --encoding, such as cp1252 or utf-16, "
        "or save the file as UTF-8."
    )


def _guess_utf16(content: bytes) -> str | None:
    """Return the byte order of UTF-16 without a mark, in which half the bytes of plain letters are zero."""
    sample = content[:_SAMPLE_BYTES]
    pairs = max(1, len(sample) // 2)
    even, odd = sample[0::2].count(0) / pairs, sample[1::2].count(0) / pairs
    if max(even, odd) < 0.4 or min(even, odd) > 0.05:  # noqa: PLR2004 (most letters of Latin texts, hardly any)
        return None
    return "utf-16-le" if odd > even else "utf-16-be"


_ALPHABETS = tuple(
    frozenset(letters + letters.upper().replace("SS", ""))
    for letters in (
        "äöüßéèêáàçñ",  # German, and its loan words
        "àâæçéèêëîïôœùûüÿñ",  # French
        "áéíóúüñçà",  # Spanish, Catalan
        "áâãàçéêíóôõúü",  # Portuguese
        "àèéìòùîäöüç",  # Italian
        "åäöæøéèêóòôü",  # Danish, Norwegian, Swedish, Finnish
        "ëïéèêóöüäáíúç",  # Dutch
    )
)
_SIGNS = frozenset("\xa0€£§°„“”‚‘’–—…«»‹›¿¡·•™®©´¨²³µ½¼¾±×ªº")  # noqa: RUF001 (quotation marks)
_ACCENTED = r"[À-ÖØ-öø-ÿŒœŠšŽžŸ]"
_ACCENTED_WORD = re.compile(rf"[A-Za-z]*{_ACCENTED}(?:[A-Za-z]|{_ACCENTED})*")
# Where these stand in a word, the bytes are letters of an older encoding.
_SIGN_IN_WORD = re.compile(r"[A-Za-z][„“”‚‘…•™‹›€£§¿¡¼½¾°±«»©®²³ªº][A-Za-z]")  # noqa: RUF001
_UTF8_SEQUENCE = re.compile(rb"[\xc3-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}")
_MAX_ACCENTED_SHARE = 0.6


def _western_text(content: bytes) -> str | None:
    """Return bytes decoded as cp1252 if they are safely a text of Western Europe; else None.

    Safe means: every special letter is one of a single language's, most letters of their words are plain, no
    sign stands where an older encoding has letters, and nothing in the file is UTF-8.
    """
    if _UTF8_SEQUENCE.search(content):
        return None
    try:
        text = content.decode("cp1252")
    except UnicodeDecodeError:
        return None
    special = {character for character in set(text) if not character.isascii()}
    letters = {character for character in special - _SIGNS if character.isalpha()}
    if not special <= letters | _SIGNS or not any(letters <= alphabet for alphabet in _ALPHABETS):
        return None
    words = _ACCENTED_WORD.findall(text)
    accented = sum(not character.isascii() for word in words for character in word)
    if accented > _MAX_ACCENTED_SHARE * sum(map(len, words)) or _SIGN_IN_WORD.search(text):
        return None
    return text


def _accented_words(text: str) -> list[str]:
    return list(dict.fromkeys(match.group() for match in _ACCENTED_WORD.finditer(text)))
