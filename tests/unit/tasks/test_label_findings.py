"""Class labels: what is worth reading before a training, and what is refused."""

import pytest

from rankfold.errors import DataError
from rankfold.tasks.data.columns import Columns, find_columns
from rankfold.tasks.data.label_findings import find_separator, label_findings
from rankfold.tasks.data.odd_rows import drop_missing
from rankfold.tasks.data.table import Table
from rankfold.tasks.kinds import KINDS, LabelHints
from rankfold.tasks.kinds.classification import KIND as CLASSIFICATION
from rankfold.tasks.kinds.regression import KIND as REGRESSION

COLUMNS = Columns("text", None, "label")


def _table(labels, **options):
    return Table([{"text": f"text {index}", "label": label} for index, label in enumerate(labels)], **options)


def _findings(*labels):
    found = label_findings("label", labels, _table(labels))
    return {finding.name: finding.message for finding in reversed(found)}


def test_classes_are_counted():
    assert _findings("b", "a", "b")["classes"] == "2 classes in 'label': 'b' 2, 'a' 1."


@pytest.mark.parametrize(
    ("common", "rare"),
    [
        ("billing", "Billing "),
        ("billing", "BILLING"),
        ("a b", "a\u00a0 b"),
        ("Ger\u00e4te", "Gera\u0308te"),
        ("sales", "sales\u200b"),
        ("sales", "\ufeffsales"),
        ("invoice", "in\u00advoice"),
        ("\u2764", "\u2764\ufe0f"),
        ("network", "netwrok"),
        ("network", "netork"),
        ("network", "networks"),
    ],
)
def test_labels_that_are_almost_the_same_are_named_with_their_rows(common, rare):
    message = _findings(*[common] * 40, *["other"] * 40, rare)["near_duplicate_labels"]
    assert f"'{common}' (40), '{rare}' (1)" in message
    assert "row 81" in message


def test_letters_that_nobody_sees_are_named():
    message = _findings("sales", "sales\u200b")["near_duplicate_labels"]
    assert r"'\u200b' of 'sales" in message
    assert "zero width space" in message


def test_labels_that_all_end_with_a_space_are_named():
    findings = _findings("sales ", "tech ", "tech ")
    assert "2 of 2 labels" in findings["label_spaces"]
    assert "'tech '" in findings["label_spaces"]
    assert "label_spaces" not in _findings("sales", "tech")


def test_columns_that_may_be_the_label_are_suggested():
    rows = [
        {"id": index, "description": f"{index % 3} rooms", "price": "" if index == 4 else f"{index * 977}.5"}
        for index in range(40)
    ]
    with pytest.raises(DataError, match="--label-column, such as price or"):
        find_columns(rows, Columns())


@pytest.mark.parametrize("labels", [("true", "1", "false"), ("yes", "no", "N"), ("True", "TRUE", "0")])
def test_words_for_true_and_false_are_not_several_classes_without_a_word(labels):
    assert "almost the same" in _findings(*labels * 9)["near_duplicate_labels"]


@pytest.mark.parametrize(
    ("kind", "label"), [("multi_label", ["spam", "Spam "]), ("token_labels", ["B-PER", "B-Per"])]
)
def test_lists_of_labels_have_the_same_remarks(kind, label):
    rows = [{"text": ["one", "two"] if kind == "token_labels" else "one two", "label": label}] * 3
    examples = KINDS[kind].examples({"train": Table(rows)}, COLUMNS, LabelHints())
    assert any(finding.name == "near_duplicate_labels" for finding in examples.findings)


@pytest.mark.parametrize(("labels", "is_said"), [(("1.000", "60.183"), True), (("1.25", "60.183"), False)])
def test_points_that_may_separate_thousands_are_named(labels, is_said):
    findings = REGRESSION.examples({"train": _table(labels)}, COLUMNS, LabelHints()).findings
    assert any("--decimal ," in finding.message for finding in findings) is is_said


@pytest.mark.parametrize("labels", [("level1", "level2"), ("cat", "car"), ("positive", "negative")])
def test_labels_that_differ_are_not_named(labels):
    assert "near_duplicate_labels" not in _findings(*[labels[0]] * 50, *[labels[1]] * 3)


@pytest.mark.parametrize("label", ["nan", "NULL", "n/a", "none", "-"])
def test_labels_that_stand_for_nothing_are_named(label):
    assert "row 3" in _findings("a", "b", label)["missing_labels"]


@pytest.mark.parametrize(
    ("labels", "separator"),
    [
        (["a;b", "a", "b;c", "c;a", "b"], ";"),
        (["x | y", "y | x", "x", "y"], "|"),
        (["a, b", "b, c", "a, c", "c"], ","),
        (["Paris, France", "Rome, Italy", "Oslo, Norway"], None),
        (["yes", "no"], None),
        (["a;", "b"], None),
    ],
)
def test_separators_of_labels_are_found(labels, separator):
    assert find_separator(labels) == separator
    assert ("separated_labels" in _findings(*labels)) is (separator is not None)


def test_share_of_the_majority_and_lone_rows_are_named():
    findings = _findings(*["no"] * 99, "yes")
    assert "99.0%" in findings["imbalanced_classes"]
    assert "'yes' (row 100)" in findings["single_row_classes"]
    assert findings.keys() == {"classes", "imbalanced_classes", "single_row_classes"}


@pytest.mark.parametrize(
    "labels", [range(100, 140), [f"{n},{n:03d}" for n in range(100, 140)], [f"id {n}" for n in range(40)]]
)
def test_values_that_are_mostly_unique_are_no_classes(labels):
    with pytest.raises(DataError, match=r"40 different values in 40 rows.*--label-column"):
        CLASSIFICATION.examples({"train": _table(labels)}, COLUMNS, LabelHints())


@pytest.mark.parametrize(
    ("table", "names"),
    [
        (_table([0, 1], class_names={"label": ("no", "yes")}), None),
        (_table([0, 1]), ("no", "yes")),
        (_table(["no", "yes"]), None),
    ],
    ids=["class ids", "named task", "names"],
)
def test_names_are_not_measured(table, names):
    with pytest.raises(DataError, match="--kind classification"):
        REGRESSION.examples({"train": table}, COLUMNS, LabelHints(names))


def test_equal_numbers_are_not_learned():
    with pytest.raises(DataError, match="all labels in 'label' are 3; a regression needs two"):
        REGRESSION.examples({"train": _table([3.0, 3.0])}, COLUMNS, LabelHints())


def test_integers_do_not_stand_for_learned_names():
    with pytest.raises(
        DataError, match=r"'0' \(row 1\), '1' \(row 2\), but the learned classes are 'no', 'y"
    ):
        CLASSIFICATION.examples({"test": _table([0, 1])}, COLUMNS, LabelHints(learned_names=("no", "yes")))


def test_rows_that_cannot_be_read_are_all_counted():
    with pytest.raises(DataError, match=r"row 2 of the split 'train' \(2 more cannot be read: rows 3, 5\): "):
        REGRESSION.examples({"train": _table([1.5, None, "n/a", 2, ""])}, COLUMNS, LabelHints())


@pytest.mark.parametrize(
    ("labels", "rest"),
    [
        ([1.5, None, "n/a", 2, "", "-", "none"], [1.5, 2]),
        (["a", None, "none", "nan", "b", ""], ["a", "none", "b"]),
    ],
    ids=["numbers", "names"],
)
def test_missing_values_are_left_out_with_their_rows(labels, rest):
    tables, findings = drop_missing({"train": _table(labels)}, COLUMNS)
    assert [row["label"] for row in tables["train"].rows] == rest
    (finding,) = findings
    assert (
        f"{len(labels) - len(rest)} of {len(labels)} rows of the split 'train' lack 'label'"
        in finding.message
    )
    kept = [labels.index(label) for label in rest]
    assert [index for index, _ in tables["train"].enumerate_rows()] == kept


def test_split_of_nothing_but_missing_values_is_refused():
    with pytest.raises(DataError, match="every row of the split 'train' lacks 'text' or 'label'"):
        drop_missing({"train": _table([None, ""])}, COLUMNS)
