"""Multiple choice: questions with choices of their own, which a model answers in text."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from pydantic import JsonValue

from rankfold.errors import DataError
from rankfold.tasks.data.columns import Columns, has_columns
from rankfold.tasks.data.questions import QuestionColumns, find_question_columns, question_row
from rankfold.tasks.data.read import Rows, Table
from rankfold.tasks.data.table import quote_list
from rankfold.tasks.kinds.answers import Instruction
from rankfold.tasks.kinds.instruction import InstructionKind
from rankfold.tasks.kinds.kind import Examples, LabelHints
from rankfold.tasks.kinds.learner import Learner
from rankfold.tasks.scoring import NO_CHOICE, named_choice


class MultipleChoice(InstructionKind):
    """Instructions whose rows bring their choices, scored by accuracy.

    Rankfold 0.1.0 recorded such tasks as instructions. The two train on the same rows in the same order and
    are scored alike, so its records are still evaluated as instructions, and its stopped runs resume.
    """

    name: ClassVar[str] = "multiple_choice"
    default_for_causal: ClassVar[bool | None] = None
    former_names: ClassVar[tuple[str, ...]] = ("instruction",)

    def suits(self, rows: Rows, columns: Columns, *, is_causal: bool) -> bool:
        """Return whether rows have choices and no label column, for a model that generates text."""
        if columns.choices is not None:
            return is_causal
        return is_causal and columns.label is None and has_columns(rows[0], ("choices", "answer"))

    def columns(self, rows: Rows, overrides: Columns) -> Columns:
        """Return the columns of question, choices and answer, of which those that are not named are guessed.

        Raises:
            DataError: If there are no choices, or one of the columns is missing.
        """
        named = _question_columns(overrides)
        if named == QuestionColumns(None, None, None) and has_columns(rows[0], ("choices", "answer")):
            return super().columns(rows, overrides)
        found = find_question_columns(rows[0], named, guesses=True) or find_question_columns(
            rows[0], named, is_answered=False, guesses=True
        )
        if found is None or found.label is None:
            raise DataError(
                "there are no columns of choices, or none of the question or the answer; name them as "
                "--choices-column A,B,C,D with --text-column and --label-column; the data has "
                f"{quote_list(rows[0])}."
            )
        return replace(overrides, **found._asdict())

    def examples(self, tables: Mapping[str, Table], columns: Columns, hints: LabelHints) -> Examples:
        """Return questions with their answers and candidates.

        Raises:
            DataError: If a row cannot be read, or no answer of a split names one of its choices.
        """
        examples = super().examples(tables, columns, hints)
        for split, items in examples.splits.items():
            if not any(item.candidates for item in items):
                raise DataError(
                    f"no answer of the split '{split}' names one of its choices; "
                    "end 'output' with the choice or its number, or learn it as text with --kind instruction."
                )
        return examples

    def input_columns(self, rows: Rows, overrides: Columns) -> Columns:
        """Return the columns of the question and its choices, if they are not called so."""
        if "instruction" in rows[0]:
            return overrides
        named = _question_columns(overrides)
        question = find_question_columns(rows[0], named, is_answered=False, guesses=True)
        return overrides if question is None else replace(overrides, **question._asdict())

    def inputs(self, rows: Rows, columns: Columns, hints: LabelHints | None = None) -> list[Instruction]:
        """Return questions without answers, with their choices as candidates."""
        if columns.choices is not None or all("choices" in row and "instruction" not in row for row in rows):
            rows, columns = [question_row(row, columns.question) for row in rows], Columns()
        return super().inputs(rows, columns, hints)

    def answer(self, learner: Learner, examples: Sequence[Instruction]) -> list[dict[str, JsonValue]]:
        """Return the choice that answers each question, as its text and its index from 0.

        Where the model's own text is read, it stands beside them, and they are None if it names no choice.
        """
        return [
            _as_choice(item, answer)
            for item, answer in zip(examples, super().answer(learner, examples), strict=True)
        ]


def _question_columns(overrides: Columns) -> QuestionColumns:
    return QuestionColumns(overrides.text, overrides.label, overrides.choices)


def _as_choice(item: Instruction, answer: dict[str, JsonValue]) -> dict[str, JsonValue]:
    names, text = item.choice_names, str(answer["text"])
    if "probabilities" in answer:
        return {**answer, "choice": names.index(text)}
    index = named_choice(text, item.candidates) if item.candidates else NO_CHOICE
    if index == NO_CHOICE:
        return {"text": None, "choice": None, "generated": text}
    return {"text": names[index], "choice": index, "generated": text}


KIND = MultipleChoice()
