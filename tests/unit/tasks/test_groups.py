"""Groups: whoever is on one side of a split is not on the other."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankfold.errors import DataError
from rankfold.tasks.data.columns import Columns
from rankfold.tasks.data.read import Table
from rankfold.tasks.data.splits import check_groups, recommend_groups
from tests.support.cuts import cut


def _speakers(counts, label=lambda speaker: speaker % 2):
    """Return a table of so many rows a speaker, each of whom has one label."""
    return Table(
        [
            {"speaker": f"s{speaker:02}", "label": label(speaker), "id": (speaker, row)}
            for speaker, count in enumerate(counts)
            for row in range(count)
        ]
    )


def _of(table, column):
    return {row[column] for row in table.rows}


@given(st.lists(st.integers(1, 9), min_size=4, max_size=40))
def test_no_group_is_on_both_sides_and_no_row_is_lost(counts):
    table = _speakers(counts)
    train_part, held_part = cut(table, "speaker")
    assert not _of(train_part, "speaker") & _of(held_part, "speaker")
    assert sorted(row["id"] for part in (train_part, held_part) for row in part.rows) == [
        r["id"] for r in table.rows
    ]
    assert _of(train_part, "label") == _of(held_part, "label") == {0, 1}


def test_labels_keep_their_shares_as_well_as_groups_allow():
    table = _speakers([6] * 100, label=lambda speaker: int(speaker % 5 == 0))
    _, held_part = cut(table, "speaker")
    assert Counter(row["label"] for row in held_part.rows) == {0: 48, 1: 12}


def test_few_groups_are_held_out_whole_and_with_both_labels():
    _, held_part = cut(_speakers([4] * 6), "speaker")
    assert (len(_of(held_part, "speaker")), _of(held_part, "label")) == (2, {0, 1})


def test_a_label_with_one_group_stays_in_the_training_part():
    table = _speakers([4] * 30, label=lambda speaker: "rare" if speaker == 7 else speaker % 2)
    train_part, held_part = cut(Table([{**row, "label": str(row["label"])} for row in table.rows]), "speaker")
    assert _of(train_part, "label") == {"0", "1", "rare"}
    assert _of(held_part, "label") == {"0", "1"}


def test_measurements_are_held_out_by_group_too():
    table = _speakers([3] * 20, label=lambda speaker: speaker / 7)
    train_part, held_part = cut(table, "speaker")
    assert not _of(train_part, "speaker") & _of(held_part, "speaker")
    assert len(held_part.rows) == len(table.rows) / 10


def test_a_cut_by_group_is_the_same_every_time():
    table = _speakers(range(1, 30))
    assert cut(table, "speaker") == cut(table, "speaker")


@pytest.mark.parametrize("counts", [[9], [4, 4]])
def test_too_few_groups_are_refused_with_their_column(counts):
    with pytest.raises(DataError, match=f"'speaker' has {len(counts)} groups, too few"):
        cut(_speakers(counts), "speaker")


@pytest.mark.parametrize("value", [None, "", float("nan"), 0.5])
def test_a_row_without_group_is_named(value):
    rows = [*_speakers([3] * 8).rows, {"speaker": value, "label": 1}]
    with pytest.raises(DataError, match="row 25 has no group in 'speaker'"):
        cut(Table(rows), "speaker")


def _split(*speakers):
    return Table([{"text": "a", "speaker": speaker, "label": 0} for speaker in speakers])


def test_splits_that_share_groups_are_refused_with_their_names():
    splits = {"train": _split("a", "b", "c", "d", "e"), "validation": _split("f"), "test": _split(*"edcbx")}
    with pytest.raises(DataError, match=r"'b', 'c', 'd' and 1 more of 'speaker' .* 'train' and in 'test'"):
        check_groups(splits, "speaker")


def test_a_group_is_the_same_as_number_and_as_text():
    with pytest.raises(DataError, match="'7'"):
        check_groups({"train": _split(7, 8), "test": _split("7")}, "speaker")
    with pytest.raises(DataError, match="'7'"):
        check_groups({"train": _split(7.0), "test": _split(7)}, "speaker")


def test_splits_that_share_no_group_are_fine():
    check_groups({"train": _split("a", "b"), "test": _split("c")}, "speaker")


@pytest.mark.parametrize("name", ["speaker", "Speaker_ID", "participantId", "patient", "user-id", "doc_id"])
def test_a_column_of_groups_is_recommended_where_splits_share_its_values(name):
    splits = {"train": Table([{"text": "x", name: 1}]), "test": Table([{"text": "y", name: 1}])}
    (finding,) = recommend_groups(splits, Columns("text", None, "label"))
    assert f"--group-column {name}" in finding.message


@pytest.mark.parametrize(
    ("first", "second", "columns"),
    [
        ({"speaker": 1}, {"speaker": 2}, Columns("text", None, "label")),
        ({"speaker": None}, {"speaker": None}, Columns("text", None, "label")),
        ({"id": 1}, {"id": 1}, Columns("text", None, "label")),
        ({"speaker": 1}, {"speaker": 1}, Columns("text", None, "speaker")),
        ({"subject": "re"}, {"subject": "re"}, Columns("subject", None, "label")),
    ],
)
def test_nothing_is_recommended_where_it_would_not_help(first, second, columns):
    assert not recommend_groups({"train": Table([first]), "test": Table([second])}, columns)
