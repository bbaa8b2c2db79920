"""Runs with a Reducer: rows are held out for its probes, and the record says which layers mattered."""

from dataclasses import replace

import pytest

from rankfold.errors import DataError, SpecError
from rankfold.runs.record import RunRecord
from rankfold.runs.run import dry_run, run

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture
def asked(request_):
    """A run long enough for a Reducer."""
    return replace(request_, steps=6)


def test_a_run_with_a_reducer_records_which_layers_mattered(asked):
    options = {"active_fraction": 0.5, "interval": 2, "start_step": 2}
    plain = dry_run(asked)
    record = run(replace(asked, reducer=options, steps=8))
    assert record.reducer.options == options
    assert record.reducer.layers == ("layer.0", "layer.1")
    assert [point.step for point in record.reducer.history] == [2, 4, 6]
    assert [sum(point.trained) for point in record.reducer.history] == [2, 4, 6]
    assert any(record.reducer.history[-1].importance)
    assert record.data.rows == {"train": 44, "probe": 4, "validation": 16}
    assert record.parameters.trainable == plain.parameters.trainable
    assert record.parameters.active == 3 * plain.parameters.active // 4
    assert RunRecord.read(asked.out) == record


def test_a_run_with_a_reducer_repeats_bit_for_bit(asked, tmp_path):
    options = {"active_fraction": 0.5, "interval": 2, "start_step": 2}
    one, other = (run(replace(asked, reducer=options, out=tmp_path / name)) for name in "ab")
    assert one.reducer == other.reducer
    assert one.curve == other.curve
    assert one.predictions == other.predictions


def test_choosing_layers_without_probes_holds_no_rows_out(asked):
    record = dry_run(replace(asked, reducer={"select": "last", "active_layers": 1}))
    assert record.data.rows["train"] == 48
    assert "probe" not in record.data.rows


def test_a_reducer_on_instructions_probes_answers(asked, tiny_llama, questions):
    options = {"interval": 2, "start_step": 2, "active_fraction": 0.5}
    record = run(replace(asked, model=str(tiny_llama), data=str(questions), reducer=options, steps=5))
    assert any(record.reducer.history[-1].importance)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "peft:lora"}, "no active rankfold adapter"),
        ({"reducer": {"active_layers": 3}}, "active_layers=3, but the model has 2 layers"),
        ({"reducer": {"interval": 0}}, "interval is '0'"),
        ({"reducer": {"probe_loader": 1}}, "unknown option 'probe_loader' of the Reducer"),
        ({"train_rows": 9}, "9 training rows are too few to hold any out"),
    ],
)
def test_a_reducer_that_cannot_work_is_refused_before_training(asked, change, message):
    with pytest.raises((SpecError, DataError), match=message):
        dry_run(replace(asked, **{"reducer": {}, **change}))
    assert not asked.out.exists()
