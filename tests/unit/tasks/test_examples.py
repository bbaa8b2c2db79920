"""Rows become examples: columns are found, labels get ids, and a bad row is named."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankfold.errors import DataError
from rankfold.tasks.data.columns import Columns, check_columns, find_columns
from rankfold.tasks.data.read import Table
from rankfold.tasks.kinds import LabelHints, infer_kind
from rankfold.tasks.kinds.classification import KIND as CLASSIFICATION
from rankfold.tasks.kinds.instruction import KIND as INSTRUCTION
from rankfold.tasks.kinds.regression import KIND as REGRESSION


def _examples(columns=Columns("text", None, "label"), kind=CLASSIFICATION, names=None, **splits):
    return kind.examples({split: Table(rows) for split, rows in splits.items()}, columns, LabelHints(names))


def _rows(*labels):
    return [{"text": f"text {index}", "label": label} for index, label in enumerate(labels)]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"sentence": "a", "label": 0}, ("sentence", None, "label")),
        ({"sentence1": "a", "sentence2": "b", "label": 0.5}, ("sentence1", "sentence2", "label")),
        ({"question": "a", "sentence": "b", "label": 0}, ("question", "sentence", "label")),
        ({"premise": "a", "hypothesis": "b", "idx": 3, "label": 0}, ("premise", "hypothesis", "label")),
        ({"question1": "a", "question2": "b", "label": 0}, ("question1", "question2", "label")),
        ({"id": "x", "text": "a", "label": "y"}, ("text", None, "label")),
        ({"review": "a", "stars": 3, "category": "y"}, ("review", None, "category")),
        ({"instruction": "a", "output": "b"}, (None, None, None)),
        ({"question": "a", "choices": ["x", "y"], "answer": 1}, (None, None, None)),
    ],
)
def test_columns_are_found_by_their_usual_names(row, expected):
    assert find_columns([row], Columns()) == Columns(*expected)


def test_columns_that_are_named_win():
    row = {"title": "a", "body": "b", "text": "c", "label": 0, "stars": 3}
    assert find_columns([row], Columns("title", "body", "stars")) == Columns("title", "body", "stars")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (Columns(text="label"), "'label' would be text and label at once"),
        (Columns(text="a", pair="a"), "'a' would be text and second text at once"),
        (Columns(pair="a"), "'a' would be text and second text at once"),
        (Columns(text="a", label="a"), "'a' would be text and label at once"),
    ],
)
def test_a_column_is_read_as_one_thing(given, words):
    with pytest.raises(DataError, match=words):
        find_columns([{"a": "some words", "label": "yes"}], given)


@pytest.mark.parametrize(
    ("row", "given", "words"),
    [
        (
            {"text": "a", "label": 0},
            Columns(text="body"),
            "no column 'body'; name one that the data has: 'text', 'label'",
        ),
        ({"text": "a", "stars": 0}, Columns(), "no label column.*--label-column.*'text', 'stars'"),
        ({"notes": []}, Columns(), "that writes text, call the columns 'instruction', 'output', or"),
        ({"name": "a", "note": "b", "label": 0}, Columns(), "which column is the text.*--text-column"),
    ],
)
def test_a_missing_column_says_which_there_are(row, given, words):
    with pytest.raises(DataError, match=words):
        find_columns([row], given)


@pytest.mark.parametrize(
    ("labels", "kind"),
    [((0, 1, 2), CLASSIFICATION), (("a", "b"), CLASSIFICATION), ((0.5, 3.0), REGRESSION)],
)
def test_the_kind_follows_from_the_labels(labels, kind):
    assert infer_kind(_rows(*labels), Columns("text", None, "label"), is_causal=True) is kind


def test_instructions_are_refused_for_a_model_that_does_not_generate_text():
    rows = [{"instruction": "add 1 and 1", "output": "2"}]
    assert infer_kind(rows, Columns(), is_causal=True) is INSTRUCTION
    with pytest.raises(DataError, match="use a causal language model, such as 'smollm2'"):
        infer_kind(rows, Columns(), is_causal=False)


def test_whole_numbers_written_as_floats_are_not_guessed_at():
    with pytest.raises(DataError, match="--kind classification or --kind regression"):
        infer_kind(_rows(0.0, 1.0), Columns("text", None, "label"), is_causal=False)


@pytest.mark.parametrize(
    ("labels", "names"),
    [((3, 1, 2, 1), ("1", "2", "3")), (("b", "a", "c"), ("a", "b", "c")), ((True, False), ("false", "true"))],
)
def test_label_ids_follow_the_sorted_labels(labels, names):
    examples = _examples(train=_rows(*labels))
    assert examples.label_names == names
    assert [names[example.label] for example in examples.splits["train"]] == [
        str(label).lower() for label in labels
    ]


@pytest.mark.parametrize("labels", [(7, 3, 5), ("x", "z", "y")])
def test_label_ids_stay_the_same_when_the_names_are_given_back(labels):
    first = _examples(train=_rows(*labels))
    again = _examples(names=first.label_names, test=_rows(*labels[:2]))
    assert [item.label for item in again.splits["test"]] == [item.label for item in first.splits["train"][:2]]


def test_a_split_with_a_label_of_its_own_is_refused_with_its_name():
    words = r"'validation' has the labels 'c' \(row 2\), but the 2 labels of 'label' are 'a', 'b'; [\w ]*\.$"
    with pytest.raises(DataError, match=words):
        _examples(train=_rows("a", "b"), validation=_rows("a", "c"))


def test_measurements_taken_for_classes_are_refused_with_a_word_on_regression():
    with pytest.raises(
        DataError, match=r"'4.5' \(row 1\), but the 3 labels .* same labels, or --kind regression"
    ):
        _examples(train=_rows("3.5", "2", "n/a"), validation=_rows("4.5"))


def test_a_split_may_lack_a_label():
    assert _examples(train=_rows("a", "b", "c"), validation=_rows("a")).label_names == ("a", "b", "c")


@pytest.mark.parametrize("label", [None, math.nan, ""])
def test_a_row_without_label_is_named(label):
    with pytest.raises(DataError, match="row 2 of the split 'train': there is no label in 'label'"):
        _examples(train=_rows("a", label, "b"))


def test_class_is_named_by_its_text_whatever_its_type():
    examples = _examples(train=_rows(10, 9, "unknown"), validation=_rows("9", "unknown", "10"))
    assert examples.label_names == ("10", "9", "unknown")
    assert [item.label for item in examples.splits["validation"]] == [1, 2, 0]
    assert _examples(train=_rows("01", "1", "10", "9")).label_names == ("01", "1", "9", "10")


def test_a_single_label_is_no_classification():
    with pytest.raises(DataError, match="needs two or more"):
        _examples(train=_rows(1, 1))


def test_a_regression_reads_numbers_that_are_written_as_texts():
    examples = _examples(kind=REGRESSION, train=_rows("3.5", "-2", "1e-1"))
    assert [item.label for item in examples.splits["train"]] == [3.5, -2.0, 0.1]


@pytest.mark.parametrize("label", [None, math.nan, math.inf, "n/a", "", True, [3.0]])
def test_a_regression_needs_numbers(label):
    with pytest.raises(DataError, match=r"row 2 of the split 'train'.*a number is needed"):
        _examples(kind=REGRESSION, train=_rows(0.5, label))


@pytest.mark.parametrize("label", [["a"], {"name": "a"}])
def test_a_label_that_is_no_single_value_is_refused_with_its_row(label):
    with pytest.raises(DataError, match=r"row 2 of the split 'train'.*give each row one label"):
        _examples(train=_rows("a", label))


def test_a_fraction_is_no_class():
    with pytest.raises(DataError, match="--kind regression"):
        _examples(train=_rows(0.5, 1.0))


@pytest.mark.parametrize("column", ["text", "label"])
def test_a_split_without_a_column_of_the_first_is_refused_with_its_name(column):
    other = [{name: value for name, value in row.items() if name != column} for row in _rows("a", "b")]
    with pytest.raises(DataError, match=f"the split 'validation' has no column '{column}', but '"):
        check_columns({"train": _rows("a", "b"), "validation": other}, Columns("text", None, "label"))


def test_a_row_is_named_by_its_place_in_the_source():
    rows = [*_rows("a", "b", "a", "b"), {"text": None, "label": "a"}]
    table = Table(rows).part([1, 2, 4])
    with pytest.raises(DataError, match="row 5 of the split 'train'"):
        CLASSIFICATION.examples({"train": table}, Columns("text", None, "label"), LabelHints())


def test_empty_texts_are_told(caplog):
    rows = [{"text": text, "label": label} for text, label in [("a", "x"), (" ", "y"), ("", "x")]]
    with caplog.at_level("INFO", logger="rankfold"):
        CLASSIFICATION.examples({"train": Table(rows)}, Columns("text", None, "label"), LabelHints())
    assert "2 of 3 texts of the split 'train' are empty, the first in row '1'" in caplog.text


@pytest.mark.parametrize("text", [None, 3])
def test_a_row_without_text_is_named(text):
    with pytest.raises(DataError, match="row 1 of the split 'train': the column 'text'"):
        _examples(train=[{"text": text, "label": 0}, {"text": "a", "label": 1}])


@pytest.mark.parametrize(
    ("given", "ids"),
    [(["x7", "x8"], ["x7", "x8"]), (["x7", None], [0, 1]), (["Ann", "Ann"], [0, 1]), ([1.5, 2.5], [0, 1])],
    ids=["own", "some", "of persons", "no names"],
)
def test_ids_are_the_data_s_own_if_they_tell_all_rows_apart(given, ids):
    rows = [{"id": name, "text": "a", "label": place} for place, name in enumerate(given)]
    assert [example.id for example in _examples(train=rows).splits["train"]] == ids


def test_common_choices_are_the_classes_of_a_question():
    rows = [{"question": "q", "choices": ["no", "yes"], "answer": answer} for answer in (1, 0)]
    examples = _examples(columns=Columns(), train=rows)
    assert examples.label_names == ("no", "yes")
    assert [example.label for example in examples.splits["train"]] == [1, 0]


def test_choices_that_differ_need_a_model_that_generates():
    rows = [{"question": "q", "choices": ["a", letter], "answer": 0} for letter in "bc"]
    with pytest.raises(DataError, match="different choices"):
        _examples(columns=Columns(), train=rows)


@pytest.mark.parametrize("is_text", [False, True])
@given(known=st.permutations(["a", "b", "c"]), learned=st.permutations(["a", "b", "c", "d"]))
def test_labels_are_the_classes_that_were_learned_whatever_order_the_data_has(is_text, known, learned):
    rows = _rows(*(known if is_text else range(3)))
    table = Table(rows, {"label": tuple(known)})
    examples = CLASSIFICATION.examples(
        {"test": table}, Columns("text", None, "label"), LabelHints(learned_names=learned)
    )
    assert examples.label_names == tuple(learned)
    assert [learned[item.label] for item in examples.splits["test"]] == known


def test_labels_without_names_are_those_of_the_same_number_and_names_mean_nothing_to_bare_numbers():
    columns = Columns("text", None, "label")
    examples = [
        CLASSIFICATION.examples({"test": table}, columns, LabelHints(learned_names=("3", "5")))
        for table in (Table(_rows(5, 3)), Table(_rows(5, 3), {"label": tuple("abcdef")}))
    ]
    assert [[item.label for item in split.splits["test"]] for split in examples] == [[1, 0]] * 2


def test_label_that_was_not_learned_is_named():
    table = Table(_rows(0, 1), {"label": ("yes", "maybe")})
    words = "'test' has the labels 'maybe', but the learned classes are 'no', 'yes'"
    with pytest.raises(DataError, match=words):
        CLASSIFICATION.examples(
            {"test": table}, Columns("text", None, "label"), LabelHints(learned_names=("no", "yes"))
        )


def test_choices_are_the_classes_that_were_learned():
    rows = [{"question": "q", "choices": ["true", "false"], "answer": answer} for answer in (0, 1, 0)]
    for learned, expected in ((None, [0, 1, 0]), (("false", "true"), [1, 0, 1])):
        examples = CLASSIFICATION.examples(
            {"test": Table(rows)}, Columns(), LabelHints(learned_names=learned)
        )
        assert [item.label for item in examples.splits["test"]] == expected
    with pytest.raises(DataError, match="'true', but the learned classes are 'no', 'yes'"):
        CLASSIFICATION.examples({"test": Table(rows)}, Columns(), LabelHints(learned_names=("no", "yes")))
