"""Runs whose answers are scored one way or the other."""

import json
from dataclasses import replace

import pytest

from rankfold.errors import SpecError
from rankfold.report.study import make_studies
from rankfold.runs.adapter_request import EvaluateRequest
from rankfold.runs.evaluate import evaluate
from rankfold.runs.record import RunRecord
from rankfold.runs.request import RunRequest
from rankfold.runs.run import run
from rankfold.store.manifest import MANIFEST_NAME
from rankfold.tasks import TaskRequest, load_task
from rankfold.tasks.scoring import Scoring
from tests.support.tiny_models import review_rows, write_splits


@pytest.fixture
def asked(tiny_llama, questions, tmp_path):
    return RunRequest(
        model=str(tiny_llama),
        method="lora",
        data=str(questions),
        out=tmp_path / "run",
        steps=3,
        batch_size=4,
        max_length=60,
    )


def test_a_generated_run_says_so_and_its_evaluation_gives_the_same(asked):
    request = replace(asked, scoring="generated")
    record = run(request)
    assert record.task.scoring == "generated"
    assert 0 <= record.metrics["unparsed"] <= 1
    assert record.request.scoring == "generated"
    again = evaluate(
        EvaluateRequest(
            adapter=request.out,
            model=request.model,
            data=request.data,
            max_length=60,
            scoring="generated",
        )
    )
    assert (again.predictions, again.metrics) == (record.predictions, record.metrics)
    assert again.scoring == "generated"


def test_answers_are_scored_by_likelihood_if_nothing_is_said(asked):
    record = run(asked)
    assert record.task.scoring == "likelihood"
    assert "unparsed" not in record.metrics


def test_runs_that_are_scored_differently_are_not_compared(asked):
    first = run(asked)
    second = replace(first, task=replace(first.task, scoring="generated"))
    third = replace(first, task=replace(first.task, version=2))
    assert len(make_studies([first, second, third])) == 3


def test_a_record_without_version_and_scoring_is_read_and_is_of_the_same_study(asked):
    record = run(asked)
    file = asked.out / "run.json"
    values = json.loads(file.read_text("utf-8"))
    del values["task"]["version"], values["task"]["scoring"]
    file.write_text(json.dumps(values), "utf-8")
    old = RunRecord.read(asked.out)
    assert (old.task.version, old.task.scoring) == (None, None)
    assert len(make_studies([old, record])) == 1


def test_a_scoring_that_is_unknown_has_a_suggestion(asked):
    with pytest.raises(SpecError, match="Did you mean 'generated'"):
        replace(asked, scoring="generate")


@pytest.mark.parametrize("is_causal", [True, False])
def test_a_scoring_that_a_task_has_no_use_for_is_refused(tmp_path, reviews, is_causal):
    rows = [{"instruction": f"{index}", "output": f"answer {index}"} for index in range(30)]
    folder = write_splits(tmp_path / "open", train=rows, validation=rows[:5]) if is_causal else reviews
    data = load_task(TaskRequest(data=str(folder)), is_causal=is_causal)
    assert _scoring(None, data) is None
    with pytest.raises(SpecError, match="the scoring 'generated' is for questions with choices"):
        _scoring("generated", data)


def test_bare_choices_of_a_named_task_are_asked_in_its_words(tmp_path):
    row = {"question": "She ran", "choices": ["home.", "far.", "off.", "on."], "answer": 2}
    folder = write_splits(tmp_path / "d", train=[row] * 4, validation=[row])
    data = load_task(TaskRequest(task="hellaswag", data=str(folder)), is_causal=True)
    (item,) = data.examples.splits["validation"]
    assert item.answer == "the correct answer is ending3"
    assert _scoring(None, data) == Scoring.LIKELIHOOD


def _scoring(name, data):
    return data.kind.scoring(name, data.task.metrics, data.task.name)


class StopAt:
    """A progress that stops a run after so many updates."""

    def __init__(self, step):
        self.step = step

    def start(self, total, description):
        pass

    def advance(self, done, **fields):
        if done >= self.step:
            raise KeyboardInterrupt

    def finish(self):
        pass


def _as_instruction(file):
    """Let a record say what 0.1.0 called a question with choices."""
    values = json.loads(file.read_text("utf-8"))
    assert values["task"]["kind"] == "multiple_choice"
    values["task"]["kind"] = "instruction"
    file.write_text(json.dumps(values), "utf-8")


def test_questions_that_0_1_0_recorded_as_instructions_resume_and_are_evaluated(asked, tmp_path):
    rows = [
        {"question": row["sentence"], "choices": ["bad", "good"], "answer": row["label"]}
        for row in review_rows(16)
    ]
    folder = write_splits(tmp_path / "choices", train=rows, validation=rows[:6])
    request = replace(asked, data=str(folder), steps=4, checkpoint_every=1, resume=True)
    with pytest.raises(KeyboardInterrupt):
        run(request, progress=StopAt(2))
    _as_instruction(request.out.with_name("run.unfinished") / "start.json")
    record = run(request)
    assert record.task.kind == "multiple_choice"
    whole = run(replace(request, out=tmp_path / "whole"))
    assert (record.metrics, record.predictions) == (whole.metrics, whole.predictions)
    _as_instruction(request.out / "run.json")
    asked_again = EvaluateRequest(adapter=request.out, model=request.model, data=request.data, max_length=60)
    again = evaluate(asked_again)
    assert (again.predictions, again.metrics) == (record.predictions, record.metrics)
    (request.out / MANIFEST_NAME).unlink()  # 0.1.0 wrote none
    bare = evaluate(asked_again)
    assert (bare.predictions, bare.metrics) == (record.predictions, record.metrics)
