"""Questions with choices as their authors publish them, each in columns of its own, in the columns of one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from rankfold.errors import DataError
from rankfold.train.data.read import Row, Table

_Question = tuple[str, Sequence[str], int]


def as_choices(table: Table) -> Table:
    """Return the rows with `question`, `choices` and `answer`; those in no published layout as they are.

    Raises:
        DataError: If a row has no answer, as in test splits whose answers are kept back.
    """
    first = table.rows[0]
    read = next((read for columns, read in _LAYOUTS.items() if first.keys() >= set(columns)), None)
    if "question" in first and isinstance(first.get("answer"), bool):  # boolq
        read = _true_or_false
    if read is None:
        return table
    rows: list[Row] = []
    for place, row in table.numbered():
        question, choices, answer = read(cast("dict[str, Any]", row))
        if not 0 <= answer < len(choices):
            raise DataError(
                f"row {place + 1} has no answer: they are kept back in this split; use one that has them."
            )
        known = {name: row[name] for name in ("id", "context") if name in row}
        rows.append({**known, "question": question, "choices": list(choices), "answer": answer})
    return replace(table, rows=rows)


def _true_or_false(row: Mapping[str, Any]) -> _Question:
    return row["question"], ("false", "true"), int(row["answer"])


def _keyed(row: Mapping[str, Any]) -> _Question:
    question = row["question_stem"] if "question_stem" in row else row["question"]
    names, key = row["choices"]["label"], row["answerKey"]
    return question, row["choices"]["text"], names.index(key) if key in names else -1


def _solutions(row: Mapping[str, Any]) -> _Question:
    return row["goal"], (row["sol1"], row["sol2"]), _number(row["label"])


def _lettered(row: Mapping[str, Any]) -> _Question:
    return row["question"], (row["answerA"], row["answerB"], row["answerC"]), _number(row["label"]) - 1


def _options(row: Mapping[str, Any]) -> _Question:
    return row["sentence"], (row["option1"], row["option2"]), _number(row["answer"]) - 1


def _endings(row: Mapping[str, Any]) -> _Question:
    return f"{row['activity_label']}: {row['ctx']}", row["endings"], _number(row["label"])


def _number(answer: int | str) -> int:
    """Return an answer that is written as number or text; -1 stands for none."""
    return -1 if answer == "" else int(answer)


_LAYOUTS: Mapping[tuple[str, ...], Callable[[Mapping[str, Any]], _Question]] = {
    ("question", "choices", "answerKey"): _keyed,  # arc_easy, arc_challenge
    ("question_stem", "choices", "answerKey"): _keyed,  # openbookqa
    ("goal", "sol1", "sol2", "label"): _solutions,  # piqa
    ("question", "answerA", "answerB", "answerC", "label"): _lettered,  # social_i_qa
    ("sentence", "option1", "option2", "answer"): _options,  # winogrande
    ("activity_label", "ctx", "endings", "label"): _endings,  # hellaswag
}
"""By the columns that are read."""
