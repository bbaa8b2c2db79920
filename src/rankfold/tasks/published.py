"""Questions with choices as their authors publish them, each in columns of its own, in the columns of one."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from rankfold.errors import DataError
from rankfold.tasks.data.read import Row, Table

_Question = tuple[str, Sequence[str], int]


def as_choices(table: Table) -> Table:
    """Return the rows with `question`, `choices` and `answer`; those in no published layout as they are.

    Raises:
        DataError: If a row has no answer, as in test splits whose answers are kept back, or not the values
            of its layout.
    """
    first = table.rows[0]
    read = next((read for columns, read in _LAYOUTS.items() if first.keys() >= set(columns)), None)
    if "question" in first and any(isinstance(row.get("answer"), bool) for row in table.rows):  # boolq
        read = _true_or_false
    if read is None:
        return table
    rows: list[Row] = []
    for place, row in table.enumerate_rows():
        try:
            question, choices, answer = read(cast("dict[str, Any]", row))
        except DataError as error:
            raise DataError(f"{table.locate(place)}: {error}") from error
        if not 0 <= answer < len(choices):
            raise DataError(
                f"{table.locate(place)} has no answer: they are kept back in this split; "
                "use one that has them."
            )
        extra = {name: row[name] for name in ("id", "context") if name in row}
        rows.append({**extra, "question": question, "choices": list(choices), "answer": answer})
    return replace(table, rows=rows)


def _true_or_false(row: Mapping[str, Any]) -> _Question:
    if not isinstance(row["answer"], bool):
        raise _unlike(row, "answer", "true or false")
    return row["question"], ("false", "true"), int(row["answer"])


def _answer_key(row: Mapping[str, Any]) -> _Question:
    question = row["question_stem"] if "question_stem" in row else row["question"]
    match row["choices"]:
        case {"text": [*texts], "label": [*names]}:
            key = row["answerKey"]
            return question, texts, names.index(key) if key in names else -1
        case _:
            raise _unlike(row, "choices", "an object with the lists 'text' and 'label'")


def _solutions(row: Mapping[str, Any]) -> _Question:
    return row["goal"], (row["sol1"], row["sol2"]), _number(row, "label")


def _answer_letters(row: Mapping[str, Any]) -> _Question:
    return row["question"], (row["answerA"], row["answerB"], row["answerC"]), _number(row, "label") - 1


def _options(row: Mapping[str, Any]) -> _Question:
    return row["sentence"], (row["option1"], row["option2"]), _number(row, "answer") - 1


def _endings(row: Mapping[str, Any]) -> _Question:
    match row["endings"]:
        case [*endings]:
            return f"{row['activity_label']}: {row['ctx']}", endings, _number(row, "label")
        case _:
            raise _unlike(row, "endings", "a list of texts")


def _number(row: Mapping[str, Any], column: str) -> int:
    """Return an answer that is written as number or text; -1 stands for none."""
    if row[column] == "":
        return -1
    whole = re.fullmatch(r"(-?\d+)(\.0)?", str(row[column]))
    if whole is None:
        raise _unlike(row, column, "the number of a choice")
    return int(whole[1])


def _unlike(row: Mapping[str, Any], column: str, requirement: str) -> DataError:
    return DataError(
        f"the column '{column}' holds '{row[column]}' where {requirement} is needed; mend or remove the row."
    )


_LAYOUTS: Mapping[tuple[str, ...], Callable[[Mapping[str, Any]], _Question]] = {
    ("question", "choices", "answerKey"): _answer_key,  # arc_easy, arc_challenge
    ("question_stem", "choices", "answerKey"): _answer_key,  # openbookqa
    ("goal", "sol1", "sol2", "label"): _solutions,  # piqa
    ("question", "answerA", "answerB", "answerC", "label"): _answer_letters,  # social_i_qa
    ("sentence", "option1", "option2", "answer"): _options,  # winogrande
    ("activity_label", "ctx", "endings", "label"): _endings,  # hellaswag
}
"""By the columns that are read."""
