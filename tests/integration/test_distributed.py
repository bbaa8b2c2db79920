"""Two processes train as one does, and save an adapter that loads: by DDP, FSDP2 and FSDP1 over gloo."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import peft
import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file

from rankfold.errors import SpecError
from rankfold.runs.record import RunRecord
from rankfold.runs.run import run
from rankfold.train.distributed import rows_per_process, shared_factors
from rankfold.train.reducer.scores import LayerScores
from tests.integration.models import adapted, bert, config_of, learned
from tests.integration.two_processes import (
    METHODS,
    plain_steps,
    reduced_run,
    reduced_trainer,
    run_request,
    trainer,
)
from tests.support.tiny_models import review_rows, write_bert, write_splits

ALL = pytest.mark.parametrize("method", METHODS)


@pytest.fixture(scope="module")
def together(tmp_path_factory, root):
    """A folder with the results of two processes, started by torchrun once for all tests."""
    folder = tmp_path_factory.mktemp("together")
    write_bert(folder / "bert")
    config = json.loads((folder / "bert" / "config.json").read_text())
    # Equal results take a model without dropout too.
    dropout = {name: 0.0 for name in config if name.endswith("dropout_prob")}
    (folder / "bert" / "config.json").write_text(json.dumps(config | dropout))
    write_splits(folder / "data", train=review_rows(48), validation=review_rows(16, seed=1))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, "-m", "tests.integration.two_processes", str(folder)],
        cwd=root,
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def assert_learned_the_same(folder, alone):
    """Compare a saved adapter, loaded again, with one that a single process trained."""
    loaded = learned(peft.PeftModel.from_pretrained(bert(), str(folder)))
    expected, start = learned(alone), learned(adapted(alone.peft_config["default"]))
    assert loaded.keys() == expected.keys()
    for name, parameter in expected.items():
        assert not torch.equal(parameter, start[name]), f"{name} has not moved"
        assert (loaded[name] - parameter).norm() <= 1e-5 * parameter.norm(), name


def assert_same_history(history, expected):
    """Compare the states of two Reducers in the course of a training, which began with a probe."""
    assert any(history[0].importance)
    for point, other in zip(history, expected, strict=True):
        assert (point.step, point.trained) == (other.step, other.trained)
        assert point.importance == pytest.approx(other.importance, rel=1e-4)


@ALL
def test_trainer_in_two_processes_learns_what_one_learns(together, tmp_path, method):
    alone = adapted(config_of(method))
    trainer(alone, tmp_path, 8).train()
    assert_learned_the_same(together / f"trainer-{method}", alone)


@ALL
@pytest.mark.parametrize("way", ["fsdp2", "fsdp1", "fsdp1_peft"])
def test_sharded_model_learns_what_a_whole_one_learns(together, way, method):
    alone = adapted(config_of(method)).train()
    plain_steps(alone, slice(0, 6))
    assert_learned_the_same(together / f"{way}-{method}", alone)


@pytest.mark.parametrize("method", ["relayed_lora", "effilora"], ids=["at once", "stopped and resumed"])
def test_run_of_two_processes_is_the_run_of_one(together, tmp_path, method):
    alone = run(replace(run_request(together, method), out=tmp_path / "alone"))
    record = RunRecord.read(together / f"run-{method}")
    for part in ("method", "training", "data", "parameters"):
        assert getattr(record, part) == getattr(alone, part)
    for point, expected in zip(record.curve.train, alone.curve.train, strict=True):
        assert point == pytest.approx(expected, rel=1e-5)
    files = [
        folder / "adapter_model.safetensors" for folder in (together / f"run-{method}", tmp_path / "alone")
    ]
    weights, expected = map(load_file, files)
    assert weights.keys() == expected.keys()
    for name in expected:
        assert (weights[name] - expected[name]).norm() <= 1e-5 * expected[name].norm(), name
    assert not list(together.glob("*.unfinished"))


def test_reducer_is_the_same_on_both_processes_and_that_of_one(together, tmp_path):
    scores = [
        LayerScores.from_dict(json.loads((together / f"reducer-{rank}.json").read_text())) for rank in (0, 1)
    ]
    assert scores[0] == scores[1]
    ours, reducer = reduced_trainer(tmp_path, 8)
    ours.train()
    assert_same_history(scores[0].history, reducer.scores.history)
    assert_learned_the_same(together / "trainer-reduced", ours.model)


def test_run_of_two_processes_with_a_reducer_is_the_run_of_one(together, tmp_path):
    alone = run(replace(reduced_run(together), out=tmp_path / "alone"))
    record = RunRecord.read(together / "run-reduced")
    assert record.data == alone.data
    assert record.data.rows["train"] == 32
    assert_same_history(record.reducer.history, alone.reducer.history)


def test_only_the_first_process_speaks(together):
    assert [(together / f"exit-{rank}").read_text() for rank in (0, 1)] == ["0", "0"]
    outputs = [(together / f"stdout-{rank}").read_text() for rank in (0, 1)]
    assert "trainable parameters" in outputs[0]
    assert outputs[1] == ""


def test_rows_that_cannot_be_dealt_out_evenly_are_refused(monkeypatch):
    assert rows_per_process(7) == 7
    monkeypatch.setitem(PartialState._shared_state, "num_processes", 2)
    assert rows_per_process(8) == 4
    with pytest.raises(SpecError, match=r"batch_size 7 .* multiple of 2"):
        rows_per_process(7)


def test_shared_factors_are_those_that_several_layers_train():
    for method, count in {"lora": 0, "effilora": 1, "tlora": 0, "relay_in_one_pool": 1}.items():
        assert len(shared_factors(adapted(config_of(method)))) == count, method
