"""Steps are measured in turns, for every row but the reference, and what is measured is kept."""

from dataclasses import replace
from pathlib import Path

import pytest

from rankfold.bench.step_times import NAME, read_step_times
from rankfold.bench.suites.speed import measure_speed
from rankfold.bench.suites.suite import Suite, Variant
from rankfold.errors import DataError, SpecError
from rankfold.progress import Silent


@pytest.fixture
def suite(tiny_bert, reviews):
    base = {"model": str(tiny_bert), "data": str(reviews), "batch_size": 4, "max_length": 16}
    methods = (
        Variant("peft:lora", {"r": 2}),
        Variant("tlora", {"r": 2}),
        Variant("effilora", {"r": 2, "heads": 2}, {"reducer": {"active_fraction": 0.5}}),
    )
    return Suite("some", base, methods)


def test_every_row_but_the_reference_has_a_ratio_within_its_interval(suite, tmp_path):
    found = measure_speed(suite, tmp_path, rounds=3)
    assert [(each.label, each.reference) for each in found] == [
        ("tlora", "peft:lora"),
        ("effilora", "peft:lora"),
    ]
    assert all(0 < each.low <= each.ratio <= each.high for each in found)
    assert read_step_times(tmp_path) == found


def test_progress_ends_with_every_row_done(suite, tmp_path):
    told = []

    class Listener(Silent):
        def advance(self, done, **fields):
            told.append(done)

    measure_speed(suite, tmp_path, rounds=1, progress=Listener())
    assert told[-1] == 2


def test_what_is_measured_is_kept(suite, tmp_path):
    first = measure_speed(replace(suite, methods=suite.methods[:2]), tmp_path, rounds=1)
    both = measure_speed(suite, tmp_path, rounds=1)
    assert both[:1] == first
    assert len(both) == 2


def test_rows_that_had_fewer_rounds_are_measured_again(suite, tmp_path):
    two = replace(suite, methods=suite.methods[:2])
    measure_speed(two, tmp_path, rounds=1)
    assert [each.rounds for each in measure_speed(two, tmp_path, rounds=2)] == [2]
    assert [each.rounds for each in measure_speed(two, tmp_path, rounds=1)] == [2]


def test_another_reference_or_another_row_of_the_same_label_is_measured_again(suite, tmp_path):
    two = replace(suite, methods=suite.methods[:2])
    first = measure_speed(two, tmp_path, rounds=1)
    assert measure_speed(two, tmp_path, rounds=1) == first
    wider = replace(two, methods=(two.methods[0], Variant("tlora", {"r": 3})))
    (again,) = measure_speed(wider, tmp_path, rounds=1)
    assert (again.label, again.asked == first[0].asked) == (first[0].label, False)
    other = replace(two, methods=(Variant("mola", {"r": 2}), two.methods[1]))
    assert [each.reference for each in measure_speed(other, tmp_path, rounds=1)] == ["mola"]


def test_measured_row_has_the_task_that_records_name(suite, tmp_path):
    found = measure_speed(replace(suite, methods=suite.methods[:2]), tmp_path, rounds=1)
    assert {each.task for each in found} == {Path(suite.base["data"]).name}


def test_damaged_file_and_no_rounds_are_refused(suite, tmp_path):
    with pytest.raises(SpecError, match="rounds is 0"):
        measure_speed(suite, tmp_path, rounds=0)
    (tmp_path / NAME).write_text("[")
    with pytest.raises(DataError, match="measure again"):
        measure_speed(suite, tmp_path)
