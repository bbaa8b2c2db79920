"""Data that people have by mistake: each fault is named with its place and its remedy; none is learned."""

import datetime
import json
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rankfold.errors import DataError
from rankfold.tasks import TaskRequest, load_task
from rankfold.tasks.data.columns import Columns

ROWS = 40


def _load(path, *, kind=None, is_causal=False, **columns):
    return load_task(TaskRequest(data=str(path), kind=kind, columns=Columns(**columns)), is_causal=is_causal)


def _lines(path, rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def _parquet(path, values):
    pq.write_table(pa.table({"text": [f"row {row}" for row in range(ROWS)], "label": values}), path)
    return path


@pytest.mark.parametrize(
    ("value", "kind", "names"),
    [
        (lambda row: Decimal(row % 3), "classification", ("0", "1", "2")),
        (lambda row: Decimal(f"{row}.50"), "regression", None),
        (lambda row: datetime.date(2026, 1, 1 + row % 2), "classification", ("2026-01-01", "2026-01-02")),
        (
            lambda row: datetime.datetime(2026, 1, 1 + row % 2),
            "classification",
            ("2026-01-01", "2026-01-02"),
        ),
        (lambda row: row % 2 == 0, "classification", ("false", "true")),
    ],
    ids=["whole decimals", "decimals", "dates", "times", "truth values"],
)
def test_typed_values_of_parquet_are_those_that_text_files_have(tmp_path, value, kind, names):
    data = _load(_parquet(tmp_path / "rows.parquet", list(map(value, range(ROWS)))))
    assert (data.kind.name, data.task.label_names) == (kind, names)


@pytest.mark.parametrize(
    ("value", "remedy"),
    [
        (lambda row: row % 2 == 0, "learn truth values with --kind classification"),
        (lambda row: f"2026-01-{1 + row % 28:02d}", "write a number, such as days or seconds"),
        (lambda row: f"{row % 24}:30", "write a number, such as days or seconds"),
        (lambda row: f"{row}/7", "write plain numbers such as 1234.5"),
        (lambda row: f"{row}½", "write plain numbers such as 1234.5"),
        (lambda row: [row], "give each row one number"),
    ],
    ids=["truth values", "dates", "times", "fractions", "halves", "lists"],
)
def test_labels_that_are_no_numbers_have_the_remedy_of_their_sort(tmp_path, value, remedy):
    path = _lines(tmp_path / "rows.jsonl", [{"text": f"row {n}", "label": value(n)} for n in range(ROWS)])
    with pytest.raises(DataError, match=rf"lines? 1\b.*rows.jsonl.*{remedy}"):
        _load(path, kind="regression", label="label")


def test_numbers_in_other_digits_are_read(tmp_path):
    arabic = str.maketrans("0123456789.", "٠١٢٣٤٥٦٧٨٩٫")  # noqa: RUF001
    rows = [{"text": f"row {row}", "label": f"{row}.5".translate(arabic)} for row in range(ROWS)]
    data = _load(_lines(tmp_path / "rows.jsonl", rows), kind="regression")
    assert sorted(item.label for part in data.examples.splits.values() for item in part)[:2] == [0.5, 1.5]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_header_in_the_middle_of_a_file_is_refused_with_its_line(tmp_path, mark):
    part = "text,label\n" + "".join(f"row {row},{'ab'[row % 2]}\n" for row in range(ROWS))
    (tmp_path / "rows.csv").write_text(part + mark + part, "utf-8")
    with pytest.raises(DataError, match=r"line 42 of .* repeats the header"):
        _load(tmp_path / "rows.csv")


@pytest.mark.parametrize(
    ("name", "row"), [("rows.csv", "a\0b,x\n"), ("rows.jsonl", '{"text": "a\\u0000b", "label": "x"}\n')]
)
def test_nul_characters_are_refused_with_their_line(tmp_path, name, row):
    (tmp_path / name).write_text(("text,label\n" if name == "rows.csv" else "") + row)
    with pytest.raises(DataError, match=f"line {2 if name == 'rows.csv' else 1} of .* has a NUL character"):
        _load(tmp_path / name)


def test_an_escaped_backslash_before_u0000_is_a_text(tmp_path):
    rows = [{"text": f"C:\\u0000{row}", "label": "ab"[row % 2]} for row in range(ROWS)]
    assert _load(_lines(tmp_path / "rows.jsonl", rows)).examples.counts["train"] == 36


@pytest.mark.parametrize(("label", "letter"), [("\u0421at", "cyrillic"), ("\u039fwl", "omicron")])
def test_letters_of_another_alphabet_are_named(tmp_path, label, letter):
    labels = [label, label.translate(str.maketrans("\u0421\u039f", "CO"))]
    rows = [{"text": f"row {row}", "label": labels[row % 2]} for row in range(ROWS)]
    findings = _load(_lines(tmp_path / "rows.jsonl", rows)).all_findings
    (message,) = (item.message for item in findings if item.name == "near_duplicate_labels")
    assert letter in message


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", "completion": "b", "label": True},
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"chosen": [{"role": "user", "content": "a"}], "rejected": [{"role": "user", "content": "a"}]},
        {"prompt": "a", "completions": ["b"], "labels": [True]},
    ],
    ids=["kto", "dpo", "dpo of messages", "steps"],
)
@pytest.mark.parametrize("is_causal", [True, False])
def test_preference_data_is_no_lesson(tmp_path, row, is_causal):
    path = _lines(tmp_path / "rows.jsonl", [row] * ROWS)
    with pytest.raises(DataError, match=r"preference data .*with_dpo_trainer\.py"):
        _load(path, is_causal=is_causal)


@pytest.mark.parametrize("ending", ["conll", "bio"])
@pytest.mark.parametrize("separator", [" ", "\t", "   "])
def test_conll_files_are_sentences_with_tags(tmp_path, ending, separator):
    sentence = [("Anna", "NNP", "B-PER"), ("sees", "VB", "O"), ("#", "NN", "O"), ("Rome", "NNP", "B-LOC")]
    lines = "\n".join(separator.join(values) for values in sentence)
    last = separator.join(("{}", "CD", "O"))
    text = "-DOCSTART- -X- O\n\n" + "".join(
        f"# sentence {row}\n{lines}\n{last.format(row)}\n\n\n" for row in range(ROWS)
    )
    (tmp_path / f"train.{ending}").write_text(text)
    data = _load(tmp_path)
    assert data.kind.name == "token_labels"
    assert data.unused_columns == ("column 2",)
    assert sum(data.examples.counts.values()) == ROWS
    tokens, _, tags = zip(*sentence, strict=True)
    item = data.examples.splits["train"][0]
    assert (item.tokens, item.label) == ((*tokens, str(item.id)), [*tags, "O"])


def test_conll_line_without_its_tag_is_named(tmp_path):
    (tmp_path / "rows.conll").write_text("Anna B-PER\nsees O\n\nRome\n")
    with pytest.raises(DataError, match=r"line 4 of '.*' has one value, but the first line has 2"):
        _load(tmp_path / "rows.conll")


def test_splits_of_one_json_file_are_those_of_a_folder(tmp_path):
    rows = [{"text": f"row {row}", "label": "ab"[row % 2]} for row in range(ROWS)]
    splits = {"train": rows[:20], "dev": rows[20:30], "test": rows[30:]}
    (tmp_path / "rows.json").write_text(json.dumps({"version": 1, **splits}))
    request = TaskRequest(data=str(tmp_path / "rows.json"))
    data = load_task(request, is_causal=False, splits=("train", "validation", "test"))
    texts = {split: [item.text for item in items] for split, items in data.examples.splits.items()}
    assert texts == {
        split: [row["text"] for row in part]
        for split, part in zip(("train", "validation", "test"), splits.values(), strict=True)
    }


@pytest.mark.parametrize(
    ("tag", "meant"), [("B_PER", "B-PER"), ("b-per", "B-PER"), ("B-PER ", "B-PER"), ("o", "O"), ("I-", "O")]
)
def test_misspelt_tags_are_named_with_their_row(tmp_path, tag, meant):
    rows = [{"tokens": ["Anna", "sees", f"{row}"], "tags": ["B-PER", "O", "O"]} for row in range(ROWS)]
    rows[7]["tags"] = [tag, "O", "O"]
    findings = _load(_lines(tmp_path / "rows.jsonl", rows)).all_findings
    (message,) = (item.message for item in findings if item.name == "odd_tags")
    assert f"'{tag}'" in message
    assert "line 8 of" in message
    assert f"write '{meant}'" in message


def test_choices_are_guessed_beside_named_columns_or_asked_for(tmp_path):
    rows = [{"ask": f"row {row}?", "A": "x", "B": f"y{row}", "key": "AB"[row % 2]} for row in range(ROWS)]
    columns = {"text": "ask", "label": "key"}
    path = _lines(tmp_path / "rows.jsonl", rows)
    data = _load(path, kind="multiple_choice", is_causal=True, **columns)
    assert data.columns.choices == "A,B"
    item = data.examples.splits["train"][0]
    assert item.choices == ("x", f"y{item.id}")
    path = _lines(path, [{name: row[name] for name in columns.values()} for row in rows])
    with pytest.raises(DataError, match=r"no columns of choices.*--choices-column"):
        _load(path, kind="multiple_choice", is_causal=True, **columns)


def test_missing_label_column_is_suggested(tmp_path):
    rows = [{"id": row, "body": f"words of row {row}", "team": "ab"[row % 2]} for row in range(ROWS)]
    with pytest.raises(DataError, match="--label-column, such as team or"):
        _load(_lines(tmp_path / "rows.jsonl", rows))


def test_empty_cells_of_label_sets_are_sets_and_missing_ones_have_their_remedy(tmp_path):
    lines = "".join(f"row {row},{['a;b', 'b;c', '', 'a;c'][row % 4]}\n" for row in range(ROWS))
    (tmp_path / "rows.csv").write_text(f"text,tags\n{lines}")
    request = TaskRequest(data=str(tmp_path / "rows.csv"), drops_missing=True)
    assert sum(load_task(request, is_causal=False).examples.counts.values()) == ROWS
    rows = [{"text": f"row {row}", "tags": ["a", "b"] if row else None} for row in range(ROWS)]
    with pytest.raises(DataError, match=r"line 1 of .*write \[\] for no label"):
        _load(_lines(tmp_path / "rows.jsonl", rows), kind="multi_label")
