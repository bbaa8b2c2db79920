"""Runs with learning rates by role: trained so, recorded so, or refused before they start."""

from dataclasses import replace

import pytest

from rankfold.errors import SpecError
from rankfold.runs.record import RunRecord
from rankfold.runs.run import dry_run, run

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def test_a_ratio_of_one_trains_what_no_ratio_trains_and_another_does_not(request_, tmp_path):
    request_ = replace(request_, method="tlora_plus")
    ratios = (None, 1.0, 4.0)
    plain, one, four = (
        run(replace(request_, out=tmp_path / f"ratio {ratio}", tlora_ratio=ratio)) for ratio in ratios
    )
    assert plain.curve == one.curve
    assert plain.predictions == one.predictions
    assert plain.curve != four.curve


def test_the_record_has_the_ratio_and_the_groups_that_were_trained(request_):
    record = run(replace(request_, loraplus_ratio=16.0, weight_decay=0.1))
    assert RunRecord.read(request_.out) == record
    assert record.training.rates == {"loraplus_ratio": 16.0}
    rates = [(group.role, group.learning_rate, group.weight_decay) for group in record.training.groups]
    assert rates == [("down", 0.01, 0.1), ("up", 0.16, 0.1), ("head", 0.01, 0.0), ("head", 0.01, 0.1)]
    numbers = {role: 0 for role, _, _ in rates}
    for group in record.training.groups:
        numbers[group.role] += group.numbers
    assert numbers["down"] + numbers["up"] == record.parameters.trainable
    assert numbers["head"] == record.parameters.head


def test_a_frozen_head_is_in_no_group(request_):
    plan = dry_run(replace(request_, freeze_head=True, lr_groups={"up": 2}))
    assert [group.name for group in plan.training.groups] == ["down", "up x2"]


def test_a_run_without_ratios_records_no_groups(request_):
    training = dry_run(request_).training
    assert (training.rates, training.groups) == ({}, ())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tlora_ratio": 4.0}, "'core' applies to no parameter"),
        ({"method": "peft:lora", "loraplus_ratio": 16.0}, "no rankfold adapter"),
        ({"lr_groups": {"head": 0.1}, "freeze_head": True}, "'head' applies to no parameter"),
    ],
    ids=["no core", "another library's adapter", "frozen head"],
)
def test_a_ratio_that_reaches_nothing_ends_the_run_before_it_starts(request_, change, words):
    with pytest.raises(SpecError, match=words):
        run(replace(request_, **change))
    assert not request_.out.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"tlora_ratio": 0.0},
        {"tlora_ratio": 4.0, "loraplus_ratio": 16.0},
        {"lr_groups": {"dwon": 2.0}},
        {"lr_base_role": "core"},
    ],
    ids=str,
)
def test_rates_that_make_no_sense_are_refused_before_anything_is_read(request_, change):
    with pytest.raises(SpecError):
        replace(request_, model="nothing like a model", **change)
