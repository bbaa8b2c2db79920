"""Prompts, answers and the answers they are compared with."""

import gzip
import json

import pytest

from rankfold.errors import DataError
from rankfold.tasks.data.columns import Columns
from rankfold.tasks.data.read import Table
from rankfold.tasks.kinds import LabelHints
from rankfold.tasks.kinds.instruction import KIND as INSTRUCTION
from rankfold.tasks.kinds.prompts import candidate_answers, closed_answers, prompt_and_answer


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_a_question_with_choices_becomes_a_numbered_prompt(count):
    row = {"question": "Which?", "choices": [f"c{index}" for index in range(count)], "answer": count - 1}
    prompt, answer = prompt_and_answer(row)
    assert all(f"Answer{index + 1}: c{index}" in prompt for index in range(count))
    assert f"answer{count + 1}" not in prompt
    assert answer == f"the correct answer is answer{count}"
    assert candidate_answers(row, answer)[row["answer"]] == answer
    assert len(set(candidate_answers(row, answer))) == count


@pytest.mark.parametrize("word", ["solution", "option", "ending"])
def test_choices_are_called_by_their_word(word):
    row = {"question": "Which?", "choices": ["4", "2", "7"], "answer": 0}
    prompt, answer = prompt_and_answer(row, word)
    assert f"{word.capitalize()}3: 7" in prompt
    assert prompt.endswith(f"Answer format: {word}1/{word}2/{word}3")
    assert answer == f"the correct answer is {word}1"
    # A choice that is itself a number is not mistaken for the number of a choice.
    assert candidate_answers(row, answer) == tuple(f"the correct answer is {word}{n}" for n in (1, 2, 3))


def test_true_and_false_are_answered_as_such():
    row = {"question": "is it so?", "choices": ["false", "true"], "answer": 1}
    prompt, answer = prompt_and_answer(row)
    assert "is it so?\n\nAnswer format: true/false" in prompt
    assert candidate_answers(row, answer) == ("the correct answer is false", answer)


@pytest.mark.parametrize(
    ("task", "word"), [("boolq", "answer"), ("arc_easy", "answer"), ("piqa", "solution")]
)
def test_what_is_written_here_is_what_the_published_rows_say(shared_data, task, word):
    lines = gzip.decompress((shared_data / task / "validation.jsonl.gz").read_bytes()).decode().splitlines()
    rows = [json.loads(line) for line in lines[:300]]
    for row in rows:
        bare = {name: value for name, value in row.items() if name not in ("instruction", "output")}
        assert prompt_and_answer(bare, word) == (row["instruction"], row["output"])


def test_context_stands_before_the_question():
    row = {"context": "Ann ran.", "question": "Who ran?", "choices": ["Ann", "Bob"], "answer": 0}
    assert "Ann ran. Who ran?" in prompt_and_answer(row)[0]


def test_an_instruction_is_taken_as_it_is():
    assert prompt_and_answer({"instruction": "Do it.", "output": "done"}) == ("Do it.", "done")
    with_input = {"instruction": "Add.", "input": "1 2", "output": "3"}
    assert prompt_and_answer(with_input) == ("Add.\n\n1 2", "3")


def test_an_answer_that_names_its_choice_is_compared_with_the_other_choices():
    row = {"choices": ["false", "true"], "answer": 1}
    assert candidate_answers(row, "the correct answer is true") == (
        "the correct answer is false",
        "the correct answer is true",
    )


def test_an_answer_whose_number_is_written_otherwise_than_those_of_the_choices_is_open():
    assert candidate_answers({"choices": ["a", "b"], "answer": 0}, "the correct answer is answer01") == ()


def test_an_answer_that_names_no_choice_is_open():
    assert candidate_answers({"choices": ["a", "b"], "answer": 0}, "something else") == ()
    assert candidate_answers({}, "anything") == ()


def test_few_different_answers_are_a_closed_set():
    assert closed_answers(["yes", "no"] * 20) == ("no", "yes")
    assert closed_answers([f"answer {index}" for index in range(40)]) == ()


def test_closed_answers_come_from_the_training_split_alone(caplog):
    def rows(*answers):
        return Table([{"instruction": "q", "output": answer} for answer in answers])

    tables = {"train": rows(*["yes", "no"] * 10), "validation": rows("yes", "perhaps")}
    with caplog.at_level("INFO", logger="rankfold"):
        known, unknown = INSTRUCTION.examples(tables, Columns(), LabelHints()).splits["validation"]
    assert known.candidates == ("no", "yes")
    assert unknown.candidates == ()
    assert "1 of 2 answers of the split 'validation' are none of the 2" in caplog.text


@pytest.mark.parametrize(
    "row",
    [
        {"question": "q", "choices": ["a"], "answer": 0},
        {"question": "q", "choices": ["a", "b"], "answer": 2},
        {"question": "q", "choices": ["a", "b"], "answer": -1},
        {"question": "q", "choices": "ab", "answer": 0},
        {"question": None, "choices": ["a", "b"], "answer": 0},
        {"instruction": "q", "output": None},
    ],
)
def test_a_row_that_cannot_be_asked_is_refused(row):
    with pytest.raises(DataError):
        prompt_and_answer(row)
