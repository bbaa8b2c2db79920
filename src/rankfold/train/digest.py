"""Fingerprints of files and rows, so that a record says exactly what it was made from."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_weights(folder: Path) -> str:
    """Return the SHA-256 of a model folder's weights file, or of all names and hashes if there are several.

    Safetensors files go first, so that the same weights in another format beside them do not count.
    An empty string stands for a folder without weights.
    """
    for pattern in _WEIGHTS:
        files = sorted(folder.glob(pattern))
        if len(files) == 1:
            return sha256_of_file(files[0])
        if files:
            lines = "".join(f"{file.name}:{sha256_of_file(file)}\n" for file in files)
            return hashlib.sha256(lines.encode()).hexdigest()
    return ""


def sha256_of_rows(splits: Mapping[str, Iterable[Mapping[str, object]]]) -> str:
    """Return the SHA-256 of the content of rows: the same for the same rows, however the files are packed."""
    digest = hashlib.sha256()
    for name, rows in splits.items():
        digest.update(f"{name}\n".encode())
        for row in rows:
            line = json.dumps(row, sort_keys=True, ensure_ascii=False, default=str)
            digest.update(f"{line}\n".encode())
    return digest.hexdigest()
