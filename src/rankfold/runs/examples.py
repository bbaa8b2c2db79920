"""Examples of a run: the worst held-out rows with their texts, and sample answers, beside its record.

`run.json` has ids and predictions only. The texts are in `examples.jsonl`, which can be removed, or never
written (`--no-keep-texts`), where they are nobody else's business.
"""

import base64
import io
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, JsonValue, StringConstraints, TypeAdapter, ValidationError, with_config

from rankfold.errors import DataError
from rankfold.files import write_whole

if TYPE_CHECKING:  # reports read examples without torch
    from rankfold.tasks.kinds import Evaluation, Learner
    from rankfold.tasks.task import TaskData

NAME = "examples.jsonl"

MOST_MISTAKES = 50
_SAMPLES = 8
_SAMPLE_TOKENS = 64
_MOST_LETTERS = 2000
_MOST_BYTES = 16 << 20
_PICTURE_SIDE, _PICTURE_QUALITY = 256, 85
_MOST_PICTURE = 200_000
_PICTURE = r"^data:image/webp;base64,[A-Za-z0-9+/]+=*$"


@with_config(ConfigDict(extra="forbid", strict=True))
@dataclass(frozen=True, slots=True)
class HeldOutExample:
    """One held-out row as people read it.

    Args:
        role: `mistake`, one of the worst; `sample`, an answer beside its reference.
        id: The row's.
        texts: The inputs by name; long ones are cut.
        label: The right answer: a class name, a number, a text.
        prediction: The model's.
        loss: The row's loss, by which mistakes are sorted: for numbers the distance; None if there is none.
        pictures: Small pictures by name, such as the base model's and the adapter's, as data URLs.
    """

    role: Literal["mistake", "sample"]
    id: int | str
    texts: Mapping[str, Annotated[str, StringConstraints(max_length=2 * _MOST_LETTERS)]]
    label: JsonValue
    prediction: JsonValue
    loss: float | None = None
    pictures: Mapping[str, Annotated[str, StringConstraints(pattern=_PICTURE, max_length=_MOST_PICTURE)]] = (
        field(default_factory=dict[str, str])
    )


def choose_examples(data: "TaskData", learner: "Learner", evaluation: "Evaluation") -> list[HeldOutExample]:
    """Return the worst mistakes of an evaluation, and samples of texts and pictures that no metric judges.

    Args:
        data: With the held-out split.
        learner: The model, which writes the sample answers.
        evaluation: On the held-out split.
    """
    if data.kind.draws:
        return _pictures(data, learner)
    return [*_mistakes(data, evaluation), *_samples(data, learner, evaluation)]


def _pictures(data: "TaskData", learner: "Learner") -> list[HeldOutExample]:
    return [
        HeldOutExample(
            "sample",
            item.id,
            _cut(data.kind.input_texts(item)),
            None,
            None,
            pictures={name: _data_url(picture) for name, picture in pictures.items()},
        )
        for item, pictures in data.kind.pictures(learner, data.examples.splits["validation"])
    ]


def _data_url(picture: Any) -> str:
    """Return a picture of Pillow, made small, as text that a page can show."""
    small, buffer = picture.copy(), io.BytesIO()
    small.thumbnail((_PICTURE_SIDE, _PICTURE_SIDE))
    small.save(buffer, "WEBP", quality=_PICTURE_QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _mistakes(data: "TaskData", evaluation: "Evaluation") -> list[HeldOutExample]:
    examples = {item.id: item for item in data.examples.splits["validation"]}
    losses = evaluation.row_losses or list(map(_distance, evaluation.labels, evaluation.predictions))
    rows = zip(evaluation.ids, evaluation.labels, evaluation.predictions, losses, strict=True)
    wrong = [row for row in rows if row[1] != row[2] and row[0] in examples]
    # Stable, so that without losses the first rows are taken.
    wrong.sort(key=lambda row: -row[3] if math.isfinite(row[3]) else 0.0)
    kind, names = data.kind, data.examples.label_names
    return [
        HeldOutExample(
            "mistake",
            name,
            _cut(kind.input_texts(examples[name])),
            kind.describe_label(examples[name], label, names),
            kind.describe_label(examples[name], prediction, names),
            loss if math.isfinite(loss) else None,
        )
        for name, label, prediction, loss in wrong[:MOST_MISTAKES]
    ]


def _distance(label: object, prediction: object) -> float:
    """Return how far a predicted number is from the right one; NaN for anything but numbers."""
    if isinstance(label, int | float) and isinstance(prediction, float):
        return abs(label - prediction)
    return math.nan


def _samples(data: "TaskData", learner: "Learner", evaluation: "Evaluation") -> list[HeldOutExample]:
    """Return answers to the first rows that were not predicted, because their answers are open."""
    predicted = set(evaluation.ids)
    rows = [item for item in data.examples.splits["validation"] if item.id not in predicted][:_SAMPLES]
    if not rows:
        return []
    from rankfold.tasks.kinds.learner import Sampling

    room = max(1, min(_SAMPLE_TOKENS, learner.max_length // 2))
    writer = replace(learner, sampling=Sampling(room))
    answers = data.kind.answer(writer, rows)
    return [
        HeldOutExample(
            "sample",
            item.id,
            _cut(data.kind.input_texts(item)),
            data.kind.describe_label(item, data.kind.reference(item), None),
            next(iter(answer.values())),
        )
        for item, answer in zip(rows, answers, strict=True)
    ]


def _cut(texts: Mapping[str, str]) -> dict[str, str]:
    return {
        name: text if len(text) <= _MOST_LETTERS else f"{text[: _MOST_LETTERS - 1]}…"
        for name, text in texts.items()
    }


def write_examples(examples: Iterable[HeldOutExample], folder: Path) -> None:
    """Write `examples.jsonl` into a run's folder."""
    lines = [json.dumps(asdict(example), ensure_ascii=False) for example in examples]
    write_whole(folder / NAME, "".join(f"{line}\n" for line in lines).encode())


def read_examples(folder: Path) -> list[HeldOutExample]:
    """Read the `examples.jsonl` of a run's folder; none if there is no such file.

    Raises:
        DataError: If it is damaged, with the line.
    """
    path = folder / NAME
    if not path.is_file():
        return []
    if path.stat().st_size > _MOST_BYTES:
        raise DataError(f"'{path}' is larger than any that rankfold writes; remove it.")
    return [_parse_line(path, number, line) for number, line in enumerate(path.read_bytes().splitlines(), 1)]


def _parse_line(path: Path, number: int, line: bytes) -> HeldOutExample:
    try:
        return _adapter().validate_json(line)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise DataError(f"line {number} of '{path}' is no example ({reason}); remove the file.") from error


@cache
def _adapter() -> TypeAdapter[Any]:
    return TypeAdapter(HeldOutExample)
