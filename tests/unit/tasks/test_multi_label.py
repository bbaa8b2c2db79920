"""Multi-label rows: lists and separated texts become the same task, and bad rows are named."""

import json

import pytest

from rankfold.errors import DataError
from rankfold.tasks import TaskRequest, load_task
from rankfold.tasks.data.columns import Columns
from rankfold.tasks.data.read import Table
from rankfold.tasks.kinds import LabelHints
from rankfold.tasks.kinds.multi_label import KIND

COLUMNS = Columns("text", None, "labels")
SETS = [["a", "b"], ["b"], [], ["c", "a"], ["b", "c"], ["a"], ["a", "b", "c"], ["c"]]


def _rows(labels, column="labels"):
    return [{"text": f"text {index}", column: value} for index, value in enumerate(labels)]


def _write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return load_task(TaskRequest(data=str(path)), is_causal=False)


@pytest.mark.parametrize("separator", [";", "|", " ; "])
@pytest.mark.parametrize("column", ["labels", "tags", "label"])
def test_lists_and_separated_texts_are_the_same_task(tmp_path, separator, column):
    sets = SETS * 4
    lists = _write(tmp_path / "lists.jsonl", _rows(sets, column))
    texts = _write(tmp_path / "texts.jsonl", _rows([separator.join(row) for row in sets], column))
    assert lists.kind is texts.kind is KIND
    assert lists.examples.label_names == texts.examples.label_names == ("a", "b", "c")
    labels = [
        {item.id: item.label for items in data.examples.splits.values() for item in items}
        for data in (lists, texts)
    ]
    assert labels[0] == labels[1]
    assert [labels[0][index] for index in range(8)] == [sorted(row) for row in SETS]
    assert texts.examples.settings == {"separator": separator.strip()}


def test_learned_classes_and_separator_hold_for_other_data():
    hints = LabelHints(learned_names=("c", "b", "a"), learned_settings={"separator": "|"})
    examples = KIND.examples({"test": Table(_rows(["a|c", "b", ""]))}, COLUMNS, hints)
    assert [item.label for item in examples.splits["test"]] == [["c", "a"], ["b"], []]
    with pytest.raises(DataError, match=r"row 2 of the split 'test' has the labels 'd', but the learned"):
        KIND.examples({"test": Table(_rows(["a", "d|b"]))}, COLUMNS, hints)


def test_numbers_of_named_classes_are_names():
    table = Table(_rows([[0, 1], [1]]), {"labels": ("x", "y")})
    examples = KIND.examples({"train": table}, COLUMNS, LabelHints())
    assert [item.label for item in examples.splits["train"]] == [["x", "y"], ["y"]]


@pytest.mark.parametrize("write", [str, json.dumps, lambda row: str([int(name in row) for name in "abc"])])
def test_lists_written_as_text_are_refused(tmp_path, write):
    with pytest.raises(
        DataError, match=r"'labels' holds lists written as text, such as \[.*with ';' between"
    ):
        _write(tmp_path / "texts.jsonl", _rows([write(row) for row in SETS * 4]))
    assert not KIND.claims(_rows(["[spam]", "[ham]"]), Columns())


@pytest.mark.parametrize("names", [None, ("a", "b", "c")])
@pytest.mark.parametrize("labels", [[[1, 0, 1], [0, 0, 1]], [[True, False, True], [False, True, False]]])
def test_a_flag_for_each_label_is_refused(labels, names):
    with pytest.raises(DataError, match=r"'labels' holds a 0 or 1 for each label.*write the names"):
        KIND.examples({"train": Table(_rows(labels))}, COLUMNS, LabelHints(names=names))


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([["a"], None, ["b"]], "row 2 of the split 'train': 'labels' holds 'None'.*--drop-missing"),
        ([["a"], 3, ["b"]], "row 2 .*give a list of names"),
        ([["a"], ["a"]], "1 different labels"),
        ([["a", 0.5], ["b"]], "row 1 "),
    ],
)
def test_bad_rows_are_named(labels, words):
    with pytest.raises(DataError, match=words):
        KIND.examples({"train": Table(_rows(labels))}, COLUMNS, LabelHints())


def test_label_of_a_split_alone_is_named_with_its_row():
    tables = {"train": Table(_rows([["a"], ["b"]])), "validation": Table(_rows([["a"], ["b", "z"]]))}
    with pytest.raises(DataError, match="row 2 of the split 'validation' has the label 'z', which no row"):
        KIND.examples(tables, COLUMNS, LabelHints())
