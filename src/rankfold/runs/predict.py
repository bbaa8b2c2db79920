"""Predict: the answers of a saved adapter to rows of data, in their order, and files of them."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast, final

from pydantic import JsonValue

from rankfold.errors import OutputExistsError, SpecError
from rankfold.files import (
    check_free_file,
    check_replaceable,
    check_writable,
    whole_file,
    whole_folder,
    write_whole,
)
from rankfold.progress import Progress, Silent
from rankfold.runs.adapted import AdaptedModel, Answer, InputText, load
from rankfold.runs.adapter_request import PredictRequest
from rankfold.runs.fields import split_list
from rankfold.tasks.data.json_rows import read_json_row
from rankfold.tasks.data.read import Row
from rankfold.tasks.load import picture_folder, read_whole

ENDINGS = (".jsonl", ".csv")
"""The endings of files that answers are written to."""

PICTURES_LIST = "answers.jsonl"
"""The rows of a folder of pictures, each with the name of its picture."""

PREDICTION = "prediction"
"""The column of the answer itself: a class, a number, a text."""

_PROBABILITIES, _PROBABILITY = "probabilities", "probability"
_BATCHES = 16


@final
@dataclass(frozen=True, slots=True)
class AnsweredRow:
    """A row of the input with its answer."""

    row: Row
    answer: Answer

    @property
    def prediction(self) -> JsonValue:
        """The answer itself, which is the first value of the answer's object."""
        return next(iter(self.answer.values()))

    @property
    def probability(self) -> float | None:
        """The probability of the answer; None if the model gives none, or one for each of several labels."""
        shares = self.answer.get(_PROBABILITIES)
        share = shares.get(str(self.prediction)) if isinstance(shares, dict) else None
        return share if isinstance(share, float) else None

    def values(self, classes: Sequence[str] = ()) -> dict[str, object]:
        """Return the columns of the row, and behind them those of the answer.

        Args:
            classes: Those whose probabilities get columns of their own; else they are one object.
        """
        details: dict[str, object] = dict(self.answer)
        answer: dict[str, object] = {PREDICTION: details.pop(next(iter(details)))}
        shares = details.get(_PROBABILITIES)
        # The candidates of a question are its own, and make no columns.
        if isinstance(shares, dict) and classes:
            del details[_PROBABILITIES]
            answer[_PROBABILITY] = self.probability
            by_class = cast("dict[str, object]", shares)
            answer |= {f"{_PROBABILITY}: {name}": by_class[name] for name in classes}
        row = {name: value for name, value in self.row.items() if not _is_answer(name)}
        # A column of the user's own keeps its name; one with the same value, such as tokens, is there once.
        answer |= {
            f"{PREDICTION}: {name}" if name in row else name: value
            for name, value in details.items()
            if name not in row or row[name] != value
        }
        return {**row, **answer}


def _is_answer(column: str) -> bool:
    """Whether a column is that of an answer, which an earlier prediction may have left in the data."""
    prefixes = (f"{PREDICTION}: ", f"{_PROBABILITY}: ")
    return column in (PREDICTION, _PROBABILITY, _PROBABILITIES) or column.startswith(prefixes)


def replaced_columns(rows: Iterable[InputText]) -> list[str]:
    """Return the columns of the input that answers take the place of."""
    names = dict.fromkeys(name for row in rows if isinstance(row, Mapping) for name in row)
    return [name for name in names if _is_answer(name)]


def load_for(request: PredictRequest) -> AdaptedModel:
    """Load the adapter that a request names.

    Raises:
        AdapterFileError: If there is no adapter, it is damaged, or it does not belong to the base model.
        SpecError: If nothing names the base model, or it is not found.
    """
    names = split_list("labels", request.labels) or None
    model = load(
        str(request.adapter),
        request.model,
        kind=request.kind,
        label_names=names,
        max_length=request.max_length,
        scoring=request.scoring,
        chat_template=request.chat_template,
        batch_size=request.batch_size,
        device=request.device,
        precision=request.precision,
        trust_remote_code=request.trust_remote_code,
    )
    if request.data is not None:
        folder = picture_folder(request.data, request.split)
        model = replace(model, hints=replace(model.hints, folder=folder))
    return model.with_columns(request.text_column, request.pair_column)


def predict(request: PredictRequest, *, progress: Progress | None = None) -> Iterator[AnsweredRow]:
    """Yield each row of the data with its answer, in order.

    Args:
        request: Names the adapter and the data.
        progress: Gets the number of rows that are answered.

    Raises:
        AdapterFileError: If there is no adapter, it is damaged, or it does not belong to the base model.
        SpecError: If nothing names the base model, it is not found, or no data is named.
        DataError: If the data cannot be read, or a text is missing.
    """
    if request.data is None:
        raise SpecError("there is no data to predict; name it with --data, or give texts with --text.")
    rows = read_whole(request.data, request.split, request.read_options).rows
    return answer_rows(load_for(request), rows, request, progress=progress)


def answer_rows(
    model: AdaptedModel,
    rows: Sequence[Row],
    request: PredictRequest,
    *,
    progress: Progress | None = None,
    on_text: Callable[[str], None] | None = None,
) -> Iterator[AnsweredRow]:
    """Yield each row with its answer, in order; all rows are read as examples before the first is answered.

    Args:
        model: Made by `load`.
        rows: In any number.
        request: How texts are generated.
        progress: Gets the number of rows that are answered.
        on_text: Gets a generated answer piece by piece, if there is one row.

    Raises:
        DataError: If a column or a text is missing, with the number of its row.
    """
    examples = model.examples(rows)
    bar = progress or Silent()
    bar.start(len(rows), "predict")
    # Rows of a part are sorted by length before they are put into batches.
    size = model.learner.batch_size * _BATCHES
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        for row, answer in zip(
            rows[part], model.answer(examples[part], request, on_text=on_text), strict=True
        ):
            yield AnsweredRow(row, answer)
        bar.advance(min(start + size, len(rows)))
    bar.finish()


def parse_lines(lines: Iterable[str]) -> list[InputText]:
    """Return lines of standard input as inputs: a line that begins with a brace is a row, any other a text.

    Raises:
        DataError: If a line that begins with a brace is no object of JSON, or repeats a key.
    """
    return [_input_of(line, number) for number, line in enumerate(lines, 1)]


def _input_of(line: str, number: int) -> InputText:
    line = line.removeprefix("\ufeff") if number == 1 else line
    if not line.lstrip().startswith("{"):
        return line.rstrip("\r\n")
    place = f"line {number} of standard input"
    return read_json_row(line.strip(), place, "write an object of JSON, or give a text with --text")


# Files of answers


def check_answer_file(path: Path, *, overwrite: bool) -> None:
    """Check, before any work is done, that answers can be written to a file; pictures, to a folder.

    Raises:
        SpecError: If its ending is not one of `ENDINGS`, or nothing can be written there.
        OutputExistsError: If it exists and shall not be replaced.
    """
    if not path.suffix:
        check_replaceable(path, overwrite=overwrite, marks=[PICTURES_LIST], kind="folder of pictures")
        check_writable(path.resolve())
        return
    if path.suffix not in ENDINGS:
        raise SpecError(f"'{path}' ends in '{path.suffix}'; name a file that ends in {' or '.join(ENDINGS)}.")
    check_free_file(path, overwrite=overwrite)


def check_answer_form(model: AdaptedModel, path: Path | None) -> None:
    """Check that the output suits the answers: for pictures a folder, for others a file.

    Args:
        model: Made by `load`.
        path: The file or folder; None if answers are printed.

    Raises:
        SpecError: If they have not.
    """
    is_folder = path is not None and not path.suffix
    if model.kind.draws and not is_folder:
        raise SpecError("the answers are pictures; name a folder to write them into with --out.")
    if is_folder and not model.kind.draws:
        raise SpecError(f"'{path}' has no ending; name a file that ends in {' or '.join(ENDINGS)}.")


def _write_pictures(answers: Iterable[AnsweredRow], folder: Path, *, overwrite: bool) -> int:
    """Write the picture of each answer as a PNG file, and the rows with the names of theirs."""
    lines: list[str] = []
    with whole_folder(
        folder, check=partial(check_answer_file, folder, overwrite=overwrite), last=PICTURES_LIST
    ) as work:
        for number, item in enumerate(answers, 1):
            role, name = next(iter(item.answer)), f"{number:06}.png"
            cast(Any, item.prediction).save(work / name)
            lines.append(f"{json_line(AnsweredRow(item.row, {**item.answer, role: name}))}\n")
        write_whole(work / PICTURES_LIST, "".join(lines).encode())
    return len(lines)


def write_answers(
    answers: Iterable[AnsweredRow], path: Path, *, classes: Sequence[str] = (), overwrite: bool = False
) -> int:
    """Write rows with their answers as JSON Lines or CSV, or pictures into a folder, once all are there.

    A CSV file has the columns of the input, `prediction`, and for a task with classes `probability` and a
    column `probability: CLASS` for each; lists and objects are written as JSON, and the cell of a value that
    is missing is empty.

    Args:
        answers: In the order of the file.
        path: The file, whose ending says the form; a folder for pictures.
        classes: The class names of the task, if it has classes.
        overwrite: Whether to replace an earlier file.

    Returns:
        The number of rows.

    Raises:
        SpecError: If its ending is not one of `ENDINGS`, or nothing can be written there.
        OutputExistsError: If it exists and shall not be replaced.
    """
    check_answer_file(path, overwrite=overwrite)
    if not path.suffix:
        return _write_pictures(answers, path, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, check=partial(_check_absent, path, overwrite=overwrite)) as file:
        if path.suffix == ".csv":
            return _write_csv(file, [_cells(answer.values(classes)) for answer in answers])
        count = 0
        for count, answer in enumerate(answers, 1):  # noqa: B007 (the number of the last one)
            file.write(f"{json_line(answer)}\n".encode())
        return count


def _check_absent(path: Path, *, overwrite: bool) -> None:
    """Check that nobody has written the file in the meantime."""
    if path.exists() and not overwrite:
        raise OutputExistsError(f"'{path}' has been written by another program; choose another file.")


def json_line(answer: AnsweredRow) -> str:
    """Return a row with its answer as one line of JSON."""
    return json.dumps(answer.values(), ensure_ascii=False, default=str)


def _write_csv(file: BinaryIO, rows: Sequence[Mapping[str, object]]) -> int:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    # Not every row need have the same columns, nor every answer.
    columns = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    text.flush()
    text.detach()
    return len(rows)


def _cells(values: Mapping[str, object]) -> dict[str, object]:
    return {name: _cell(value) for name, value in values.items()}


def _cell(value: object) -> object:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list | bool) else value
