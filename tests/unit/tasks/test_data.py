"""Reading: every format gives the same rows, and a file that cannot be read is an error with the reason."""

import gzip
import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankfold.errors import DataError
from rankfold.files import sha256_of_rows
from rankfold.tasks.data.read import Table, find_source, read_split
from rankfold.tasks.data.splits import HOLD_OUT_FRACTION
from tests.support.cuts import cut
from tests.support.tiny_models import review_rows, write_splits

ROWS = [
    {"text": "NA", "label": "01"},
    {"text": 'a "quoted", text\nof two lines', "label": "1"},
    {"text": "", "label": "1.10"},
    {"text": "Äpfel – 🍏", "label": "b; c"},
]


@pytest.mark.parametrize("name", ["train.jsonl", "train.jsonl.gz", "train.json"])
def test_texts_that_look_like_dates_stay_texts(tmp_path, name):
    rows = [{"text": f"2020-01-{day:02d}", "label": day % 2, "choices": ["2020-01-01"]} for day in (1, 2, 3)]
    lines = "\n\n".join(map(json.dumps, rows))
    whole = (json.dumps(rows) if name == "train.json" else lines).encode()
    (tmp_path / name).write_bytes(gzip.compress(whole) if name.endswith(".gz") else whole)
    assert list(read_split(find_source(str(tmp_path)), "train").rows) == rows


def test_reading_leaves_nothing_beside_the_data(tmp_path):
    write_splits(tmp_path, train=ROWS)
    read_split(find_source(str(tmp_path)), "train")
    assert [path.name for path in tmp_path.iterdir()] == ["train.jsonl.gz"]


@pytest.mark.parametrize("name", ["validation", "valid", "val", "dev", "validation_matched"])
def test_a_validation_split_is_found_under_its_usual_names(tmp_path, name):
    write_splits(tmp_path, **{name: ROWS})
    assert list(read_split(find_source(str(tmp_path)), "validation").rows) == ROWS


@pytest.mark.parametrize(("name", "other"), [("d[1]", "d1"), ("a*", "ab"), ("a?", "ab")])
def test_a_path_is_no_pattern_that_other_folders_meet(tmp_path, name, other):
    write_splits(tmp_path / other, train=[{"text": "of another folder", "label": 0}])
    folder = write_splits(tmp_path / name, train=ROWS)
    assert list(read_split(find_source(str(folder)), "train").rows) == ROWS


def test_a_split_that_is_absent_is_none(tmp_path):
    write_splits(tmp_path, train=ROWS)
    assert read_split(find_source(str(tmp_path)), "test") is None


def test_the_hash_depends_on_every_value_and_on_the_split():
    changed = [*ROWS[:-1], ROWS[-1] | {"label": 1}]
    hashes = {sha256_of_rows(splits) for splits in ({"train": ROWS}, {"train": changed}, {"test": ROWS})}
    assert len(hashes) == 3


def _empty(folder):
    (folder / "train.jsonl").write_text("")


def _empty_gzip(folder):
    (folder / "train.jsonl.gz").write_bytes(gzip.compress(b""))


def _header_only(folder):
    (folder / "train.csv").write_text("text,label\n")


def _empty_csv(folder):
    (folder / "train.csv").write_text("")


def _cut_gzip(folder):
    whole = gzip.compress(b"".join(json.dumps(row).encode() + b"\n" for row in ROWS * 100))
    (folder / "train.jsonl.gz").write_bytes(whole[: len(whole) // 2])


def _no_json(folder):
    (folder / "train.jsonl").write_text('{"text": "a", "label": 1}\n{"text": \n')


def _no_parquet(folder):
    (folder / "train.parquet").write_bytes(b"PAR1 and nothing more")


def _two_files(folder):
    write_splits(folder, train=ROWS)
    (folder / "train.csv").write_text("text,label\na,b\n")


def _other_files(folder):
    (folder / "notes.txt").write_text("nothing to train on")


@pytest.fixture
def library_log(caplog):
    """Records of the loggers of the library that reads the files."""
    logger = logging.getLogger("datasets")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_empty, "train.jsonl' is empty"),
        (_empty_gzip, "train.jsonl.gz' is empty"),
        (_header_only, "train.csv' is empty"),
        (_empty_csv, "train.csv' is empty"),
        (_cut_gzip, "check that the file is whole"),
        (_no_json, "line 2 of .*train.jsonl' is no JSON"),
        (_no_parquet, "check that the file is whole"),
        (_two_files, "'train.csv', 'train.jsonl.gz'"),
        (_other_files, "has no split to read"),
    ],
)
def test_data_that_cannot_be_read_is_a_clear_error_and_nothing_else(tmp_path, spoil, words, library_log):
    spoil(tmp_path)
    with pytest.raises(DataError, match=words):
        read_split(find_source(str(tmp_path)), "train")
    assert not library_log.records


@pytest.mark.parametrize("name", ["./nowhere", "a/b/c", "/nowhere/at/all", "nowhere.jsonl", "nowhere.csv.gz"])
def test_a_path_that_does_not_exist_is_not_looked_up_on_the_hub(name):
    with pytest.raises(DataError, match="there is no data at"):
        find_source(name)


def test_a_hub_dataset_without_network_says_what_to_check():
    with pytest.raises(DataError, match="the hub did not give it"):
        read_split(find_source("nobody/nothing"), "train")


def test_a_file_of_another_kind_says_which_are_read(tmp_path):
    (tmp_path / "rows.xlsx").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"\.jsonl"):
        find_source(str(tmp_path / "rows.xlsx"))


def test_a_hold_out_splits_the_rows_and_keeps_the_share_of_each_label():
    rows = [{"id": index, "label": "rare" if index % 5 == 0 else "common"} for index in range(200)]
    train_part, held_part = cut(Table(rows))
    numbered_rows = [*train_part.enumerate_rows(), *held_part.enumerate_rows()]
    assert sorted(row["id"] for _, row in numbered_rows) == list(range(200))
    assert all(row["id"] == place for place, row in numbered_rows)
    assert len(held_part.rows) == HOLD_OUT_FRACTION * 200
    assert sum(row["label"] == "rare" for row in held_part.rows) == len(held_part.rows) / 5


def test_a_hold_out_is_the_same_every_time_and_no_prefix():
    rows = review_rows(100)
    first, second = cut(Table(rows)), cut(Table(rows))
    assert first == second
    assert first[1].rows != rows[: len(first[1].rows)]


def test_a_hold_out_of_measurements_ignores_them():
    rows = [{"label": index / 7} for index in range(50)]
    train_part, held_part = cut(Table(rows))
    assert (len(train_part.rows), len(held_part.rows)) == (45, 5)


@pytest.mark.parametrize("write", ["c{}".format, str, int], ids=["texts", "texts of numbers", "ids"])
@given(rows=st.integers(20, 80), alone=st.integers(1, 20))
def test_a_label_with_one_row_stays_in_training_however_many_labels_there_are(write, rows, alone):
    labels = [write(row % 5) for row in range(rows)] + [write(5 + number) for number in range(alone)]
    train_part, held_part = cut(Table([{"label": label} for label in labels]))
    assert (
        {row["label"] for row in held_part.rows}
        == set(labels[:5])
        <= {row["label"] for row in train_part.rows}
    )


@pytest.mark.parametrize("write", [int, float, str])
def test_a_hold_out_of_whole_measurements_with_gaps_ignores_them(write):
    labels = [write(3 * row) for row in range(50)]
    train_part, held_part = cut(Table([{"label": label} for label in labels]))
    assert (len(train_part.rows), len(held_part.rows)) == (45, 5)


def test_a_hold_out_of_measurements_of_which_one_is_missing_ignores_them():
    rows = [{"label": index / 7 if index else None} for index in range(50)]
    assert len(cut(Table(rows))[1].rows) == 5


def test_a_hold_out_of_places_in_a_row_takes_a_tenth_of_them():
    train_part, held_part = cut(Table([{"label": place} for place in range(50)]))
    assert (len(train_part.rows), len(held_part.rows)) == (45, 5)


def test_a_hold_out_of_one_row_is_refused():
    with pytest.raises(DataError, match="too few"):
        cut(Table([{"label": 1}]))


def test_rows_whose_labels_are_lists_can_be_cut_so_that_reading_them_says_what_is_wrong():
    train_part, held_part = cut(Table([{"text": "a", "label": [number]} for number in range(20)]))
    assert (len(train_part.rows), len(held_part.rows)) == (18, 2)
