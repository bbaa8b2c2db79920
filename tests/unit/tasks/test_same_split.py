"""The same rows give the same task and the same split, whatever file they are in."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rankfold.errors import DataError
from rankfold.tasks import TaskRequest, load_task
from rankfold.tasks.data.columns import Columns


def _write(path, rows):
    """Write rows in the form that the ending of a path says; a list is joined in a CSV file."""
    if path.suffix in (".csv", ".tsv"):
        cells = [
            {
                name: ";".join(value) if isinstance(value, list) else json.dumps(value).strip('"')
                for name, value in row.items()
            }
            for row in rows
        ]
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(cells)
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps({"data": rows}))
    else:
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


LABELS = {
    "names": lambda row: "abc"[row % 3],
    "whole numbers": lambda row: row % 3,
    "truth values": lambda row: row % 3 == 0,
    "stars": lambda row: 1 + row % 5,
    "measurements": lambda row: row / 7 + 0.01,
    "lists": lambda row: [["a", "b"], ["b", "c"], ["c"], [], ["rare"]][4 if row == 17 else row % 4],
    "texts with a separator": lambda row: ["a;b", "b;c", "c", "", "rare"][4 if row == 17 else row % 4],
}


@pytest.mark.parametrize("label", LABELS)
def test_every_form_of_a_file_has_the_same_split(tmp_path, label):
    column = "tags" if label in ("lists", "texts with a separator") else "label"
    rows = [{"text": f"words of row {row}", column: LABELS[label](row)} for row in range(90)]
    kind = "regression" if label == "stars" else None
    parts = {}
    for ending in ("csv", "tsv", "jsonl", "json", "parquet"):
        data = str(_write(tmp_path / f"rows.{ending}", rows))
        task = load_task(TaskRequest(data=data, kind=kind), is_causal=False)
        splits = task.examples.splits
        parts[ending] = (
            task.kind.name,
            task.examples.label_names,
            *([(item.id, item.text, item.label) for item in splits[split]] for split in splits),
        )
        assert len(splits["validation"]) <= 0.12 * len(rows)
    assert all(part == parts["csv"] for part in parts.values())


def test_a_label_of_a_set_that_one_row_has_stays_in_training(tmp_path):
    rows = [{"text": f"words of row {row}", "tags": ["common", f"rare {row % 40}"]} for row in range(60)]
    data = str(_write(tmp_path / "rows.jsonl", rows))
    splits = load_task(TaskRequest(data=data), is_causal=False).examples.splits
    assert len(splits["train"]) + len(splits["validation"]) == len(rows)
    assert {name for item in splits["train"] for name in item.label} >= {f"rare {row}" for row in range(40)}


def test_missing_and_unreadable_numbers_are_named_before_the_data_is_cut(tmp_path):
    prices = ["1,2{:02d}.50", "1.2{:02d},50", "EUR {}", "", "n/a"]
    rows = [{"text": f"words {row}", "price": prices[row % 5].format(row)} for row in range(60)]
    data = str(_write(tmp_path / "rows.csv", rows))
    for kind in ("regression", None):
        request = TaskRequest(data=data, kind=kind, columns=Columns(label="price"), drops_missing=True)
        with pytest.raises(
            DataError, match=r"'1,200\.50' \(line 2 of '.*rows.csv'\) and '1\.201,50' \(line 3 of"
        ):
            load_task(request, is_causal=False)


def test_rows_that_are_left_out_take_no_part_in_the_cut(tmp_path):
    rows = [{"text": f"words {row}", "label": ["a", "b", ""][row % 3]} for row in range(90)]
    request = TaskRequest(data=str(_write(tmp_path / "rows.csv", rows)), drops_missing=True)
    assert load_task(request, is_causal=False).examples.counts == {"train": 54, "validation": 6}
