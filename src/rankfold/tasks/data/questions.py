"""Questions with choices in columns of any names, as rows with `question`, `choices` and `answer`.

The choices are a list, an object with texts and labels, or columns of their own (A, B, C, D). The answer is
an index, a letter, a label of a choice, the name of its column, or its text: the same in every row.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

from rankfold.errors import DataError
from rankfold.tasks.data.table import Finding, Row, Table, quote_list

_QUESTIONS = ("question", "question_stem", "query", "problem", "prompt", "stem", "goal")
_CHOICES = ("choices", "options", "candidates")
_ANSWERS = (
    *("answer", "answer_key", "answerkey", "correct", "correct_answer", "correct_option", "correct_choice"),
    *("answer_idx", "answer_index", "label", "target", "gold", "cop"),
)
_FIXED = ("question", "choices", "answer")
_OPTION_COLUMN = re.compile(
    r"(?:(option|choice|opt|op|answer|ending|sol|candidate)[ _-]?)?([a-z]|\d)", re.IGNORECASE
)
_LEAST_CHOICES = 2


class QuestionColumns(NamedTuple):
    """The columns of questions with choices.

    Args:
        text: The question.
        label: The answer.
        choices: A list of the choices, or one column for each, with commas between their names.
    """

    text: str | None = "question"
    label: str | None = "answer"
    choices: str | None = "choices"


@dataclass(frozen=True, slots=True)
class _Question:
    """One row: its choices, the names that stand for them, and its answer as it is written."""

    place: str
    row: Row
    choices: tuple[str, ...]
    names: tuple[str, ...]
    answer: object


def find_question_columns(
    row: Row, named: QuestionColumns, *, is_answered: bool = True, guesses: bool = False
) -> QuestionColumns | None:
    """Return the columns of question, choices and answer; None if the row is no question with choices.

    Args:
        row: The first row.
        named: Columns the user has named; the others are None.
        is_answered: Whether there has to be a column of the answer.
        guesses: Whether choices are looked for also where question and answer are named.

    Raises:
        DataError: If choices are named and one of the other columns is missing.
    """
    if named.choices is None:
        is_pair = bool(named.text and named.label) and not guesses
        return None if is_pair else _guess_columns(row, named, is_answered=is_answered)
    choices = split_names(row, named.choices)
    for name in choices:
        if name not in row:
            raise DataError(
                f"there is no column '{name}' of choices; name one that the data has: {quote_list(row)}."
            )
    return _complete(row, named, choices, is_strict=is_answered)


def split_names(row: Row, names: str) -> tuple[str, ...]:
    """Return the columns of the choices: one that holds them all, or one for each."""
    return (names,) if names in row else tuple(name.strip() for name in names.split(","))


def _guess_columns(row: Row, named: QuestionColumns, *, is_answered: bool) -> QuestionColumns | None:
    lists = [(name,) for name in row if name.lower() in _CHOICES and isinstance(row[name], list | dict)]
    for choices in [*lists, *_option_columns(row)]:
        columns = _complete(row, named, choices, is_strict=False)
        if columns is not None and (not is_answered or _is_answered(row, columns)):
            return columns
    return None


def _option_columns(row: Row) -> Iterator[tuple[str, ...]]:
    """Yield groups of columns that are called like choices: A, B, C or option_1, option_2."""
    groups: dict[str, dict[str, str]] = {}
    for name in row:
        if match := _OPTION_COLUMN.fullmatch(name):
            groups.setdefault((match[1] or "").lower(), {})[match[2].lower()] = name
    for keys in groups.values():
        order = sorted(keys)
        firsts = ("a", "0", "1")
        is_gapless = [ord(key) - ord(order[0]) for key in order] == list(range(len(order)))
        if len(order) >= _LEAST_CHOICES and order[0] in firsts and is_gapless:
            yield tuple(keys[key] for key in order)


def _complete(
    row: Row, named: QuestionColumns, choices: Sequence[str], *, is_strict: bool
) -> QuestionColumns | None:
    """Return the columns with those of question and answer; None, or an error, if there are none."""

    def find(name: str | None, usual_names: Sequence[str]) -> str | None:
        if name is not None:
            return name if name in row else None
        by_usual_name = {column.lower(): column for column in row if column not in choices}
        return next((by_usual_name[usual] for usual in usual_names if usual in by_usual_name), None)

    usual_texts = (*_QUESTIONS, "text", "sentence", "input") if is_strict else _QUESTIONS
    text, label = find(named.text, usual_texts), find(named.label, _ANSWERS)
    if is_strict:
        for column, noun, flag in ((text, "question", "--text-column"), (label, "answer", "--label-column")):
            if column is None:
                raise DataError(
                    f"the choices are in {quote_list(choices)}, but there is no column of the {noun}; name "
                    f"it with {flag}, the data has {quote_list(row)}."
                )
    if text is None:
        return None
    return QuestionColumns(text, label, ",".join(choices))


def _is_answered(row: Row, columns: QuestionColumns) -> bool:
    """Return whether the answer of a row stands for one of its choices, in any way."""
    if columns.label is None:
        return False
    try:
        question = _read(row, columns)
    except DataError:
        return False
    return any(0 <= scheme(question) < len(question.choices) for scheme in _SCHEMES)


def as_questions(
    tables: Mapping[str, Table], columns: QuestionColumns
) -> tuple[Mapping[str, Table], list[Finding]]:
    """Return tables whose rows have `question`, `choices` and `answer`, the index from 0.

    Args:
        tables: By split name; the first, the training split, says how answers are written.
        columns: From `find_question_columns`.

    Raises:
        DataError: If choices or an answer cannot be read.
    """
    questions = [
        _read(row, columns, table.locate(index, split))
        for split, table in tables.items()
        for index, row in table.enumerate_rows()
    ]
    resolve, findings = _find_scheme(questions, columns)
    rows = iter([_as_row(question, resolve(question), columns) for question in questions])
    read = {split: replace(table, rows=[next(rows) for _ in table.rows]) for split, table in tables.items()}
    return read, findings


def question_row(row: Row, columns: QuestionColumns) -> Row:
    """Return a row without its answer as `question` and `choices`.

    Raises:
        DataError: If there are no choices, or no question.
    """
    return _as_row(_read(row, columns), None, columns)


def _as_row(question: _Question, answer: int | None, columns: QuestionColumns) -> Row:
    extra = {name: question.row[name] for name in ("id", "idx", "context") if name in question.row}
    text = question.row.get(columns.text or "question")
    row: dict[str, Any] = {**extra, "question": text, "choices": list(question.choices)}
    return row if answer is None else {**row, "answer": answer}


def _read(row: Row, columns: QuestionColumns, place: str = "") -> _Question:
    names = split_names(row, columns.choices or "choices")
    try:
        texts, labels = (
            _choices_of_columns(row, names)
            if len(names) > 1
            else _choices_of_list(row, next(iter(names), ""))
        )
    except DataError as error:
        raise DataError(f"{place}: {error}" if place else str(error)) from error
    return _Question(place, row, texts, labels, row.get(columns.label or "answer"))


def _choices_of_columns(row: Row, names: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    values = [row.get(name) for name in names]
    while values and values[-1] in (None, ""):  # some questions have fewer choices than others
        values.pop()
    if len(values) < _LEAST_CHOICES or not all(_is_text(value) for value in values):
        raise DataError(
            f"the choices in {quote_list(names)} are {values}; give two or more texts without a gap."
        )
    return tuple(map(str, values)), tuple(names[: len(values)])


def _choices_of_list(row: Row, name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    value = row.get(name)
    if isinstance(value, str):  # of a CSV file
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    texts, labels = _texts_and_labels(value)
    if len(texts) < _LEAST_CHOICES or not all(_is_text(text) for text in texts):
        raise DataError(f"'{name}' holds '{row.get(name)}'; it needs a list of two or more texts.")
    return tuple(map(str, texts)), tuple(map(str, labels))


def _texts_and_labels(value: object) -> tuple[list[object], list[object]]:
    match cast(Any, value):
        case {"text": [*texts], "label": [*labels]} if len(texts) == len(labels):
            return texts, labels
        case [{"text": _}, *_] as items:
            return [item.get("text") for item in items], [item.get("label", "") for item in items]
        case [*texts]:
            return texts, []
        case {**items}:
            return list(items.values()), list(items)
        case _:
            return [], []


def _is_text(value: object) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool) and value != ""


# How answers are written


def _by_name(question: _Question) -> int:
    return _index_of(question.names, question.answer)


def _by_text(question: _Question) -> int:
    return _index_of([text.strip() for text in question.choices], question.answer)


def _by_letter(question: _Question) -> int:
    answer = str(question.answer).strip().strip("().").upper()
    is_letter = len(answer) == 1 and "A" <= answer <= "Z"
    return ord(answer) - ord("A") if is_letter else -1


def _by_number(question: _Question) -> int:
    answer = question.answer
    if isinstance(answer, bool):
        return _index_of([text.lower() for text in question.choices], str(answer).lower())
    whole = re.fullmatch(r"(\d{1,4})(\.0)?", str(answer).strip())
    return -1 if whole is None else int(whole[1])


def _by_number_from_one(question: _Question) -> int:
    return _by_number(question) - 1


def _index_of(names: Sequence[str], answer: object) -> int:
    text = str(answer).strip()
    return list(names).index(text) if isinstance(answer, str | int) and text in names else -1


_SCHEMES: tuple[Callable[[_Question], int], ...] = (_by_number, _by_name, _by_letter, _by_text)


def _find_scheme(
    questions: Sequence[_Question], columns: QuestionColumns
) -> tuple[Callable[[_Question], int], list[Finding]]:
    """Return how every answer is read, which is the same way for all rows.

    Raises:
        DataError: If an answer stands for no choice.
    """
    column = columns.label or "answer"
    is_whole = all(isinstance(question.answer, int) for question in questions)
    numbers = (_by_number, _by_number_from_one)
    # Digits that are texts may be choices themselves, or their labels; numbers are counted.
    schemes = (*numbers, _by_name, _by_text) if is_whole else (_by_name, _by_text, _by_letter, *numbers)
    for scheme in schemes:
        if all(0 <= scheme(question) < len(question.choices) for question in questions):
            message = f"the answers in '{column}' are counted from 1, since one is the number of its choices."
            return scheme, [Finding("answers_from_one", message)] if scheme is numbers[1] else []
    bad = max(
        (_first_bad(questions, scheme) for scheme in schemes), key=lambda question: questions.index(question)
    )
    raise DataError(
        f"{bad.place}: '{column}' holds '{bad.answer}', which stands for none of its {len(bad.choices)} "
        "choices; write the index from 0, the letter or the text of the choice, the same in every row."
    )


def _first_bad(questions: Sequence[_Question], scheme: Callable[[_Question], int]) -> _Question:
    return next(item for item in questions if not 0 <= scheme(item) < len(item.choices))
