"""Prompts: rows of instructions and of questions with choices as a prompt, its answer and its candidates.

The texts are those of LLM-Adapters, whose answers are "the correct answer is answer2", or "... is true"; rows
that bring only their choices are asked in the same words.
"""

import re
from collections.abc import Sequence
from typing import cast

from rankfold.errors import DataError
from rankfold.tasks.data.table import Row, quote_list
from rankfold.tasks.data.texts import text_of

_CHOICE = ("question", "choices", "answer")

_OPENINGS = {
    "answer": "correct answer to the question",
    "solution": "correct solution to the question",
    "option": "correct answer to fill in the blank to complete the given sentence",
    "ending": "correct ending to complete the given sentence",
}
"""What is to be chosen, by what a choice is called."""

_TRUTH = {"true", "false"}

_MOST_ANSWERS = 10
"""A training split with no more different answers than this is a choice among them."""


def prompt_and_answer(row: Row, choice_word: str = "answer") -> tuple[str, str]:
    """Return the prompt of a row and the answer to learn.

    A row has `instruction` and `output` (and perhaps `input`), or `question`, `choices` and `answer`
    (and perhaps `context`), for which the prompt is written here.

    Args:
        row: What is asked.
        choice_word: What such a prompt calls a choice: `answer`, `solution`, `option` or `ending`.

    Raises:
        DataError: If a column is missing or empty, or the answer is not one of the choices.
    """
    if "instruction" in row and "output" in row:
        return _instruction(row), text_of(row, "output")
    if not all(name in row for name in _CHOICE):
        raise DataError(
            f"an instruction needs 'instruction' and 'output', or {quote_list(_CHOICE)}, but there are "
            f"{quote_list(row)}; rename the columns, or name another kind with --kind."
        )
    prompt, answers = _question(row, choice_word)
    return prompt, answers[answer_index(row)]


def prompt_of(row: Row, choice_word: str = "answer") -> tuple[str, tuple[str, ...]]:
    """Return the prompt of a row without its answer, and the answers to choose from; none if it is open.

    Args:
        row: It has `instruction` (and perhaps `input`), or `question` and `choices`.
        choice_word: As for `prompt_and_answer`.

    Raises:
        DataError: If a column is missing or empty.
    """
    return (_instruction(row), ()) if "instruction" in row else _question(row, choice_word)


def _instruction(row: Row) -> str:
    instruction, details = text_of(row, "instruction"), row.get("input")
    return f"{instruction}\n\n{details}" if isinstance(details, str) and details else instruction


def _question(row: Row, choice_word: str) -> tuple[str, tuple[str, ...]]:
    """Return the prompt for a question with choices, and the answer for each choice."""
    choices, context, question = choices_of(row), row.get("context"), text_of(row, "question")
    if isinstance(context, str):
        question = f"{context} {question}"
    if set(choices) == _TRUTH:
        prompt, names = _true_or_false(question), choices
    else:
        names = tuple(f"{choice_word}{number}" for number in range(1, len(choices) + 1))
        prompt = _choose(question, choices, names, choice_word)
    return prompt, tuple(f"the correct answer is {name}" for name in names)


def _true_or_false(question: str) -> str:
    question_text = (
        f"Please answer the following question with true or false, question: {question.removesuffix('?')}?"
    )
    return f"{question_text}\n\nAnswer format: true/false"


def _choose(question: str, choices: Sequence[str], names: Sequence[str], choice_word: str) -> str:
    choice_list = [f"{name.capitalize()}: {choice}" for name, choice in zip(names, choices, strict=True)]
    parts = (
        f"Please choose the {_OPENINGS[choice_word]}: {question}",
        ("\n\n" if choice_word == "solution" else " ").join(choice_list),
        f"Answer format: {'/'.join(names)}",
    )
    return "\n\n".join(parts)


def candidate_answers(row: Row, answer: str) -> tuple[str, ...]:
    """Return the answers a row could have, the right one among them, in the order of its choices.

    Empty if the row has no choices, or if the text of the answer does not say which choice it names.
    """
    if "choices" not in row or "answer" not in row:
        return ()
    choices, right = choices_of(row), answer_index(row)
    match = re.fullmatch(r"(.*[^\W\d_])(\d+)", answer, flags=re.DOTALL)
    # The number is asked for first: where a choice is "4" itself, "answer4" still means the fourth. It has to
    # be written as those it is compared with, which "answer04" is not.
    if match and match[2] == str(right + 1):
        return tuple(f"{match[1]}{number}" for number in range(1, len(choices) + 1))
    if answer.endswith(choices[right]):
        stem = answer.removesuffix(choices[right])
        return tuple(stem + choice for choice in choices)
    return ()


def closed_answers(answers: Sequence[str]) -> tuple[str, ...]:
    """Return the different answers in order if there are few enough to choose among, else nothing."""
    different = sorted(set(answers))
    return tuple(different) if 1 < len(different) <= _MOST_ANSWERS < len(answers) else ()


def choices_of(row: Row) -> tuple[str, ...]:
    """Return the choices of a row.

    Raises:
        DataError: If they are not a list of at least two texts.
    """
    value = row.get("choices")
    choices = cast("list[object]", value) if isinstance(value, list) else []
    if len(choices) < 2 or not all(isinstance(choice, str) for choice in choices):  # noqa: PLR2004
        raise DataError(f"'choices' holds '{value}'; it needs a list of two or more texts.")
    return tuple(cast("list[str]", choices))


def answer_index(row: Row) -> int:
    """Return the index of the right choice.

    Raises:
        DataError: If it is not the index of a choice.
    """
    answer, count = row.get("answer"), len(choices_of(row))
    if not isinstance(answer, int) or not 0 <= answer < count:
        raise DataError(f"'answer' holds '{answer}', but there are {count} choices; count them from 0.")
    return answer
