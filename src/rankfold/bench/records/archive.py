"""The records of many runs in one small file, without adapters: what one commits and sends.

`records.jsonl.gz` in a suite's folder holds a record a line. A run that is in it counts as done, so a suite
goes on from its archive as it does from its folders.
"""

import gzip
import json
import zlib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

from rankfold.bench.records.record import RunRecord, parse_record
from rankfold.errors import DataError
from rankfold.files import write_whole

NAME = "records.jsonl.gz"


def write_archive(records: Iterable[RunRecord], folder: Path) -> Path:
    """Write records into a folder's archive, in place of what it held, and return its path.

    The same records give the same bytes.
    """
    lines = [
        json.dumps(record.to_dict(), ensure_ascii=False, separators=(",", ":"))
        for record in sorted(records, key=lambda each: (each.name, each.created))
    ]
    text = "".join(f"{line}\n" for line in lines)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / NAME, gzip.compress(text.encode(), compresslevel=9, mtime=0))
    return folder / NAME


def read_archive(file: Path) -> Mapping[str, RunRecord]:
    """Return the records of an archive by the names of their runs; none if there is no such file.

    Raises:
        DataError: If it is damaged, or a record is.
    """
    if not file.is_file():
        return {}
    status = file.stat()
    return _read(file, (status.st_mtime_ns, status.st_size))


@lru_cache(maxsize=4)
def _read(file: Path, _version: tuple[int, int]) -> Mapping[str, RunRecord]:
    """Read an archive once for each version of it, however many runs ask whether they are in it."""
    try:
        lines = gzip.decompress(file.read_bytes()).splitlines()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"'{file}' is damaged ({error}); write it again with `rankfold bench archive`."
        ) from error
    places = ((line, f"line {number} of '{file}'") for number, line in enumerate(lines, start=1))
    return {record.name: record for record in (parse_record(line, place) for line, place in places)}
