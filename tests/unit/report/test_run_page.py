"""The page of one run says what its record says, shows texts as texts, and needs none of its parts."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from rankfold.cli.main import cli
from rankfold.errors import DataError
from rankfold.report.run_charts import curve_figures
from rankfold.report.run_page import headline, run_page
from rankfold.runs.examples import NAME, read_examples, write_examples
from rankfold.runs.remarks import remarks
from tests.support.records import make_record
from tests.support.run_pages import HOSTILE, PAGES, classes_run, failed_run, mistakes, numbers_run, texts_run


class _Reader(HTMLParser):
    """Collects the elements of a page, its text, and its charts."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self.charts, self._script = [], [], {}, None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._script = dict(attrs).get("data-chart") if tag == "script" else self._script

    def handle_endtag(self, tag):
        self._script = None if tag == "script" else self._script

    def handle_data(self, data):
        if self._script:
            self.charts[self._script] = json.loads(data)
        else:
            self.text.append(data)


def _read(record, examples=()):
    return _Reader(run_page(record, examples, version="1.2.3"))


@pytest.mark.parametrize("name", PAGES)
def test_every_page_is_complete_and_shows_texts_as_texts(name):
    make, examples = PAGES[name]
    page = run_page(make(), examples(), version="1.2.3")
    assert "alert(1)</script>" not in page.replace("\\u003c", "<").replace(HOSTILE.replace("<", "&lt;"), "")
    reader = _Reader(page)
    loaded = [attrs for tag, attrs in reader.tags if tag in ("img", "link", "script") and "src" in attrs]
    assert loaded == []
    assert [attrs["href"] for tag, attrs in reader.tags if tag == "link"] == ["data:,"]
    ids = [attrs["id"] for _, attrs in reader.tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_the_classes_have_the_figures_of_scikit_learn():
    record = classes_run()
    names = record.task.label_names
    truth = [item.label for item in record.predictions]
    guess = [item.prediction for item in record.predictions]
    expected = precision_recall_fscore_support(truth, guess, labels=range(5), zero_division=0)
    page = run_page(record, (), version="1")
    for index, name in enumerate(names):
        row = re.search(rf'<th scope="row">{re.escape(name)}</th>(.*?)</tr>', page, re.DOTALL)[1]
        cells = re.findall(r">([^<]*)</td>", row)
        figures = [f"{value:.3f}" for value in (expected[0][index], expected[1][index], expected[2][index])]
        assert cells == [*figures, str(expected[3][index]), str(guess.count(index))]
    cells = _read(record).charts["run-confusion"]["data"]["values"]
    matrix = np.array([cell["rows"] for cell in cells]).reshape(5, 5)
    assert np.array_equal(matrix, confusion_matrix(truth, guess, labels=range(5)))


def test_numbers_are_drawn_one_point_a_row_and_residuals_count_all_of_them():
    record = numbers_run()
    charts = _read(record).charts
    points = [(row["true"], row["predicted"]) for row in charts["run-scatter"]["data"]["values"]]
    assert points == [(item.label, item.prediction) for item in record.predictions]
    assert sum(bar["rows"] for bar in charts["run-residuals"]["data"]["values"]) == len(points)
    assert "run-confusion" not in charts


def test_many_classes_are_listed_by_their_confusions_instead_of_drawn():
    reader = _read(classes_run(60))
    assert "run-confusion" not in reader.charts
    assert "Confused most often" in "".join(reader.text)


def test_the_headline_has_the_metric_its_interval_the_rows_and_the_baseline():
    record = classes_run()
    value = f"{record.metrics['accuracy']:.3f}"
    text = headline(record)
    assert text.startswith(f"Accuracy {value} (95 % interval 0.")
    assert text.endswith("on 445 held-out rows; majority class 0.229.")
    assert headline(texts_run()) == "Answer loss 1.25 on 445 held-out rows."
    assert headline(failed_run()) == "The run failed."


@pytest.mark.parametrize(("metric", "has_line"), [("accuracy", True), ("answer_loss", False)])
def test_a_baseline_is_drawn_beside_its_own_metric_only(metric, has_line):
    record = classes_run()
    points = [{"step": step, "loss": 1.0, metric: 0.5} for step in (5, 10)]
    curve = replace(record.curve, validation=tuple(points))
    record = replace(record, curve=curve, metrics={**record.metrics, metric: 0.5})
    for known in ({}, {"majority": {"accuracy": 0.229}}):
        figure = curve_figures(replace(record, baseline_metrics=known))[1]
        assert ("majority" in json.dumps(figure.spec)) == has_line


def _constant(record, prediction):
    return replace(
        record, predictions=tuple(replace(item, prediction=prediction) for item in record.predictions)
    )


def test_a_run_that_learned_nothing_is_remarked_upon():
    record = make_record()
    assert remarks(record) == []
    constant = remarks(_constant(record, 3))
    assert constant[0].startswith("the model predicts 'sport' for each of the 445 held-out rows;")
    low = replace(record, metrics={"accuracy": 0.229})
    assert "accuracy is 0.229, and a model that never looks (majority) has 0.229" in remarks(low)[0]
    error = replace(record, task=replace(record.task, metric="hamming_error"), metrics={"hamming_error": 0.1})
    assert remarks(error) == []  # smaller is better
    assert remarks(failed_run()) == []
    page = "".join(_read(_constant(record, 3)).text)
    assert "The model predicts 'sport' for each of the 445 held-out rows" in page


def test_examples_come_back_as_they_were_written_and_damage_is_named(tmp_path):
    assert read_examples(tmp_path) == []
    write_examples(mistakes(), tmp_path)
    assert read_examples(tmp_path) == mistakes()
    lines = (tmp_path / NAME).read_text("utf-8").splitlines()
    for bad in ("{", "[]", lines[0][:-1] + ', "more": 1}', json.dumps({**json.loads(lines[0]), "id": []})):
        (tmp_path / NAME).write_text("\n".join([lines[0], bad]), "utf-8")
        with pytest.raises(DataError, match=f"line 2 of '.*{NAME}'"):
            read_examples(tmp_path)


def test_report_of_a_run_s_folder_is_its_page(tmp_path):
    classes_run().write(tmp_path)
    write_examples(mistakes(), tmp_path)
    result = CliRunner().invoke(cli, ["report", str(tmp_path)])
    assert (result.exit_code, result.stdout) == (0, f"{headline(classes_run())}\n")
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "Worst mistakes" in page
    told = CliRunner().invoke(cli, ["report", str(tmp_path), "--json", "--out", str(tmp_path / "a.html")])
    assert json.loads(told.stdout)["record"]["task"]["name"] == "bbc_news"
    (tmp_path / NAME).unlink()
    assert CliRunner().invoke(cli, ["report", str(tmp_path)]).exit_code == 0
    assert "Worst mistakes" not in (tmp_path / "report.html").read_text("utf-8")
    refused = CliRunner().invoke(cli, ["report", str(tmp_path), "--reference", "lora"])
    assert (refused.exit_code, "--reference" in refused.stderr) == (2, True)
    assert CliRunner().invoke(cli, ["report", str(tmp_path), "--out", str(tmp_path / "a.md")]).exit_code == 0
