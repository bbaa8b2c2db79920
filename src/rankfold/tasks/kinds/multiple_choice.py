"""Multiple choice: questions with choices of their own, which a model answers in text."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from pydantic import JsonValue

from rankfold.errors import DataError
from rankfold.tasks.data.columns import Columns, has_columns
from rankfold.tasks.data.questions import QuestionColumns, find_question_columns, question_row
from rankfold.tasks.data.read import Rows, Table
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
        named = QuestionColumns(overrides.text, overrides.label, overrides.choices)
        question = (
            None if "instruction" in rows[0] else find_question_columns(rows[0], named, is_answered=False)
        )
        return overrides if question is None else replace(overrides, **question._asdict())

    def inputs(self, rows: Rows, columns: Columns, hints: LabelHints | None = None) -> list[Instruction]:
        """Return questions without answers, with their choices as candidates."""
        if columns.choices is not None or all("choices" in row and "instruction" not in row for row in rows):
            rows, columns = [question_row(row, columns.question) for row in rows], Columns()
        return super().inputs(rows, columns, hints)

    def answer(self, learner: Learner, examples: Sequence[Instruction]) -> list[dict[str, JsonValue]]:
        """Return the text that answers each question, and the index of the choice that it names, from 0."""
        answers = super().answer(learner, examples)
        for item, answer in zip(examples, answers, strict=True):
            index = named_choice(str(answer["text"]), item.candidates) if item.candidates else NO_CHOICE
            answer["choice"] = None if index == NO_CHOICE else index
        return answers


KIND = MultipleChoice()
