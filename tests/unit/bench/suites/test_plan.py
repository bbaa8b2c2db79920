"""The plan of a suite says how many runs are left, how long they take, and what they could show."""

from dataclasses import replace

import pytest

from rankfold.bench.statistics.claims import Claim, Rules
from rankfold.bench.suites.plan import plan_suite
from rankfold.bench.suites.suite import Suite, Variant
from tests.support.records import make_record, with_request

SEEDS, MEAN = (0, 1, 2, 3), Rules()
TASKS = {"mrpc": {}, "stsb": {}, "sst2": {}}


def suite(*tasks, seeds=SEEDS, expect="greater", rules=MEAN):
    claim = Claim("X", "a paper", "It is so.", expect, (("lora", "tlora"),), 0.01)
    methods = (Variant("lora"), Variant("tlora"))
    settings = {name: TASKS[name] for name in tasks}
    return Suite(
        "some", {"model": "minilm", "steps": 50}, methods, seeds, tasks=settings, claims=(claim,), rules=rules
    )


@pytest.fixture(scope="module")
def pilot():
    """Three methods on each task, with seeds that matter differently."""
    return [
        make_record(method, seed=seed, task=task, quality=0.8 + 0.02 * (seed % 3), examples=300)
        for task in TASKS
        for method in ("lora", "tlora", "nora")
        for seed in SEEDS
    ]


def power(planned, pilot, folder):
    (claim,) = plan_suite(planned, folder, pilot).claims
    return claim.detectable


def test_more_seeds_and_tasks_show_smaller_differences(pilot, tmp_path):
    few, many = (power(suite("mrpc", seeds=tuple(range(count))), pilot, tmp_path) for count in (3, 12))
    assert 0 < many < few
    one, three = (power(suite(*list(TASKS)[:count]), pilot, tmp_path) for count in (1, 3))
    assert three < one
    each = power(suite(*TASKS, rules=Rules(tasks="each")), pilot, tmp_path)
    assert each >= max(power(suite(task), pilot, tmp_path) for task in TASKS) * 0.999
    assert power(suite("mrpc", expect="equivalent"), pilot, tmp_path) > 0


def test_task_without_a_pilot_has_no_power_to_tell(pilot, tmp_path):
    known = [record for record in pilot if record.task.name != "stsb"]
    assert power(suite("mrpc", "stsb"), known, tmp_path) is None
    assert power(suite("mrpc", "sst2"), known, tmp_path) is not None
    assert power(suite("mrpc"), [record for record in pilot if record.training.seed == 0], tmp_path) is None


def test_runs_with_a_record_are_done_and_the_others_take_as_long_by_the_step(pilot, tmp_path):
    planned = suite("mrpc")
    assert plan_suite(planned, tmp_path / "none").hours is None
    done = planned.requests(tmp_path)[0]
    record = with_request(make_record(steps=50), **{"out": done.out})
    record = replace(record, seconds=replace(record.seconds, total=90.0))
    done.out.mkdir()
    record.write(done.out)
    plan = plan_suite(planned, tmp_path)
    assert (plan.runs, plan.left) == (8, 7)
    assert plan.hours == pytest.approx(7 * 90 / 3600)
    longer = replace(planned, base={**planned.base, "steps": 100})
    assert plan_suite(longer, tmp_path).hours == pytest.approx(7 * 180 / 3600)
