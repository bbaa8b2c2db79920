"""What a run would take agrees with what is published, with what is asked for, and with the run itself."""

from dataclasses import replace
from pathlib import Path

import pytest

from rankfold.bench.estimates import A100, Device, estimate
from rankfold.errors import SpecError
from rankfold.runs.request import RunRequest
from rankfold.runs.run import dry_run
from rankfold.tasks import NAMED_TASKS

QUERY_VALUE = {"target_modules": ["query", "value"]}
ROBERTA = RunRequest(
    model="FacebookAI/roberta-base",
    method="relayed_lora",
    options={"r": 8, "k": 8, **QUERY_VALUE},
    task="mrpc",
    max_length=32,
    batch_size=16,
    out=Path(),
)
TINY = replace(ROBERTA, method="lora", options=QUERY_VALUE, task=None, steps=5, max_length=8, batch_size=4)


@pytest.fixture(scope="module")
def relayed():
    return estimate(replace(ROBERTA, epochs=30))


def test_numbers_are_the_papers(relayed):
    assert (relayed.base, relayed.parameters.stored) == (124_647_170, 60_672)
    assert relayed.stored_bytes == 4 * (60_672 + relayed.parameters.head)
    assert relayed.structure == "rankfold"


def test_steps_are_those_of_the_official_rows(relayed):
    assert relayed.rows == NAMED_TASKS["mrpc"].rows["train"] == 3_668
    assert relayed.steps == 30 * -(-3_668 // 16)


def test_operations_are_steps_times_a_step_and_hours_those_at_the_devices_rate(relayed):
    assert relayed.flops == pytest.approx(relayed.steps * relayed.step_flops)
    assert relayed.device == A100["bf16"]
    assert relayed.hours == pytest.approx(relayed.flops / A100["bf16"].flops / 3600)
    assert relayed.fits


@pytest.mark.parametrize(
    ("changes", "rows", "used"),
    [
        ({"train_rows": 100}, None, 100),
        ({"hold_out": True}, None, 3_668 - 367),
        ({"task": "boolq+arc_easy+arc_challenge"}, None, 3 * 1_119),
        ({}, 50, 50),
        ({"task": None}, 50, 50),
        ({"task": "mine"}, 50, 50),
        ({"task": None, "steps": 7}, None, None),
    ],
    ids=["limited", "held out", "mixture", "given", "own data", "own task", "steps alone"],
)
def test_rows_are_those_that_a_run_would_use(tiny_bert, changes, rows, used):
    request = replace(TINY, model=str(tiny_bert), **{"task": "mrpc", "steps": None, **changes})
    assert estimate(request, rows=rows).rows == used


@pytest.mark.parametrize("method", ["lora", "effilora", "peft:lora"])
def test_estimate_is_the_record_of_a_run_whose_rows_are_all_that_long(tiny_bert, reviews, tmp_path, method):
    request = replace(TINY, model=str(tiny_bert), method=method, data=str(reviews), max_length=4, steps=None)
    run = dry_run(replace(request, out=tmp_path / "run"))
    found = estimate(request, rows=run.data.rows["train"])
    assert found.parameters == run.parameters
    assert (found.steps, found.length) == (run.training.steps, run.training.max_length)
    assert found.flops == run.flops


def test_reducer_trains_less_in_a_step_but_probes(tiny_bert):
    request = replace(TINY, model=str(tiny_bert), method="effilora")
    half = {"active_fraction": 0.5}
    plain = estimate(request)
    random = estimate(replace(request, reducer={**half, "select": "random"}))
    probing = estimate(replace(request, reducer=half))
    everything = estimate(replace(request, reducer={"select": "all"}))
    assert random.parameters.active < plain.parameters.active == everything.parameters.active
    assert random.flops < plain.flops
    assert random.flops < probing.flops
    assert plain.flops < everything.flops


def test_options_of_probes_change_how_many_there_are_and_nothing_else(tiny_bert):
    request = replace(TINY, model=str(tiny_bert), method="effilora")
    half = {"active_fraction": 0.5}
    bare = estimate(replace(request, reducer={**half, "select": "random"})).step_flops
    usual = estimate(replace(request, reducer=half)).step_flops
    rare = estimate(replace(request, reducer={**half, "interval": 100, "probes": 2, "suppress_layers": 1}))
    assert (usual - bare) / (rare.step_flops - bare) == pytest.approx((3 / 10) / (2 / 100))


def test_frozen_head_takes_no_gradient(tiny_bert):
    free, frozen = (
        estimate(replace(TINY, model=str(tiny_bert), freeze_head=freeze)) for freeze in (False, True)
    )
    assert free.memory.trained - frozen.memory.trained == 16 * free.parameters.head


def test_head_alone_trains_and_keeps_next_to_nothing(tiny_bert):
    request = replace(TINY, model=str(tiny_bert), options={})
    whole, alone = (estimate(replace(request, method=name)) for name in ("lora", "head_only"))
    assert (alone.parameters.trainable, alone.parameters.head) == (0, whole.parameters.head)
    assert alone.memory.trained == 16 * alone.parameters.head
    assert alone.step_flops < 0.6 * whole.step_flops
    assert alone.memory.activations < 0.1 * whole.memory.activations


def test_half_precision_keeps_less_of_a_large_batch_and_is_assumed_on_a_gpu(tiny_bert):
    request = replace(TINY, model=str(tiny_bert), batch_size=64)
    exact, automatic = (estimate(replace(request, precision=name)) for name in ("fp32", "auto"))
    assert (exact.precision, automatic.precision) == ("fp32", "bf16")
    assert automatic.memory.activations < exact.memory.activations
    assert automatic.memory.total == sum(
        getattr(automatic.memory, name) for name in ("weights", "trained", "activations", "gradients")
    )


def test_device_is_the_users_and_may_be_too_small(tiny_bert):
    request = replace(TINY, model=str(tiny_bert))
    slow = estimate(request, device=Device("a toy", 1e6, "measured", memory_bytes=1000))
    assert slow.hours == pytest.approx(slow.flops / 1e6 / 3600)
    assert slow.fits is False
    assert estimate(request, device=Device("a toy", 1e6, "measured")).fits is None


def test_what_cannot_be_followed_without_weights_is_said(tiny_bert):
    whole, outer, other = (
        estimate(replace(TINY, model=str(tiny_bert), method=name, options={"r": 4, **QUERY_VALUE}))
        for name in ("lora", "nora", "peft:poly")
    )
    assert whole.left_out is None
    assert outer.left_out == "what the adapter keeps"
    assert other.left_out == "what the adapter computes and keeps"
    assert other.step_flops < outer.step_flops


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "mrpcc"}, "Did you mean 'mrpc'"),
        ({"task": "mrpc+mine"}, "unknown task 'mine'"),
        ({"task": None, "steps": None}, "the rows of the training split are not known"),
        ({"model": "roberta-base"}, "FacebookAI/roberta-base"),
        ({"max_length": 10_000}, "max_length is 10000"),
        ({"method": "peft:unilora"}, "without weights"),
        ({"precision": "fp8"}, "fp8"),
    ],
    ids=["task", "part", "rows", "model", "length", "method", "precision"],
)
def test_what_cannot_be_estimated_is_refused_with_a_remedy(changes, message):
    with pytest.raises(SpecError, match=message):
        estimate(replace(ROBERTA, **{"options": QUERY_VALUE, "method": "lora", "epochs": None, **changes}))
