"""Questions with choices in columns of any names: the same question, choices and answer."""

import json
import re

import pytest

from rankfold.errors import DataError
from rankfold.tasks import TaskRequest, load_task
from rankfold.tasks.data.columns import Columns, find_columns
from rankfold.tasks.kinds.multiple_choice import KIND

TEXTS = ("a trout", "a bat", "a wasp")
RIGHT = (1, 0, 2, 1)
LETTERS = "ABC"


def _columns(names):
    return dict(zip(names, TEXTS, strict=True))


LAYOUTS = {
    "list-index": (lambda i: {"question": f"q{i}", "choices": list(TEXTS), "answer": RIGHT[i]}, Columns()),
    "list-letter": (
        lambda i: {"question": f"q{i}", "choices": list(TEXTS), "answer": LETTERS[RIGHT[i]]},
        Columns(),
    ),
    "list-text": (
        lambda i: {"question": f"q{i}", "choices": list(TEXTS), "answer": TEXTS[RIGHT[i]]},
        Columns(),
    ),
    "list-from-one": (
        lambda i: {"question": f"q{i}", "choices": list(TEXTS), "answer": RIGHT[i] + 1},
        Columns(),
    ),
    "json-text": (
        lambda i: {"question": f"q{i}", "choices": json.dumps(TEXTS), "answer": f"{RIGHT[i]}"},
        Columns(),
    ),
    "arc": (
        lambda i: {
            "id": f"x{i}",
            "question_stem": f"q{i}",
            "choices": {"text": list(TEXTS), "label": list("123")},
            "answerKey": "123"[RIGHT[i]],
        },
        Columns(),
    ),
    "objects": (
        lambda i: {
            "question": f"q{i}",
            "options": [{"label": name, "text": text} for name, text in zip("xyz", TEXTS, strict=True)],
            "answer": "xyz"[RIGHT[i]],
        },
        Columns(),
    ),
    "by-key": (
        lambda i: {"question": f"q{i}", "options": _columns("ABC"), "answer": f"{LETTERS[RIGHT[i]]}"},
        Columns(),
    ),
    "letters": (lambda i: {"question": f"q{i}", **_columns("ABC"), "answer": LETTERS[RIGHT[i]]}, Columns()),
    "options": (
        lambda i: {
            "question": f"q{i}",
            **_columns(("option_a", "option_b", "option_c")),
            "correct_option": "abc"[RIGHT[i]],
        },
        Columns(),
    ),
    "by-column": (
        lambda i: {
            "prompt": f"q{i}",
            **_columns(("option 1", "option 2", "option 3")),
            "label": f"option {RIGHT[i] + 1}",
        },
        Columns(),
    ),
    "named": (
        lambda i: {
            "frage": f"q{i}",
            **_columns(("erste", "zweite", "dritte")),
            "loesung": TEXTS[RIGHT[i]],
        },
        Columns("frage", None, "loesung", None, "erste, zweite,dritte"),
    ),
    "named-list": (
        lambda i: {"frage": f"q{i}", "wahl": list(TEXTS), "loesung": RIGHT[i]},
        Columns("frage", None, "loesung", None, "wahl"),
    ),
}


def _write(tmp_path, rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_same_questions(tmp_path, name):
    row, columns = LAYOUTS[name]
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "validation"):
        _write(folder, [row(index) for index in range(4)])
        (folder / "rows.jsonl").rename(folder / f"{split}.jsonl")
    data = load_task(TaskRequest(data=str(folder), columns=columns), is_causal=True)
    assert data.kind is KIND
    assert data.task.metrics[0] == "accuracy"
    for index, item in enumerate(data.examples.splits["validation"]):
        assert f"question: q{index}\n" in item.prompt
        assert "Answer1: a trout Answer2: a bat Answer3: a wasp" in item.prompt
        assert item.candidates.index(item.answer) == RIGHT[index]
    told = [finding.name for finding in data.findings]
    assert ("answers_from_one" in told) is (name == "list-from-one")
    # The same columns without the answer are prompts with the same candidates.
    bare = {
        key: value
        for key, value in row(0).items()
        if key not in find_columns([row(0)], columns).question[1:2]
    }
    item = KIND.inputs([bare], KIND.input_columns([bare], columns))[0]
    assert (item.prompt, item.candidates) == (
        data.examples.splits["train"][0].prompt,
        data.examples.splits["train"][0].candidates,
    )


def test_choices_that_are_numbers_are_told_from_their_indices(tmp_path):
    rows = [
        {"question": f"q{i}", "choices": ["4", "5", "0"], "answer": answer}
        for i, answer in enumerate(("4", "0", "4") * 4)
    ]
    data = load_task(TaskRequest(data=_write(tmp_path, rows)), is_causal=True)
    assert {item.answer for item in data.examples.splits["train"]} == {
        "the correct answer is answer1",
        "the correct answer is answer3",
    }


def test_questions_may_have_different_numbers_of_choices(tmp_path):
    rows = [
        {"question": f"q{i}", "A": "x", "B": "y", "C": "z" if i % 2 else None, "answer": "AB"[i // 2 % 2]}
        for i in range(40)
    ]
    data = load_task(TaskRequest(data=_write(tmp_path, rows)), is_causal=True)
    assert {len(item.candidates) for item in data.examples.splits["train"]} == {2, 3}


@pytest.mark.parametrize(
    ("change", "columns", "words"),
    [
        (
            {"answer": "D"},
            Columns(),
            "line 3 of .*'answer' holds 'D', which stands for none of its 3 choices",
        ),
        ({"answer": -1}, Columns(), "holds '-1', which stands for none"),
        ({"answer": None}, Columns(), "holds 'None', which stands for none"),
        ({"choices": ["only"]}, Columns(), "line 3 of .*it needs a list of two or more texts"),
        ({"choices": "a or b"}, Columns(), "line 3 of .*it needs a list of two or more texts"),
        ({}, Columns(choices="wahl"), "no column 'wahl' of choices; name one that the data has"),
        ({}, Columns(choices="choices", label="x"), "no column 'x'"),
    ],
)
def test_questions_that_cannot_be_read_are_refused_with_their_place(tmp_path, change, columns, words):
    row = {"question": "q", "choices": list(TEXTS), "answer": "B"}
    rows = [row, row, {**row, **change}]
    with pytest.raises(DataError, match=words):
        load_task(TaskRequest(data=_write(tmp_path, rows * 4), columns=columns), is_causal=True)


@pytest.mark.parametrize("column", ["question", "answer"])
def test_a_missing_column_of_a_question_is_named_with_its_option(column):
    row = {"question": "q", "wahl": list(TEXTS), "answer": "B"}
    flag = {"question": "--text-column", "answer": "--label-column"}[column]
    rest = {name: value for name, value in row.items() if name != column}
    with pytest.raises(DataError, match=rf"no column of the {column}; name it with {re.escape(flag)}"):
        find_columns([rest], Columns(choices="wahl"))


def test_a_head_learns_them_only_if_all_choices_are_the_same(tmp_path):
    rows = [{"question": f"q{i}", "A": "yes", "B": "no", "answer": "AB"[i % 2]} for i in range(20)]
    data = load_task(TaskRequest(data=_write(tmp_path, rows)), is_causal=False)
    assert data.task.label_names == ("yes", "no")
    rows[0] = {**rows[0], "B": "never"}
    with pytest.raises(DataError, match="different choices"):
        load_task(TaskRequest(data=_write(tmp_path, rows)), is_causal=False)


@pytest.mark.parametrize(
    "row",
    [
        {"text": "some words", "a": "x", "b": "y", "label": "good"},
        {"question": "some words", "option_a": "x", "option_b": "y", "label": "good"},
        {"text": "some words", "label": "A"},
    ],
)
def test_other_rows_are_not_taken_for_questions(row):
    named = Columns("question" if "question" in row else "text", None, "label")
    assert find_columns([row], named) == named


def test_a_single_file_whose_answers_are_all_different_is_cut_and_read(tmp_path):
    rows = [
        {
            "question": f"q{i}",
            "context": f"c{i}",
            "opa": f"x{i}",
            "opb": f"y{i}",
            "answer": f"{'xy'[i % 2]}{i}",
        }
        for i in range(30)
    ]
    data = load_task(TaskRequest(data=_write(tmp_path, rows)), is_causal=True)
    assert data.examples.counts == {"train": 27, "validation": 3}
    assert "c0 q0" in data.examples.splits["train"][0].prompt
    assert "not read" not in " ".join(finding.message for finding in data.findings)
