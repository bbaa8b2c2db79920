"""Multi-label rows and tags of tokens: trained, killed, resumed, evaluated, compared and reported."""

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from rankfold.cli.main import cli
from rankfold.runs.request import RunRequest
from tests.integration.test_resume import content
from tests.support.killing import train_and_kill
from tests.support.tiny_models import BAD, GOOD, review_rows, tiny_bert, write_splits

__all__ = ["tiny_bert"]

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

WORDS = {"good": GOOD, "bad": BAD, "music": ("music",), "story": ("story",)}


def _labelled(row):
    words = row["sentence"].split()
    return {"text": row["sentence"], "labels": [tag for tag, of in WORDS.items() if set(of) & set(words)]}


def _tagged(row):
    tokens = row["sentence"].split()
    tags = ["B-MIND" if token in (*GOOD, *BAD) else "B-ART" if token == "music" else "O" for token in tokens]
    return {"tokens": tokens, "ner_tags": tags}


KINDS = {"multi_label": (_labelled, "micro_f1"), "token_labels": (_tagged, "entity_f1")}


@pytest.fixture(scope="module", params=sorted(KINDS))
def request_(request, tiny_bert, tmp_path_factory):
    """The run of a kind, which the rows alone name."""
    write, _ = KINDS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    data = write_splits(
        folder / "data",
        train=[write(row) for row in review_rows(48)],
        validation=[write(row) for row in review_rows(16, seed=1)],
    )
    return RunRequest(
        model=str(tiny_bert),
        method="lora",
        data=str(data),
        out=folder / "whole",
        steps=60,
        batch_size=8,
        learning_rate=0.03,
        checkpoint_every=10,
        eval_every=30,  # by themselves, the evaluations in between depend on the time that they take
        threads=1,
    )


def _call(*words):
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert result.exit_code == 0, result.stderr
    return result


@pytest.fixture(scope="module")
def trained(request_):
    _call(*request_.command()[1:])
    return request_.out


def _read(folder):
    return json.loads((folder / "run.json").read_text("utf-8"))


def test_run_learns_more_than_a_baseline_and_is_measured_again(trained):
    record = _read(trained)
    metric = record["task"]["metric"]
    assert metric == KINDS[record["task"]["kind"]][1]
    assert record["metrics"][metric] > record["baselines"]["majority"] + 0.1
    evaluated = json.loads(_call("evaluate", trained, "--json").stdout)
    assert evaluated["metrics"] == record["metrics"]
    assert [item["id"] for item in evaluated["predictions"]] == [item["id"] for item in record["predictions"]]


def test_run_that_is_killed_ends_with_the_same_bytes(trained, request_, tmp_path):
    killed = replace(request_, out=tmp_path / "killed")
    assert train_and_kill(killed, after_events=30, then_wait=0.01)
    _call("train", "--resume", "--out", killed.out)
    assert content(killed.out) == content(trained)


def test_methods_are_compared_with_intervals_and_reported(request_, without_charts, tmp_path):
    out = tmp_path / "compared"
    words = ("--model", request_.model, "--data", request_.data, "--seeds", 0, "--steps", 8)
    result = _call(
        *("compare", *words, "--out", out, "--batch-size", 8, "--method", "lora r=2", "--method", "tlora r=2")
    )
    assert "F1" in result.stdout or "f1" in result.stdout
    study = json.loads(_call("report", out, "--json").stdout)
    assert "unknown" not in json.dumps(study)
    assert (out / "report.md").is_file()
