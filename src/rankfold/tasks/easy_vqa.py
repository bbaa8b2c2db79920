"""easy-VQA: questions about pictures of one coloured shape, from the package `easy-vqa`, as bytes.

The package has 4,000 pictures for training and 1,000 for testing. Every tenth picture for training is in the
validation split, with all its questions.
"""

import json
from collections import defaultdict
from collections.abc import Mapping

from rankfold.errors import DataError
from rankfold.files import package_folder
from rankfold.tasks.data.read import Row, Table

SOURCE = "package easy-vqa"
HELD_OUT = 10
_SHAPES = {"circle", "rectangle", "triangle"}
_YES_NO = {"yes", "no"}


def read_easy_vqa() -> Mapping[str, Table]:
    """Return the three splits; a row has the bytes of its picture, a question, its type and an answer.

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
                is_held_out = source == "train" and place % HELD_OUT == HELD_OUT - 1
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
