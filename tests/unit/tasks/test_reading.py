"""Files of every format, layout and encoding give the rows that were written, or an error with the place."""

import bz2
import csv
import gzip
import io
import json
import lzma
import string
from contextlib import suppress

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rankfold.errors import DataError, SpecError
from rankfold.tasks import TaskRequest, load_task
from rankfold.tasks.data.read import ReadOptions, find_source, read_split

_CELL = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0\r"), max_size=12)
_TABLES = st.lists(
    st.fixed_dictionaries({"text": _CELL.filter(str.strip), "label": _CELL}), min_size=1, max_size=8
)
_FORMS = (
    "jsonl",
    "json",
    "data.json",
    "columns.json",
    "csv",
    "semicolon.csv",
    "tab.tsv",
    "pipe.csv",
    "parquet",
)
_PACKERS = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: pa.compress(content, codec="zstd", asbytes=True),
}
_DELIMITERS = {"csv": ",", "semicolon.csv": ";", "tab.tsv": "\t", "pipe.csv": "|"}


def _content(rows, form):
    if form == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    if form == "json":
        return json.dumps(rows, indent=1, ensure_ascii=False).encode()
    if form == "data.json":
        return json.dumps({"version": "1", "data": rows}).encode()
    if form == "columns.json":
        return json.dumps({name: [row[name] for row in rows] for name in rows[0]}).encode()
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), file := io.BytesIO())
        return file.getvalue()
    writer = csv.DictWriter(file := io.StringIO(newline=""), list(rows[0]), delimiter=_DELIMITERS[form])
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def _read(path, **options):
    return read_split(find_source(str(path)), "train", ReadOptions(**options))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(rows=_TABLES, packing=st.sampled_from(list(_PACKERS)))
@example(rows=[{"text": "1.10", "label": "01"}, {"text": "0611000", "label": "1"}], packing="")
@example(rows=[{"text": "2020-01-01", "label": "NA"}, {"text": "null", "label": "None"}], packing="")
@example(rows=[{"text": "a\nb", "label": ""}, {"text": 'say "x"', "label": "a;b,c|d\te"}], packing=".zst")
def test_the_same_rows_are_read_from_every_format(tmp_path, rows, packing):
    for form in _FORMS:
        if form == "tab.tsv" and any("\n" in cell and "\t" in cell for row in rows for cell in row.values()):
            continue  # between tabs such a quoted cell looks like two rows with a quotation mark each
        path = tmp_path / f"rows.{form}{packing}"
        path.write_bytes(_PACKERS[packing](_content(rows, form)))
        delimiter = _DELIMITERS.get(form)
        assert list(_read(path, delimiter=delimiter).rows) == rows, form


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv"])
def test_the_delimiter_is_found_whatever_else_the_texts_hold(tmp_path, delimiter, name):
    rows = [{"id": str(row), "text": f"{row}, then; and|or", "price": f"{row},5"} for row in range(40)]
    writer = csv.DictWriter(file := io.StringIO(newline=""), list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    (tmp_path / name).write_text(file.getvalue())
    table = _read(tmp_path / name)
    assert list(table.rows) == rows
    is_usual = delimiter == ("\t" if name.endswith("tsv") else ",")
    assert ("delimiter" in [finding.name for finding in table.findings]) is not is_usual


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(
    before=st.lists(st.sampled_from(["a,b", "", '"x\ny",b', '"p\n\nq",b']), max_size=6),
    ragged=st.sampled_from(["a,b,c", "a", "a,b,", '"a\nb",c,d']),
)
def test_a_row_of_another_width_is_an_error_with_the_line_on_which_it_begins(tmp_path, before, ragged):
    lines = "\n".join(["text,label", *before, ragged, "a,b"])
    (tmp_path / "rows.csv").write_text(lines)
    line = 2 + sum(1 + row.count("\n") for row in before)
    with pytest.raises(DataError, match=rf"^line {line} of '.*rows.csv' has \d cells?, but the header has 2"):
        _read(tmp_path / "rows.csv")


@pytest.mark.parametrize("row", ['"a,b', '"a" c,b', '"a\nb" c,d'])
def test_a_quotation_mark_that_does_not_fit_is_an_error_with_its_line(tmp_path, row):
    (tmp_path / "rows.csv").write_text(f"text,label\nx,y\n{row}\nx,y\n")
    with pytest.raises(DataError, match=r"^line 3 of .* has a quotation mark"):
        _read(tmp_path / "rows.csv")


@pytest.mark.parametrize(("text", "is_named"), [("a,b\n" * 5, True), ("one, two\nthree\n" * 3, False)])
def test_a_cell_whose_lines_look_like_rows_is_named(tmp_path, text, is_named):
    (tmp_path / "rows.csv").write_text(f'text,label\nx,y\n"{text}",y\nx,y\n')
    names = [finding.name for finding in _read(tmp_path / "rows.csv").findings]
    assert ("swallowed_rows" in names) is is_named


def test_quotation_marks_between_tabs_belong_to_the_texts(tmp_path):
    (tmp_path / "rows.tsv").write_text('text\tlabel\n"a\tx\n"b" c\ty\nd"\tz\n')
    assert [row["text"] for row in _read(tmp_path / "rows.tsv").rows] == ['"a', '"b" c', 'd"']


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("text,text,label\na,b,c", "has 'text' twice"),
        ("a,b;c\n1,2;3", "commas or by semicolons; say which with --delimiter"),
    ],
)
def test_a_header_that_cannot_be_meant_is_refused(tmp_path, lines, words):
    (tmp_path / "rows.csv").write_text(lines)
    with pytest.raises(DataError, match=words):
        _read(tmp_path / "rows.csv")


def test_columns_without_a_name_spaces_and_excel_s_first_line_are_understood(tmp_path):
    (tmp_path / "rows.csv").write_text('sep=;\n; text; label\n0; "a; b"; c\n')
    table = _read(tmp_path / "rows.csv")
    assert table.rows == [{"column 1": "0", "text": "a; b", "label": "c"}]
    assert table.locate(0).startswith("line 3 of")


_GERMAN = [
    {"text": "Der Drucker ist schmutzig", "label": "Geräte"},
    {"text": "Überweisung wurde zurückgewiesen – „Straße“", "label": "Buchhaltung"},
]


@pytest.mark.parametrize("form", ["jsonl", "json", "csv", "semicolon.csv", "tab.tsv"])
@pytest.mark.parametrize(
    "encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252", "latin-1"]
)
def test_german_text_is_read_from_every_encoding_and_a_guess_is_said(tmp_path, form, encoding):
    rows = [
        {**row, "text": row["text"].replace("–", "-").replace("„", "").replace("“", "")} for row in _GERMAN
    ]
    rows = rows if encoding == "latin-1" else _GERMAN
    text = json.dumps(rows, ensure_ascii=False) if form == "json" else ""
    text = text or "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    content = text if form.startswith("json") else _content(rows, form).decode()
    (tmp_path / f"rows.{form}").write_bytes(content.encode(encoding))
    table = _read(tmp_path / f"rows.{form}")
    assert list(table.rows) == rows
    assert ("encoding" in [finding.name for finding in table.findings]) is (encoding != "utf-8-sig")


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Zażółć gęślą jaźń", "cp1250"),
        ("Příliš žluťoučký kůň", "cp1250"),
        ("Árvíztűrő tükörfúrógép", "cp1250"),
        ("Съешь же ещё этих мягких булок", "cp1251"),
        ("Да", "cp1251"),
        ("Ξεσκεπάζω την ψυχοφθόρα", "cp1253"),
        ("Pijamalı hasta yağız şoföre", "cp1254"),  # noqa: RUF001 (Turkish)
        ("Geräte für die Übung", "cp850"),
        ("jordbær med fløde", "mac_roman"),
        ("色は匂へど散りぬるを", "shift_jis"),
        ("我能吞下玻璃而不伤身体", "gbk"),
        ("Geräte", "utf-8 and cp1252"),
    ],
)
@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_a_text_of_another_encoding_is_refused_with_its_line_unless_it_is_named(
    tmp_path, text, encoding, form
):
    ok, bad = (
        ("text,label\n", f"{text},a\n") if form == "csv" else ('{"text": "b"}\n', f'{{"text": "{text}"}}\n')
    )
    path = tmp_path / f"rows.{form}"
    if encoding.startswith("utf-8 and"):
        path.write_bytes((ok + bad).encode() + bad.encode("cp1252"))
        with pytest.raises(DataError, match=r"^line 3 of '.*rows.* has the byte 0x.., which is not UTF-8"):
            _read(path)
        return
    path.write_bytes((ok + bad).encode(encoding))
    with pytest.raises(DataError, match=r"^line 2 of '.*rows.* not UTF-8 \(byte \d+ .*--encoding"):
        _read(path)
    assert _read(path, encoding=encoding).rows[-1]["text"] == text


def test_an_encoding_or_delimiter_that_cannot_be_is_refused():
    for options in ({"encoding": "cp12"}, {"encoding": "base64"}, {"delimiter": ",,"}, {"delimiter": '"'}):
        with pytest.raises(SpecError, match=next(iter(options))):
            ReadOptions(**options)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("[" * 100_000, "more than 64 lists and objects within each other"),
        ('{"a":' * 100_000, "more than 64 lists and objects within each other"),
        ('{"a": %s}' % ("[" * 900 + "]" * 900), "more than 64 lists and objects within each other"),
        ('{"a": %s}' % ("9" * 5000), "no JSON"),
        ('{"a": 1, "a": 2}', "the key 'a' is there twice"),
        (r'{"a": "\ud800"}', r"half a character \(\\ud800\)"),
        ("[1]", r"is \[1\]; write an object"),
        ('{"a": }', "character 7"),
    ],
)
def test_a_bad_line_of_json_is_named(tmp_path, line, words):
    (tmp_path / "rows.jsonl").write_text(f'{{"a": 1}}\n\n{line}\n')
    with pytest.raises(DataError, match=f"^line 3 of '.*rows.jsonl' .*{words}"):
        _read(tmp_path / "rows.jsonl")


def test_lists_and_objects_survive_as_they_are(tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": "a"}, {"role": "tool", "id": 3}], "n": [1, 2.5, None]},
        {"messages": [{"role": "user", "content": "b"}], "n": []},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert list(_read(tmp_path / "rows.jsonl").rows) == rows


def test_rows_have_the_same_columns_and_a_column_one_type_of_number(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n{"a": 0.5, "b": 2}\n')
    assert _read(tmp_path / "rows.jsonl").rows == [{"a": 1.0, "b": None}, {"a": 0.5, "b": 2}]


@pytest.mark.parametrize("packing", [".gz", ".zst", ".bz2", ".xz"])
@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_a_file_that_grows_when_it_is_unpacked_is_refused_before_it_fills_the_memory(tmp_path, packing, form):
    path = tmp_path / f"rows.{form}{packing}"
    path.write_bytes(_PACKERS[packing](b"a\n" * (1 << 20)))
    with pytest.raises(DataError, match="more than 1,000,000 bytes, decompressed; raise --max-bytes"):
        _read(path, max_bytes=1_000_000)


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz"])
def test_a_line_that_is_far_too_long_is_refused_with_its_number(tmp_path, ending):
    content = b'{"a": 1}\n\n{"a": "' + b" " * (65 << 20) + b'"}'
    (tmp_path / f"rows.{ending}").write_bytes(gzip.compress(content, 1) if ending.endswith("gz") else content)
    with pytest.raises(DataError, match=r"^line 3 of .* is longer than 64 MiB"):
        _read(tmp_path / f"rows.{ending}")


def test_values_that_parquet_repeats_without_storing_them_are_counted(tmp_path):
    pq.write_table(
        pa.table({"a": pa.array(["x" * 10_000] * 1_000).dictionary_encode()}), tmp_path / "a.parquet"
    )
    assert (tmp_path / "a.parquet").stat().st_size < 100_000
    with pytest.raises(DataError, match="more than 1,000,000 bytes"):
        _read(tmp_path / "a.parquet", max_bytes=1_000_000)


@pytest.mark.parametrize("form", [*_FORMS, "jsonl.gz", "csv.zst"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(data=st.data())
def test_a_damaged_file_gives_rows_or_an_error(tmp_path, form, data):
    stem, _, packing = form.partition(".") if form.endswith(("gz", "zst")) else (form, "", "")
    rows = [{"text": 'Äpfel, "x"\nund mehr', "label": "a"}] * 5
    content = bytearray(_PACKERS[f".{packing}" if packing else ""](_content(rows, stem)))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
        content = content or bytearray(b"x")
    path = tmp_path / f"rows.{form}"
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    with suppress(DataError):
        table = _read(path)
        assert all(row.keys() == table.rows[0].keys() for row in table.rows)


# Layouts.

_ROWS = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]


def _write(path, rows=_ROWS):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_content(rows, path.name.removesuffix(".gz").rpartition(".")[2]))


def _splits(folder):
    source = find_source(str(folder))
    return {split: [row["text"] for row in read_split(source, split).rows] for split in source.files}


@pytest.mark.parametrize(
    "files",
    [
        {"train.csv": "train", "eval.csv": "validation", "test.csv": "test"},
        {"Train.jsonl": "train", "DEV.jsonl": "validation"},
        {"tickets_train.csv": "train", "tickets-val.csv": "validation"},
        {"train/part.jsonl": "train", "dev/part.jsonl": "validation"},
        {"data/train-00000-of-00001.parquet": "train", "data/test-00000-of-00001.parquet": "test"},
        {"validation.jsonl": "validation"},
        {"tickets.csv": "train"},
        {"validation_matched.jsonl": "validation", "validation_mismatched.jsonl": "validation_mismatched"},
    ],
    ids=" ".join,
)
def test_a_layout_is_found(tmp_path, files):
    for name, split in files.items():
        _write(tmp_path / name, [{"text": split, "label": "x"}])
    (tmp_path / "README.md").write_text("words")
    assert _splits(tmp_path) == {split: [split] for split in files.values()}


@pytest.mark.parametrize("name", ["train-{:05}-of-00012.parquet", "train_{}.jsonl", "train/{}.csv"])
def test_parts_are_read_in_the_order_of_their_numbers(tmp_path, name):
    for part in range(12):
        _write(tmp_path / name.format(part), [{"text": f"{part}", "label": "x"}])
    assert _splits(tmp_path) == {"train": [str(part) for part in range(12)]}
    table = read_split(find_source(str(tmp_path)), "train")
    assert table.locate(11).endswith(f"'{tmp_path / name.format(11)}'")


def test_a_part_that_is_missing_is_named(tmp_path):
    for part in (0, 1, 3):
        _write(tmp_path / f"train-{part:05}-of-00004.parquet")
    with pytest.raises(DataError, match="lacks the parts 2 of 4"):
        find_source(str(tmp_path))


@pytest.mark.parametrize("is_dict", [True, False])
def test_what_save_to_disk_wrote_is_read_with_its_class_names(tmp_path, is_dict):
    features = datasets.Features(
        text=datasets.Value("string"), label=datasets.ClassLabel(names=["no", "yes"])
    )
    rows = [{"text": f"{row}", "label": row % 2} for row in range(20)]
    data = datasets.Dataset.from_list(rows, features=features)
    whole = datasets.DatasetDict(train=data, test=data) if is_dict else data
    whole.save_to_disk(str(tmp_path / "saved"))
    source = find_source(str(tmp_path / "saved"))
    assert list(source.files) == (["train", "test"] if is_dict else ["train"])
    table = read_split(source, "train")
    assert list(table.rows) == rows
    assert table.class_names == {"label": ("no", "yes")}


def test_class_names_of_a_parquet_file_are_read(tmp_path):
    features = datasets.Features(
        text=datasets.Value("string"), label=datasets.ClassLabel(names=["no", "yes"])
    )
    datasets.Dataset.from_list([{"text": "a", "label": 1}], features=features).to_parquet(
        tmp_path / "a.parquet"
    )
    assert _read(tmp_path / "a.parquet").class_names == {"label": ("no", "yes")}


def test_files_that_belong_to_no_split_are_named(tmp_path):
    for name in ("train.csv", "notes.txt", "train_old.csv", "old/train.csv", "README.md", ".hidden"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text,label\na,b\n")
    messages = [finding.message for finding in find_source(str(tmp_path)).findings]
    assert messages == [f"not read in '{tmp_path}': 'notes.txt', 'old/', 'train_old.csv'."]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("train.csv", "train.jsonl"), "several files for the split 'train'"),
        (("cola/train.csv", "sst2/train.csv"), "several data sets: 'cola', 'sst2'"),
        (("a.csv", "b.csv"), "'a.csv', 'b.csv', none of them named after a split"),
        (("dev/a.csv", "val/a.csv"), "several folders for the split 'validation'"),
        (("train/a.csv", "train/b.jsonl"), "mixes formats"),
        (("notes.txt",), "it has 'notes.txt'"),
    ],
)
def test_a_folder_that_could_mean_several_things_is_refused(tmp_path, names, words):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text,label\na,b\n")
    with pytest.raises(DataError, match=words):
        find_source(str(tmp_path))


def test_a_folder_that_is_spelt_otherwise_is_suggested(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _write(tmp_path / "sms_spam" / "train.csv")
    for name in ("sms-spam", "./sms-spam", "sms_spam/trian.csv"):
        with pytest.raises(DataError, match="did you mean 'sms_spam"):
            read_split(find_source(name), "train")


def test_a_folder_of_a_data_root_is_suggested_too(tmp_path):
    _write(tmp_path / "sms_spam" / "train.csv")
    with pytest.raises(SpecError, match="Did you mean 'sms_spam'"):
        load_task(TaskRequest(task="sms-spam", data_root=str(tmp_path)), is_causal=False)


# From rows to a task.


@pytest.mark.parametrize(
    "labels",
    [
        ["01", "1", "02"],
        ["0110", "0210"],
        ["1.1", "1.2", "1.10"],
        ["0", "1"],
        ["yes", "no"],
        [*"ab", "unknown"],
    ],
    ids="/".join,
)
def test_the_same_rows_give_the_same_task_as_csv_and_as_jsonl(tmp_path, labels):
    rows = [{"text": f"text {row}", "label": labels[row % len(labels)]} for row in range(60)]
    tasks = []
    for form in ("csv", "jsonl"):
        (tmp_path / f"rows.{form}").write_bytes(_content(rows, form))
        data = load_task(TaskRequest(data=str(tmp_path / f"rows.{form}")), is_causal=False)
        assert sorted(data.examples.label_names) == sorted(labels)
        examples = data.examples
        tasks.append((data.kind, examples.label_names, examples.splits, examples.settings))
    assert tasks[0] == tasks[1]


def test_the_hash_is_that_of_the_values_whether_the_format_has_numbers_or_not(tmp_path):
    rows = [
        {"text": f"t{row}", "label": row % 2, "x": row / 4, "is": row > 3, "code": "01"} for row in range(9)
    ]
    hashes = set()
    for form in ("csv", "jsonl"):
        (tmp_path / f"rows.{form}").write_bytes(_content(rows, form))
        hashes.add(load_task(TaskRequest(data=str(tmp_path / f"rows.{form}")), is_causal=False).sha256)
    assert len(hashes) == 1


def test_a_label_that_appears_late_is_a_class_like_the_others(tmp_path):
    lines = [f"t {row},{row % 2 if row < 1000 else 'unknown'}" for row in range(1600)]
    (tmp_path / "rows.csv").write_text("\n".join(["text,label", *lines]))
    data = load_task(TaskRequest(data=str(tmp_path / "rows.csv")), is_causal=False)
    assert data.examples.label_names == ("0", "1", "unknown")


def test_texts_and_answers_of_digits_stay_texts(tmp_path):
    (tmp_path / "sums.csv").write_text(
        "instruction,output\n" + "".join(f"{n}+{n}?,{2 * n}\n" for n in range(30))
    )
    data = load_task(TaskRequest(data=str(tmp_path / "sums.csv")), is_causal=True)
    assert all(item.answer in string.digits or int(item.answer) for item in data.examples.splits["train"])


@pytest.mark.parametrize(
    ("name", "lines", "place"),
    [
        (
            "a.jsonl",
            ['{"text": "a", "label": "x"}', "", '{"text": 3, "label": "y"}'],
            "line 3 of '.*a.jsonl'",
        ),
        ("a.json", ['[{"text": "a", "label": "x"},', '{"text": 3, "label": "y"}]'], "row 2 of '.*a.json'"),
        ("a.csv", ["text,label", '"a', 'b",x', "c,"], "line 4 of '.*a.csv'"),
    ],
)
def test_a_bad_row_is_named_by_its_line_where_the_format_has_lines(tmp_path, name, lines, place):
    (tmp_path / name).write_text("\n".join(lines))
    request = TaskRequest(data=str(tmp_path / name), kind="classification")
    with pytest.raises(DataError, match=place):
        load_task(request, is_causal=False, splits=("train",))
