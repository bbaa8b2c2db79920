"""Emoji of Noto with their names as captions, 32 x 32 pixels, in an archive that comes with rankfold.

`benchmarks/emoji.py` has drawn them. Every tenth caption, by its hash, is in the validation split.
"""

import json
from collections.abc import Mapping
from importlib.resources import files
from zipfile import ZipFile

from rankfold.tasks.data.read import Row, Table

SOURCE = "rankfold"
_ARCHIVE = "emoji_noto.zip"


def read_emoji_noto() -> Mapping[str, Table]:
    """Return both splits; a row has the bytes of its picture and a caption."""
    with files("rankfold.tasks").joinpath(_ARCHIVE).open("rb") as file, ZipFile(file) as archive:

        def read(split: str) -> Table:
            rows: list[Row] = []
            for line in archive.read(f"{split}/metadata.jsonl").decode().splitlines():
                row = json.loads(line)
                name = row["file_name"]
                rows.append({"id": name, "image": archive.read(f"{split}/{name}"), "text": row["text"]})
            return Table(rows)

        return {split: read(split) for split in ("train", "validation")}
