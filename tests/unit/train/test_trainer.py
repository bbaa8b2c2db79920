"""Training: what a seed fixes, what the curve holds, and how a bad loss ends it."""

import math
import warnings
from functools import cached_property
from typing import get_args

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import TrainingArguments

from rankfold.errors import TrainingError
from rankfold.models.base import resolve_model
from rankfold.tasks.kinds import Evaluation, Learner
from rankfold.tasks.kinds.classification import KIND as CLASSIFICATION
from rankfold.tasks.kinds.labelled import Example
from rankfold.train.curve import CURVE_POINTS
from rankfold.train.held_out import HeldOut
from rankfold.train.schedule import Schedule, Scheduler
from rankfold.train.trainer import train_model
from tests.support.tiny_models import review_rows

CPU = torch.device("cpu")


@pytest.fixture
def train(tiny_bert):
    """Return a function that trains LoRA on reviews and returns the model and the curve."""

    def run(schedule, *, seed=0, spoil=False, multiplier=None, **more):
        torch.manual_seed(seed)
        loaded = CLASSIFICATION.load(resolve_model(str(tiny_bert)), ("bad", "good"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            model = get_peft_model(
                loaded.model, LoraConfig(r=4, target_modules=["query", "value"], task_type="SEQ_CLS")
            )
        if spoil:
            next(parameter for parameter in model.parameters() if parameter.requires_grad).data.fill_(
                math.nan
            )
        examples = [Example(i, row["sentence"], None, row["label"]) for i, row in enumerate(review_rows(32))]
        learner = Learner(model, loaded.processor, 32)
        rows = CLASSIFICATION.encode(learner, examples, training=True)
        collate = CLASSIFICATION.collate(learner)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        groups = multiplier and [
            {
                "params": trained,
                "lr": schedule.learning_rate * multiplier,
                "multiplier": multiplier,
                "weight_decay": 0.0,
            }
        ]
        return model, train_model(model, rows, schedule, collate=collate, device=CPU, groups=groups, **more)

    return run


class Recorder:
    """A progress that remembers what it heard."""

    def __init__(self):
        self.events = []

    def start(self, total, description):
        self.events.append(("start", total))

    def advance(self, done, **fields):
        self.events.append(("advance", done))

    def finish(self):
        self.events.append(("finish", None))


def test_the_same_seed_trains_the_same_weights_bit_for_bit(train):
    (first, one), (second, two) = (train(Schedule(6, 8, 1e-2, seed=5)) for _ in range(2))
    assert one.train == two.train
    for left, right in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(left, right)


def test_another_seed_sees_the_rows_in_another_order(train):
    curves = [train(Schedule(4, 8, 1e-2, seed=seed))[1].train for seed in (0, 1)]
    assert curves[0] != curves[1]


def test_training_lowers_the_loss(train):
    curve = train(Schedule(60, 8, 2e-2))[1]
    first, last = (sum(p["loss"] for p in part) for part in (curve.train[:10], curve.train[-10:]))
    assert last < 0.8 * first


@pytest.mark.parametrize("steps", [1, CURVE_POINTS + 3])
def test_a_curve_ends_at_the_last_step_and_stays_short(train, steps):
    curve = train(Schedule(steps, 8, 1e-3))[1]
    assert curve.train[-1]["step"] == steps
    assert len(curve.train) <= CURVE_POINTS
    assert len(curve.step_seconds) == steps


def test_the_rate_rises_during_the_warm_up_and_then_falls(train):
    rates = [point["learning_rate"] for point in train(Schedule(20, 8, 1e-3, warmup=0.25))[1].train]
    top = rates.index(max(rates))
    assert rates[0] == 0.0
    assert max(rates) == pytest.approx(1e-3)
    assert rates == sorted(rates[:top]) + sorted(rates[top:], reverse=True)


def test_held_out_data_is_measured_before_between_and_after(train):
    steps_of_an_epoch = 4
    curve = train(
        Schedule(2 * steps_of_an_epoch + 1, 8, 1e-3),
        held_out=HeldOut(lambda _: Evaluation(1.5, {"accuracy": 0.5}), 16, "epochs"),
    )[1]
    assert [point["step"] for point in curve.validation] == [0, 4, 8, 9]
    assert curve.validation[0] == {"step": 0, "loss": 1.5, "accuracy": 0.5}


def test_one_device_is_taken_where_there_are_more(train, monkeypatch):
    alone, one = train(Schedule(3, 8, 1e-3))
    find = TrainingArguments._setup_devices

    def find_two(arguments):
        device = find.func(arguments)
        arguments._n_gpu = 2
        return device

    found = cached_property(find_two)
    found.__set_name__(TrainingArguments, "_setup_devices")
    monkeypatch.setattr(TrainingArguments, "_setup_devices", found)
    monkeypatch.setattr(torch.nn.DataParallel, "__init__", lambda *_: pytest.fail("the model was wrapped"))
    among, two = train(Schedule(3, 8, 1e-3))
    assert one.train == two.train
    assert all(map(torch.equal, alone.parameters(), among.parameters()))


def test_progress_hears_every_update_and_the_end(train):
    recorder = Recorder()
    train(Schedule(3, 8, 1e-3), progress=recorder)
    assert recorder.events == [("start", 3), ("advance", 1), ("advance", 2), ("advance", 3), ("finish", None)]


def test_a_loss_that_is_not_a_number_stops_at_once_and_says_what_to_do(train):
    recorder = Recorder()
    with pytest.raises(
        TrainingError, match=r"the loss is nan at step 1; lower --learning-rate \(it is 0\.001\)"
    ):
        train(Schedule(3, 8, 1e-3), spoil=True, progress=recorder)
    assert recorder.events == [("start", 3), ("finish", None)]


def test_bf16_on_the_cpu_trains_close_to_fp32(train):
    losses = [
        train(Schedule(8, 8, 1e-2, precision=precision))[1].train[-1]["loss"]
        for precision in ("fp32", "bf16")
    ]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_training_prints_nothing(train, capsys):
    train(Schedule(2, 8, 1e-3))
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("scheduler", get_args(Scheduler))
def test_every_scheduler_trains(train, scheduler):
    _, curve = train(Schedule(steps=2, batch_size=8, learning_rate=1e-2, scheduler=scheduler))
    assert len(curve.train) == 2


def test_groups_train_at_their_multiple_and_the_curve_shows_the_base_rate(train):
    runs = [
        train(Schedule(6, 8, rate, warmup=0.5), multiplier=multiplier)
        for rate, multiplier in ((1e-3, None), (1e-3, 1.0), (1e-3, 8.0), (8e-3, None))
    ]
    weights = [[each.detach() for each in model.parameters() if each.requires_grad] for model, _ in runs]
    for one, other, is_same in ((0, 1, True), (0, 2, False), (2, 3, True)):
        pairs = zip(weights[one], weights[other], strict=True)
        assert all(torch.equal(left, right) for left, right in pairs) == is_same
    rates = [[point["learning_rate"] for point in curve.train] for _, curve in runs]
    assert rates[1] == rates[0]
    assert rates[2] == pytest.approx(rates[0])
