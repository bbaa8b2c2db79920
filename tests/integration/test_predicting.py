"""Predicting: rows without labels get the predictions of an evaluation, for every kind of task and form."""

import csv
import html
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import rankfold
from rankfold.cli.main import cli
from rankfold.runs.adapter_request import EvaluateRequest
from rankfold.runs.evaluate import evaluate
from rankfold.runs.examples import read_examples
from rankfold.runs.record import RunRecord
from rankfold.runs.request import RunRequest
from rankfold.runs.run import run
from rankfold.store.store import AdapterStore
from rankfold.tasks.kinds import KINDS
from tests.support.tiny_models import (
    BAD,
    GOOD,
    question_rows,
    review_rows,
    tiny_bert,
    tiny_llama,
    write_splits,
)

__all__ = ["tiny_bert", "tiny_llama"]

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def _reviews(count, seed):
    """Reviews with named classes, ids and a column that nobody reads."""
    return [
        {
            "id": f"r{index}",
            "text": row["sentence"],
            "place": "Köln, Süd",
            "label": ("bad", "good")[row["label"]],
        }
        for index, row in enumerate(review_rows(count, seed=seed))
    ]


def _prices(count, seed):
    rows = review_rows(count, seed=seed)
    return [
        {"text": row["sentence"], "score": 120_000.5 + 40_000 * row["label"] + index}
        for index, row in enumerate(rows)
    ]


def _choices(count, seed):
    """Questions with choices that the tiny model knows; it finds unknown words equally likely."""
    rows = review_rows(count, seed=seed)
    orders = (["false", "true"], ["true", "false"])
    return [
        {
            "question": f"{row['sentence']} ?",
            "choices": orders[index % 3 == 0],
            "answer": row["label"] if index % 3 else 1 - row["label"],
        }
        for index, row in enumerate(rows)
    ]


def _topics(count, seed):
    rows = review_rows(count, seed=seed)
    return [
        {"text": row["sentence"], "labels": [("bad", "good")[row["label"]], *(["long"] if index % 3 else [])]}
        for index, row in enumerate(rows)
    ]


def _tags(count, seed):
    rows = [row["sentence"].split() for row in review_rows(count, seed=seed)]
    return [
        {"tokens": tokens, "tags": ["B-JUDGE" if word in (*GOOD, *BAD) else "O" for word in tokens]}
        for tokens in rows
    ]


# They are asked in test_picture_kinds.py and test_image_generation.py.
WITH_PICTURES = {"image_classification", "image_text", "image_generation"}
CASES = {
    "classification": (_reviews, "label", {}),
    "regression": (_prices, "score", {}),
    "multi_label": (_topics, "labels", {}),
    "token_labels": (_tags, "tags", {}),
    "instruction": (lambda count, seed: question_rows(count, seed=seed), "output", {}),
    "multiple_choice": (_choices, "answer", {}),
    "multiple_choice generated": (_choices, "answer", {"scoring": "generated", "max_length": 60}),
}


@pytest.fixture(scope="module", params=CASES)
def trained(request, tiny_bert, tiny_llama, tmp_path_factory):
    """A run of a kind, its data, and the column that nobody knows at prediction."""
    rows, label, options = CASES[request.param]
    kind = request.param.partition(" ")[0]
    folder = tmp_path_factory.mktemp("predicting")
    data = write_splits(folder / "data", train=rows(48, 0), validation=rows(16, 1))
    model = tiny_llama if kind in ("instruction", "multiple_choice") else tiny_bert
    run(
        RunRequest(
            **{
                **{"model": str(model), "data": str(data), "kind": kind, "method": "lora", "steps": 4},
                **{
                    "learning_rate": 0.02,
                    "max_length": 48,
                    "out": folder / "run",
                    "batch_size": 8,
                    **options,
                },
            }
        )
    )
    return folder / "run", rows(16, 1), label


def test_every_kind_has_a_case():
    assert {name.partition(" ")[0] for name in CASES} | WITH_PICTURES == set(KINDS)


def _comparable(answer, settings):
    """An answer as an evaluation records predictions."""
    match answer:
        case {"label": label}:
            return label
        case {"value": value}:
            return value
        case {"labels": values} | {"tags": values}:
            return values
        case {"choice": choice}:
            return -1 if choice is None else choice
        case {"text": text}:
            return settings["answers"].index(text)


def _as_recorded(answer, names):
    return names.index(answer) if isinstance(answer, str) and names else answer


def _close_to(values):
    return pytest.approx(values, rel=1e-5) if isinstance(values[0], float) else values


def test_rows_without_labels_get_the_predictions_of_an_evaluation(trained):
    folder, rows, label = trained
    measured = evaluate(EvaluateRequest(adapter=folder))
    model = rankfold.load(folder)
    unlabelled = [{name: value for name, value in row.items() if name != label} for row in rows]
    answers = [_comparable(answer, model.learner.settings) for answer in model.predict(unlabelled)]
    expected = [item.prediction for item in measured.predictions]
    answers = [_as_recorded(answer, model.label_names) for answer in answers]
    assert answers == _close_to(expected)
    # Labels are not looked at, and neither is the order.
    again = [_comparable(answer, model.learner.settings) for answer in model.predict(rows[::-1])][::-1]
    again = [_as_recorded(answer, model.label_names) for answer in again]
    assert again == _close_to(expected)


def test_the_snippet_of_the_quickstart_works_for_every_kind(trained, tmp_path, monkeypatch, root, capsys):
    page = (root / "docs" / "quickstart.md").read_text("utf-8")
    snippet = page.partition("### Use it")[2].partition("```python")[2].partition("```")[0]
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "relayed").symlink_to(trained[0])
    monkeypatch.chdir(tmp_path)
    exec(snippet, {})
    assert capsys.readouterr().out.startswith("[{'")


def test_the_page_of_a_run_of_every_kind_has_its_result_and_its_texts(trained, tmp_path):
    folder, rows, _ = trained
    result = CliRunner().invoke(cli, ["report", str(folder), "--out", str(tmp_path / "page.html")])
    assert result.exit_code == 0, result.stderr
    page = (tmp_path / "page.html").read_text("utf-8")
    record = RunRecord.read(folder)
    assert f"on {len(rows)} held-out rows" in page
    assert record.lengths is not None
    assert sum(record.lengths.counts) == record.data.rows["train"]
    examples = read_examples(folder)
    wrong = {item.id for item in record.predictions if item.label != item.prediction}
    assert {item.id for item in examples if item.role == "mistake"} == wrong
    for item in examples:
        assert all(item.texts.values())
        assert html.escape(next(iter(item.texts.values())), quote=False)[:20] in page


@pytest.mark.parametrize("form", ["packed", "store", "moved folder"])
def test_every_form_of_an_adapter_answers_alike(trained, tmp_path, form):
    folder, rows, _ = trained
    expected = rankfold.load(folder).predict(rows[:4])
    if form == "packed":
        location = tmp_path / "adapter.rankfold"
        rankfold.pack_adapter(folder, location)
    elif form == "store":
        with AdapterStore(tmp_path / "adapters.db") as store:
            store.put("customers/a", folder)
        location = f"{tmp_path / 'adapters.db'}#customers/a"
    else:
        rankfold.pack_adapter(folder, tmp_path / "adapter.rankfold")
        location = tmp_path / "unpacked"
        rankfold.unpack_adapter(tmp_path / "adapter.rankfold", location)
    assert rankfold.load(location).predict(rows[:4]) == expected


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_a_file_of_answers_has_the_rows_of_its_input_in_order(trained, tmp_path, ending):
    folder, rows, label = trained
    unlabelled = [{name: value for name, value in row.items() if name != label} for row in rows]
    data, out = tmp_path / "new.jsonl", tmp_path / "folder" / f"answers.{ending}"
    data.write_text("".join(json.dumps(row) + "\n" for row in unlabelled), "utf-8")
    words = ("predict", str(folder), "--data", str(data), "--out", str(out), "--batch-size", "3")
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.stderr
    assert (result.stdout, [path.name for path in out.parent.iterdir()]) == ("", [out.name])
    expected = rankfold.load(folder).predict(unlabelled)
    written = _read(out)
    assert len(written) == len(rows)
    for row, answer, line in zip(unlabelled, expected, written, strict=True):
        main = next(iter(answer.values()))
        if ending == "jsonl":
            assert {name: line[name] for name in row} == row
            assert line["prediction"] == (pytest.approx(main) if isinstance(main, float) else main)
        else:
            assert {name: line[name] for name in row} == {name: _text(value) for name, value in row.items()}
            prediction = float(line["prediction"]) if isinstance(main, float) else line["prediction"]
            assert prediction == (pytest.approx(main) if isinstance(main, float) else _text(main))
    assert CliRunner().invoke(cli, words).exit_code == 2  # it is not replaced unasked


def _text(value):
    """Return a value as a cell of CSV has it; what is missing is empty."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _read(path: Path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file)) if path.suffix == ".csv" else [json.loads(line) for line in file]
