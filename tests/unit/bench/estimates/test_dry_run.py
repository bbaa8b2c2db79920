"""What a suite would take is said of every kind of run, once."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from rankfold.bench.estimates import Device, estimate, estimate_runs
from rankfold.runs.request import RunRequest
from rankfold.runs.workload import measure_workload
from rankfold.tasks import TaskRequest, load_task


@pytest.fixture
def request_(tiny_bert):
    options = {"target_modules": ["query", "value"], "r": 8}
    return RunRequest(model=str(tiny_bert), method="lora", options=options, steps=5, max_length=8, out=Path())


class Heard:
    """A listener that keeps what it is told."""

    def __init__(self):
        self.told = []

    def start(self, total, description):
        self.told.append(total)

    def advance(self, done, **fields):
        self.told.append(done)

    def finish(self):
        self.told.append("finished")


def test_runs_that_take_the_same_are_estimated_once_and_multiplied(request_):
    rank = {**request_.options, "r": 4}
    requests = [
        replace(request_, seed=seed, learning_rate=rate, options=options)
        for seed in (0, 1, 2)
        for rate in (1e-3, 1e-4)
        for options in (request_.options, rank)
    ]
    heard = Heard()
    planned = estimate_runs(requests, progress=heard)
    assert [each.runs for each in planned] == [6, 6]
    assert [each.estimate for each in planned] == [
        estimate(request_),
        estimate(replace(request_, options=rank)),
    ]
    assert planned[0].hours == 6 * planned[0].estimate.hours
    assert heard.told == [2, 1, 2, "finished"]


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 6},
        {"batch_size": 3},
        {"max_length": 4},
        {"freeze_head": True},
        {"precision": "fp32"},
        {"method": "tlora"},
        {"reducer": {"select": "random"}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_runs_that_take_something_else_are_told_apart(request_, change):
    first, second = estimate_runs([request_, replace(request_, **change)])
    assert first.estimate != second.estimate


def test_run_that_cannot_be_estimated_is_a_row_with_a_reason(request_):
    first, second = estimate_runs([replace(request_, method="peft:unilora"), request_])
    assert (first.estimate, first.hours) == (None, None)
    assert "without weights" in first.reason
    assert second.estimate is not None


def test_device_is_passed_on(request_):
    device = Device("a toy", 1e6, "measured")
    (planned,) = estimate_runs([request_], device=device)
    assert planned.estimate.device == device


def test_step_that_tasks_have_in_common_is_followed_once(request_, monkeypatch):
    followed = []

    def follow(*given, **more):
        followed.append(given)
        return measure_workload(*given, **more)

    monkeypatch.setattr("rankfold.bench.estimates.measure_workload", follow)
    requests = [replace(request_, task=task, steps=None) for task in ("mrpc", "rte", "stsb", "mnli")]
    planned = estimate_runs(requests)
    assert len(followed) == 3, "two classes, one number, three classes"
    assert [each.estimate for each in planned] == [estimate(each) for each in requests]


def test_own_instructions_are_counted_as_the_model_reads_them(request_, tiny_llama, questions):
    own = replace(
        request_, model=str(tiny_llama), options={"target_modules": ["q_proj"]}, data=str(questions)
    )
    (planned,) = estimate_runs([replace(own, steps=None, epochs=2.0)])
    rows = load_task(TaskRequest(None, str(questions)), is_causal=True).examples.counts["train"]
    assert planned.estimate is not None, planned.reason
    assert (planned.estimate.rows, planned.estimate.kind) == (rows, "instruction")


def test_own_data_is_read_for_its_rows(request_, reviews):
    rows = load_task(TaskRequest(data=str(reviews)), is_causal=False).examples.splits["train"]
    own = replace(request_, data=str(reviews), steps=None, epochs=2.0, batch_size=2)
    (planned,) = estimate_runs([own])
    assert planned.estimate == estimate(own, rows=len(rows))
    assert planned.estimate.steps == 2 * math.ceil(len(rows) / 2)
    (absent,) = estimate_runs([replace(own, data="absent.csv")])
    assert "absent.csv" in absent.reason


def test_rows_of_a_task_that_is_a_folder_are_counted(request_, tmp_path):
    for name, count in (("mine", 6), ("other", 9)):
        (tmp_path / name).mkdir()
        for split in ("train", "validation"):
            rows = [{"text": f"row {number}", "label": "ab"[number % 2]} for number in range(count)]
            (tmp_path / name / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = replace(request_, data_root=str(tmp_path), steps=None, epochs=1.0, batch_size=2)
    planned = estimate_runs([replace(own, task=task) for task in ("mine", "mine+other")])
    assert [each.reason for each in planned] == [None, None]
    assert [each.estimate.rows for each in planned] == [6, 12], "a mixture has as many rows of each task"
    (unknown,) = estimate_runs([replace(own, task="mrcp")])
    assert "unknown task 'mrcp'" in unknown.reason
