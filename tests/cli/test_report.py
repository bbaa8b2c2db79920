"""`rankfold report` makes the page from any folder of runs."""

import json

import pytest
from click.testing import CliRunner

from rankfold.cli.main import cli
from tests.support.records import fail, make_record
from tests.support.suites import write_suite


@pytest.fixture
def runs(tmp_path):
    for index, record in enumerate([make_record("lora"), make_record("tlora"), fail(make_record("lora_fa"))]):
        folder = tmp_path / "runs" / str(index)
        folder.mkdir(parents=True)
        record.write(folder)
    return tmp_path / "runs"


def test_report_prints_a_table_and_writes_the_page(runs):
    result = CliRunner().invoke(cli, ["report", str(runs)])
    assert result.exit_code == 0
    assert all(name in result.stdout for name in ("lora", "tlora", "not separated", "majority class"))
    assert "lora_fa, seed 0, failed: the loss is not a number" in result.stderr
    assert (runs / "report.html").is_file()


@pytest.mark.usefixtures("without_charts")
@pytest.mark.parametrize(
    ("name", "begin"), [("a.html", "<!doctype"), ("a.md", "# "), ("a.csv", "model,task,")]
)
def test_report_is_what_its_name_says_and_all_three_in_the_folder(runs, tmp_path, name, begin):
    for words in (["report", str(runs)], ["report", str(runs), "--out", str(tmp_path / name)]):
        assert CliRunner().invoke(cli, words).exit_code == 0
    beside = {".html": "report.html", ".md": "report.md", ".csv": "records.csv"}[(tmp_path / name).suffix]
    assert (tmp_path / name).read_text().lower().startswith(begin)
    assert (runs / beside).read_text() == (tmp_path / name).read_text()


def test_report_as_json_has_stable_keys(runs):
    told = json.loads(CliRunner().invoke(cli, ["report", str(runs), "--json"]).stdout)
    assert set(told) == {"claims", "studies", "missing"}
    (study,) = told["studies"]
    assert set(study) == {"model", "task", "metric", "examples", "baselines", "rows", "choices"}
    assert set(study["rows"][0]) == {
        "label", "seeds", "score", "difference", "p_value", "verdict", "tuning",
        "trainable", "bytes", "seconds", "failures",
    }  # fmt: skip
    assert [row["verdict"] for row in study["rows"]] == ["reference", "not separated", "not comparable"]


@pytest.mark.usefixtures("without_charts")
def test_report_writes_where_it_is_told_and_never_over_a_file(runs, tmp_path):
    words = ["report", str(runs), "--out", str(tmp_path / "page.html")]
    assert CliRunner().invoke(cli, words).exit_code == 0
    before = (tmp_path / "page.html").read_bytes()
    refused = CliRunner().invoke(cli, words)
    assert (refused.exit_code, (tmp_path / "page.html").read_bytes()) == (2, before)
    assert CliRunner().invoke(cli, [*words, "--overwrite"]).exit_code == 0


def test_report_that_cannot_be_written_there_is_wrong_use(runs, tmp_path):
    (tmp_path / "file").touch()
    result = CliRunner().invoke(cli, ["report", str(runs), "--out", str(tmp_path / "file" / "page.html")])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "choose another folder" in result.stderr
    assert "Traceback" not in result.stderr


def test_report_takes_another_reference(runs):
    words = ["report", str(runs), "--reference", "tlora", "--json"]
    (study,) = json.loads(CliRunner().invoke(cli, words).stdout)["studies"]
    assert study["rows"][0]["label"] == "tlora"


@pytest.mark.parametrize("name", ["", "absent"], ids=["no runs", "no folder"])
def test_report_of_nothing_is_wrong_use(tmp_path, name):
    result = CliRunner().invoke(cli, ["report", str(tmp_path / name)])
    assert (result.exit_code, len(result.stderr.splitlines()), result.stdout) == (2, 1, "")


def test_report_of_a_damaged_record_names_the_file_and_writes_nothing(runs):
    (runs / "0" / "run.json").write_text("{")
    result = CliRunner().invoke(cli, ["report", str(runs)])
    assert result.exit_code == 2
    assert "run.json" in result.stderr
    assert not (runs / "report.html").exists()


@pytest.mark.usefixtures("without_charts")
def test_report_of_a_suite_prints_a_verdict_for_each_claim(tmp_path):
    write_suite(tmp_path, tasks=("mrpc",))
    result = CliRunner().invoke(cli, ["report", str(tmp_path)])
    assert result.exit_code == 0
    assert all(text in result.stdout for text in ("X1", "✓ supported", "✗ contradicted", "○ not run"))
    assert "Claims: 2 supported, 1 contradicted and 1 not run." in result.stderr


def test_report_of_a_damaged_suite_names_the_file(runs):
    (runs / "suite.json").write_text("{")
    result = CliRunner().invoke(cli, ["report", str(runs)])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "suite.json" in result.stderr


def test_a_report_of_an_unknown_kind_is_refused(runs, tmp_path):
    result = CliRunner().invoke(cli, ["report", str(runs), "--out", str(tmp_path / "runs.txt")])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "end it in .html, .md or .csv" in result.stderr
    assert not (tmp_path / "runs.txt").exists()


def test_overwrite_without_a_file_to_replace_is_refused(runs):
    result = CliRunner().invoke(cli, ["report", str(runs), "--overwrite"])
    assert result.exit_code == 2
    assert "--overwrite is given without --out" in result.stderr
