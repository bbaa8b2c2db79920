"""Text columns are found and joined as people mean them, and rows that are there twice are said."""

import csv

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankfold.errors import DataError
from rankfold.tasks import TaskRequest, load_task
from rankfold.tasks.data.columns import Columns, find_columns
from rankfold.tasks.data.odd_rows import content_keys, duplicate_findings
from rankfold.tasks.data.picture_columns import picture_columns
from rankfold.tasks.data.table import Origin, Table
from rankfold.tasks.data.texts import text_of
from tests.support.cuts import cut

_SUBJECTS = ["No wifi in building 4", "User locked out again", "Vpn drops every hour"]
_TEAMS = ["network", "accounts", "hardware"]


def _tickets(count=60):
    return [
        {
            "id": f"{1000 + row}",
            "subject": f"{_SUBJECTS[row % 3]}",
            "body": f"Hello, please help me with number {row} soon.",
            "team": _TEAMS[row % 3],
            "priority": ["low", "high"][row % 2],
        }
        for row in range(count)
    ]


def _write(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return TaskRequest(data=str(path), columns=Columns(label="team"))


def test_a_ticket_is_its_subject_and_its_body_once_the_label_is_named(tmp_path):
    data = load_task(_write(tmp_path / "tickets.csv", _tickets()), is_causal=False)
    texts = {example.text for examples in data.examples.splits.values() for example in examples}
    assert "No wifi in building 4\nHello, please help me with number 3 soon." in texts
    assert data.examples.label_names == ("accounts", "hardware", "network")
    (message,) = [finding.message for finding in data.findings if finding.name == "columns"]
    assert message == (
        "columns read: text from 'subject' and 'body' (joined by a line break), label from 'team'; "
        "not read: 'id', 'priority'."
    )


@pytest.mark.parametrize(
    ("row", "text", "pair"),
    [
        ({"Text": "a", "Label": "x"}, "Text", None),
        ({"title": "one two three", "text": "a", "label": "x"}, "text", None),
        ({"user_id": "u1 u2 u3", "note": "some longer words here", "label": "x"}, "note", None),
        ({"name": "Ann Lee", "remark": "some longer words here", "label": "x"}, "remark", None),
        ({"stars": "4", "remark": "fine", "label": "x"}, "remark", None),
        ({"date": "2024-01-01 10:00", "remark": "fine", "label": "x"}, "remark", None),
        ({"column 1": "0", "remark": "fine", "label": "x"}, "remark", None),
        ({"Premise": "a", "Hypothesis": "b", "label": "x"}, "Premise", "Hypothesis"),
        ({"Title": "a", "Message": "b", "label": "x"}, "Title,Message", None),
        ({"city": "Rome", "message": "a", "label": "x"}, "message", None),
    ],
)
def test_the_text_is_the_column_that_is_called_so_or_has_the_words(row, text, pair):
    columns = find_columns([row] * 3, Columns())
    assert (columns.text, columns.pair) == (text, pair)


def test_two_columns_of_words_are_not_guessed_between():
    row = {"question from client": "why is it so", "reply": "it is just so", "label": "x"}
    with pytest.raises(DataError, match="--text-column question from client,reply; the data has"):
        find_columns([row], Columns())


@pytest.mark.parametrize("spec", ["a,b", "b, a", "a", "a,b,c"])
def test_named_columns_are_joined_in_the_order_of_their_names_without_empty_ones(spec):
    row = {"a": "x", "b": " ", "c": None, "label": "l"}
    columns = find_columns([row], Columns(text=spec, label="label"))
    assert text_of(row, columns.text) == "x"
    assert text_of({**row, "b": "y"}, "b,a") == "y\nx"


def test_a_column_whose_name_has_a_comma_is_one_column():
    row = {"a,b": "x", "a": "y", "b": "z", "label": "l"}
    assert text_of(row, find_columns([row], Columns(text="a,b")).text) == "x"


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (Columns(text="a,d"), "no column 'd'"),
        (Columns(text="a,label"), "'label' would be text and label at once"),
        (Columns(text="a,a"), "'a' would be text and text at once"),
        (Columns(text="a,b", group="b"), "'b' is read as text or label and cannot be the group"),
    ],
)
def test_named_columns_that_cannot_be_joined_are_refused(columns, words):
    with pytest.raises(DataError, match=words):
        find_columns([{"a": "x", "b": "y", "label": "l"}], columns)


def test_columns_of_pictures_are_known_by_what_they_hold():
    row = {
        "text": "see a.png",
        "path": "img/a.PNG",
        "raw": b"\x89PNG....",
        "image": {"bytes": b"", "path": "a.jpg"},
        "images": ["a.jpg", "b.webp"],
        "none": None,
    }
    assert picture_columns([row, row | {"path": None}]) == ["path", "raw", "image", "images"]


# Duplicates.


@given(
    texts=st.lists(st.integers(0, 12), min_size=12, max_size=60),
    labels=st.sampled_from([1, 2, 3]),
    conflicts=st.booleans(),
)
def test_rows_with_the_same_text_are_never_on_both_sides_of_the_cut(texts, labels, conflicts):
    rows = [
        {"text": f" {text}" if place % 2 else f"{text}", "label": (place if conflicts else text) % labels}
        for place, text in enumerate([*texts, *range(100, 140)])
    ]
    table = Table(rows)
    train, validation = cut(table, keys=content_keys(table, Columns("text", None, "label")))
    held = {row["text"].strip() for row in validation.rows}
    assert held
    assert not held & {row["text"].strip() for row in train.rows}
    assert {row["label"] for row in validation.rows} <= {row["label"] for row in train.rows}
    assert sorted([*train.indices, *validation.indices]) == list(range(len(rows)))


def test_without_duplicates_the_cut_is_the_one_it_always_was():
    table = Table([{"text": str(row), "label": row % 3} for row in range(100)])
    assert cut(table, keys=content_keys(table, Columns("text"))) == cut(table)


def _findings(splits, columns):
    tables = {
        split: Table(rows, origins=[Origin(f"{split}.csv", 0, range(2, 99))])
        for split, rows in splits.items()
    }
    return {
        finding.name: finding.message for finding in duplicate_findings(tables, columns, has_classes=True)
    }


def test_duplicates_are_counted_and_their_first_lines_are_named():
    train = [{"id": place, "text": text, "label": "x"} for place, text in enumerate("abcab")]
    validation = [{"id": place, "text": text, "label": "x"} for place, text in enumerate("dab")]
    findings = _findings({"train": train, "validation": validation}, Columns("text", None, "label"))
    assert findings == {
        "duplicates": "2 of 5 rows of the split 'train' repeat an earlier one: line 5 is line 2, "
        "line 6 is line 3 of 'train.csv'.",
        "shared_rows": "2 of 3 rows of the split 'validation' are in 'train' too, so its score is too good: "
        "line 3 of 'validation.csv' is line 2 of 'train.csv', line 4 of 'validation.csv' is line 3 of "
        "'train.csv'; remove them from one of the splits.",
    }


def test_a_text_with_two_labels_is_named_and_a_chat_is_compared_without_its_id():
    rows = [{"text": "a", "label": label} for label in "xxy"]
    findings = _findings({"train": rows}, Columns("text", None, "label"))
    assert (
        "such as 'x' in line 2 of 'train.csv' and 'y' in line 4 of 'train.csv'"
        in findings["conflicting_labels"]
    )
    chats = [{"id": row, "messages": [{"role": "user", "content": "a"}]} for row in range(2)]
    assert list(_findings({"train": chats}, Columns())) == ["duplicates"]
