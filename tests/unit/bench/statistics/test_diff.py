"""Two sets of records: what has become worse is found, and nothing is left out in silence."""

from dataclasses import replace
from pathlib import Path

import pytest

from rankfold.bench.statistics.diff import compare_records
from rankfold.errors import DataError
from tests.support.records import fail, make_record, with_request

METHODS = ("lora", "tlora", "relayed_lora")


def _set(seeds=(0, 1), **qualities):
    return [
        make_record(method, seed=seed, quality=qualities.get(method, 0.9))
        for method in METHODS
        for seed in seeds
    ]


def _outcomes(old, new):
    return {change.label.split()[0]: change.outcome for change in compare_records(old, new).changes}


def test_a_set_against_itself_is_the_same_everywhere():
    found = compare_records(_set(), _set())
    assert {change.outcome for change in found.changes} == {"the same"}
    assert all(change.old == change.new and change.bytes_ratio == 1 for change in found.changes)
    assert (found.only_old, found.only_new) == ((), ())


def test_what_is_worse_in_one_direction_is_better_in_the_other():
    one, other = _set(range(5)), _set(range(5), tlora=0.7)
    assert _outcomes(one, other) == {"lora": "the same", "tlora": "worse", "relayed_lora": "the same"}
    assert _outcomes(other, one)["tlora"] == "better"
    (change,) = [each for each in compare_records(one, other).changes if each.outcome == "worse"]
    assert change.is_regression
    assert change.difference.interval.value == pytest.approx(change.new - change.old)


def test_a_change_that_rows_and_seeds_may_have_made_is_not_separated():
    # Another draw of errors of the same rate.
    other = [replace(record, predictions=_rolled(record)) for record in _set()]
    assert set(_outcomes(_set(), other).values()) == {"not separated"}


def _rolled(record):
    """Return the record's predictions with its mistakes on other rows."""
    wrong = [(item.prediction - item.label) for item in record.predictions]
    moved = wrong[7:] + wrong[:7]
    return tuple(
        replace(item, prediction=item.label + error)
        for item, error in zip(record.predictions, moved, strict=True)
    )


def test_a_run_that_fails_now_is_a_regression_and_says_why():
    old, new = _set(), _set()
    new[2] = fail(new[2])
    (change,) = [each for each in compare_records(old, new).changes if each.label.startswith("tlora")]
    assert (change.outcome, change.is_regression) == ("failed", True)
    assert "seed 0: the loss is not a number" in change.why
    (change,) = [each for each in compare_records(new, old).changes if each.label.startswith("tlora")]
    assert (change.outcome, change.why) == ("the same", "seeds 0: fixed")


def test_place_and_speed_do_not_make_another_run_but_a_rate_does():
    old = [with_request(record, out=Path("a"), threads=1, overwrite=True) for record in _set()]
    new = [with_request(record, out=Path("b"), device="cpu") for record in _set()]
    assert set(_outcomes(old, new).values()) == {"the same"}
    new[0] = with_request(new[0], learning_rate=1e-3)
    new[1] = with_request(new[1], learning_rate=1e-3)
    found = compare_records(old, new)
    assert found.only_old == found.only_new == ("lora r=8",)
    assert len(found.changes) == 2


def test_seeds_are_compared_with_themselves():
    found = compare_records(_set()[:1], _set()[:2])
    assert found.changes[0].seeds == (0,)
    assert found.changes[0].outcome == "the same"


@pytest.mark.parametrize(
    ("old", "new", "outcome"),
    [
        ("f...", "xxxx", "worse"),
        ("f.", "ff", "failed"),
        ("f", ".", "fixed"),
        ("ff", "f.", "fixed"),
        ("f", "f", "failed in both"),
        ("f.", "..", "the same"),
    ],
)
def test_other_seeds_hide_no_regression(old, new, outcome):
    """A letter is a seed: `f` failed, `.` is as it was, `x` is worse."""

    def runs(letters):
        made = [
            make_record(seed=seed, quality=0.5 if one == "x" else 0.95) for seed, one in enumerate(letters)
        ]
        return [fail(record) if one == "f" else record for record, one in zip(made, letters, strict=True)]

    assert [change.outcome for change in compare_records(runs(old), runs(new)).changes] == [outcome]


def test_missing_seeds_are_named():
    (change,) = compare_records([make_record(seed=seed) for seed in range(4)], [make_record()]).changes
    assert (change.outcome, change.why) == ("the same", "seeds 1, 2, 3: not in both sets")


def test_other_data_is_not_comparable():
    new = [replace(record, data=replace(record.data, sha256="ef" * 32)) for record in _set()]
    changes = compare_records(_set(), new).changes
    assert {change.outcome for change in changes} == {"not comparable"}
    assert all("hash" in change.why for change in changes)


def test_another_metric_is_not_comparable():
    def measured(record):
        return replace(record, task=replace(record.task, metric="f1"), metrics={"f1": 0.5})

    for old, new in ((_set(), map(measured, _set())), (map(measured, _set()), _set())):
        found = {(each.outcome, each.why) for each in compare_records(old, new).changes}
        assert found == {("not comparable", "the task has changed: it is measured by another metric")}


def test_a_metric_without_predictions_is_not_comparable():
    def open_answers(record, loss):
        task = replace(record.task, kind="instruction", metric="answer_loss", label_names=None)
        return replace(record, task=task, metrics={"answer_loss": loss}, predictions=())

    old, new = ([open_answers(record, loss) for record in _set()] for loss in (0.5, 0.7))
    for change in compare_records(old, new).changes:
        assert (change.outcome, change.old, change.new) == ("not comparable", 0.5, 0.7)


def test_sets_without_a_common_run_are_an_error():
    with pytest.raises(DataError, match="no run in common"):
        compare_records(_set(), [make_record(task="mrpc")])
