"""Runs that 0.1.0 made are resumed, recognised, measured, compared and reported."""

import csv
import json
import shutil
import warnings
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import nn

from rankfold.adapter.module import Dropout
from rankfold.cli.main import cli
from rankfold.errors import RankfoldWarning
from rankfold.peft_plugin.layer_types import RankfoldLinear
from rankfold.runs.adapter_request import EvaluateRequest
from rankfold.runs.evaluate import evaluate
from tests.compat.corpus import CORPUS
from tests.compat.write_runs import FIT

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

RECORDS = {path.parent.name: json.loads(path.read_text("utf-8")) for path in CORPUS.glob("runs/*/run.json")}
DONE = sorted(name for name, record in RECORDS.items() if record["status"] == "done")
STOPPED = sorted(path.stem for path in CORPUS.glob("stopped/*.unfinished"))


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """A copy of the corpus, which is the working directory: the paths in the files are relative."""
    folder = tmp_path / "corpus"
    shutil.copytree(
        CORPUS, folder, ignore=shutil.ignore_patterns("adapters", "packed", "store.*", "outputs.safetensors")
    )
    monkeypatch.chdir(folder)
    return folder


def call(*words, code=0):
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert result.exit_code == code, result.stderr
    return result


def times(folder):
    """When each adapter of a folder was written."""
    return {path: path.stat().st_mtime_ns for path in folder.glob("**/adapter_model.safetensors")}


def read_json(path):
    return json.loads(path.read_text("utf-8"))


def read_curve(folder):
    with (folder / "curve.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


ADDED = {
    "settings",
    "columns",
    "weights_sha256",
    "best_step",
    "stopped_early",
    "init",
}  # fields that 0.1.0 did not have


def assert_close(one, other, *, tolerance):
    """Compare JSON values, numbers with a tolerance."""
    if isinstance(other, dict):
        assert one.keys() - ADDED == other.keys() - ADDED
        for key in other.keys() - ADDED:
            assert_close(one[key], other[key], tolerance=tolerance)
    elif isinstance(other, list):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_close(left, right, tolerance=tolerance)
    elif isinstance(other, float):
        assert one == pytest.approx(other, rel=tolerance, abs=tolerance)
    else:
        assert one == other


@pytest.fixture
def earlier_masks(monkeypatch):
    """Dropout as 0.1.0 had it, torch's own: the masks of a seed are others since."""
    fused = RankfoldLinear.fused_forward

    def plain(self, active, x):
        return None if any(self.rankfold_adapters[name].drops for name in active) else fused(self, active, x)

    monkeypatch.setattr(Dropout, "forward", nn.Dropout.forward)
    monkeypatch.setattr(RankfoldLinear, "fused_forward", plain)


@pytest.mark.usefixtures("earlier_masks")
@pytest.mark.parametrize("name", STOPPED)
def test_stopped_run_ends_as_the_run_that_was_not_stopped(name, corpus):
    """To the bit on the machine and with the libraries that it began with, nearly elsewhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", RankfoldWarning)
        said = call("train", "--resume", "--out", f"stopped/{name}").stderr
    is_elsewhere = "began elsewhere" in said
    resumed, whole = corpus / "stopped" / name, corpus / "runs" / name
    assert not (corpus / "stopped" / f"{name}.unfinished").exists()
    after, before = (load_file(folder / "adapter_model.safetensors") for folder in (resumed, whole))
    assert after.keys() == before.keys()
    tolerance = 1e-3 if is_elsewhere else 0.0
    for key, tensor in before.items():
        torch.testing.assert_close(after[key], tensor, atol=tolerance, rtol=tolerance)
    records = [read_json(folder / "run.json") for folder in (resumed, whole)]
    for part in ("curve", "metrics", "reducer", "training", "data", "model", "task", "parameters"):
        assert_close(records[0][part], records[1][part], tolerance=tolerance)
    steps = [[(row["split"], row["step"]) for row in read_curve(folder)] for folder in (resumed, whole)]
    assert steps[0] == steps[1]


@pytest.mark.parametrize("name", DONE)
def test_run_that_is_done_is_known_again(name, corpus):
    """The command that a record holds asks for the run that is there, so that nothing is trained."""
    before = (corpus / "runs" / name / "adapter_model.safetensors").stat().st_mtime_ns
    # The defaults of these options were others.
    zero = ["--set", "zero=down"] if RECORDS[name]["method"]["name"] == "relayed_lora" else []
    shown = json.loads(call(*RECORDS[name]["command"][1:], *zero, "--resume", "--json").stdout)
    assert (corpus / "runs" / name / "adapter_model.safetensors").stat().st_mtime_ns == before
    if zero:
        assert shown["method"]["options"].pop("zero") == "down"
        assert shown["method"]["options"].pop("target_modules") is None
    for part in set(RECORDS[name]) - {"command", "format"}:
        assert_close(shown[part], RECORDS[name][part], tolerance=0.0)


def test_run_that_is_done_is_not_taken_for_another(corpus):
    words = RECORDS["classification"]["command"][1:]
    result = call(*words, "--resume", "--seed", "1", code=2)
    assert "holds another run" in result.stderr


@pytest.mark.parametrize("name", DONE)
def test_finished_run_is_measured_again(name, corpus):
    """With all that was asked of the run: model, data, columns and scoring are those of its record."""
    record = RECORDS[name]
    shown = json.loads(call("evaluate", f"runs/{name}", "--json").stdout)
    rows = record["data"]["rows"]["validation"]
    last = record["curve"]["validation"][-1]
    if shown["rows"] == rows:
        metrics = {metric: shown["metrics"][metric] for metric in record["metrics"]}
        assert_close(metrics, record["metrics"], tolerance=1e-6)
        assert shown["loss"] == pytest.approx(last["loss"], rel=1e-4)
        assert [item["id"] for item in shown["predictions"]] == [item["id"] for item in record["predictions"]]
        # For people the classes have names; the record has their ids.
        result = evaluate(EvaluateRequest(adapter=Path("runs") / name))
        assert_close([asdict(item) for item in result.predictions], record["predictions"], tolerance=1e-4)
    else:
        assert name in {"limited", "people"}  # of which the run measured a part


def test_failed_run_is_tried_again(corpus):
    assert RECORDS["failed"]["status"] == "failed"
    words = [*RECORDS["failed"]["command"][1:], "--resume"]
    call(*words, code=1)
    again = read_json(corpus / "runs" / "failed" / "run.json")
    assert (again["status"], again["error"]) == ("failed", RECORDS["failed"]["error"])


def test_store_takes_the_metrics_of_a_run(corpus):
    call("store", "put", "new.db", "reviews", "runs/classification")
    (record,) = json.loads(call("store", "list", "new.db", "--json").stdout)
    assert record["metrics"] == RECORDS["classification"]["metrics"]


def test_report_shows_every_run(corpus):
    call("report", "runs")
    with (corpus / "runs" / "records.csv").open(encoding="utf-8", newline="") as file:
        text = file.read()
    for record in RECORDS.values():
        assert record["method"]["name"] in text
    assert (corpus / "runs" / "report.md").is_file()


def test_archive_of_runs_reports_the_same(corpus):
    call("bench", "archive", "suite", "--out", "archived")
    reports = [json.loads(call("report", folder, "--json").stdout) for folder in ("suite", "archived")]
    assert reports[0] == reports[1]
    diff = json.loads(call("bench", "diff", "suite", "archived", "--json").stdout)
    assert diff["changes"]
    assert not diff["only_old"]
    assert not diff["only_new"]


def test_suite_that_is_done_is_reported_without_training(corpus):
    before = times(corpus / "suite")
    assert before
    call("compare", "--suite", "suite.toml", "--threads", 1, "--out", "suite")
    assert before == times(corpus / "suite")


def test_choice_of_another_search_is_kept_and_reported(corpus):
    """What fit tries is another list than in 0.1.0, so its folder is that of another choice."""
    before = times(corpus / "fit")
    assert before
    refused = call("fit", *FIT.split(), "--threads", 1, "--out", "fit", code=2).stderr
    assert "'fit' holds another choice" in refused
    assert "--overwrite" in refused
    call("report", "fit")
    assert before == times(corpus / "fit")
