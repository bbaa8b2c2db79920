"""A run that is killed at any instant ends, once resumed, with the very bytes of one that was not."""

import json
import random
from dataclasses import replace

import pytest

from rankfold.runs.record import RunRecord
from rankfold.runs.request import RunRequest
from tests.support.killing import train_and_kill, train_to_the_end
from tests.support.tiny_models import reviews, tiny_bert

__all__ = ["reviews", "tiny_bert"]

KILLS, STEPS = 12, 14
METHODS = {
    "relayed_lora": {"r": 4, "k": 2, "dropout": 0.2},
    "effilora": {"r": 2, "dropout": 0.2},
}
# Heads, a router, dropout, and a Reducer that has probed before most of the kills.
# With this many bits the last third of the updates computes with rounded numbers.
BITS = {"effilora": 4, "relayed_lora": 3}
REDUCERS = {"effilora": {"active_fraction": 0.5, "interval": 2, "start_step": 2}}
FILES = ("adapter_model.safetensors", "adapter_config.json", "adapter.rankfold", "curve.csv")


@pytest.fixture
def request_(tiny_bert, reviews, tmp_path):
    """Return a function that gives the run of a method: over two epochs, a checkpoint every third step."""

    def make(method, out):
        return RunRequest(
            model=str(tiny_bert),
            method=method,
            data=str(reviews),
            out=tmp_path / out,
            options=METHODS[method],
            reducer=REDUCERS.get(method),
            steps=STEPS,
            store_bits=BITS[method],
            batch_size=8,
            learning_rate=1e-2,
            max_length=32,
            checkpoint_every=3,
            threads=1,
        )

    return make


def content(folder):
    record = json.loads((folder / "run.json").read_text("utf-8"))
    for name in ("created", "request", "seconds", "peak_memory_bytes"):
        del record[name]
    files = sorted(path.name for path in folder.iterdir() if path.name in FILES)
    return [(name, (folder / name).read_bytes()) for name in files], record


def test_killed_runs_end_with_the_bytes_of_the_run_that_was_not_killed(request_, tmp_path):
    """Also where they are killed before the first update, in a checkpoint, or in the last writing."""
    generator = random.Random(20)
    expected = {}
    for method in METHODS:
        train_to_the_end(request_(method, method))
        expected[method] = content(tmp_path / method)
    whole = RunRecord.read(tmp_path / next(iter(METHODS))).seconds
    killed = resumed = 0
    for number in range(KILLS):
        method = generator.choice(list(METHODS))
        request = request_(method, f"run{number}")
        moment = {
            "after_events": generator.randrange(STEPS + 3),
            "then_wait": generator.random() * whole.train / STEPS,
        }
        killed += train_and_kill(request, **moment)
        unfinished = list(tmp_path.glob(f"run{number}.unfinished/checkpoint-*/complete.json"))
        resumed += bool(unfinished)
        train_to_the_end(replace(request, resume=True))
        assert content(request.out) == expected[method], (number, method, moment)
    assert {path.name for path in tmp_path.iterdir()} == {*METHODS, *(f"run{n}" for n in range(KILLS))}
    # Otherwise the moments would prove little.
    assert killed >= KILLS * 3 // 4
    assert resumed >= KILLS // 2
