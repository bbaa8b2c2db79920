"""Held-out evaluations: when they take place, that they change nothing, and what follows from the best."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankfold.errors import SpecError
from rankfold.runs.record import RunRecord
from rankfold.runs.request import RunRequest
from rankfold.runs.run import run
from rankfold.tasks.kinds import Evaluation
from rankfold.train import curve as curve_module
from rankfold.train import held_out as held_out_module
from rankfold.train.curve import Listener
from rankfold.train.held_out import LEAST_ROWS, POINTS, SHARE, HeldOut, Pace
from rankfold.train.schedule import Schedule
from tests.support.tiny_models import review_rows, write_splits

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
WEIGHTS = "adapter_model.safetensors"


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self):
        self.seconds = 0.0

    def perf_counter(self):
        return self.seconds


class State:
    """The part of the Trainer's state and control that the listener reads."""

    global_step = 0
    should_training_stop = should_save = False


@given(
    st.integers(1, 3000), st.integers(1, 64), st.integers(1, 2000), st.floats(1e-3, 10), st.floats(1e-5, 10)
)
def test_evaluations_in_between_take_at_most_their_share(steps, batch, rows, step_seconds, row_seconds):
    """Whatever an update and an evaluated row take."""
    clock, state, seen = Clock(), State(), []

    def evaluate(count):
        seen.append((state.global_step, count))
        clock.seconds += row_seconds * (count or rows)
        return Evaluation(1.0, {})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curve_module, "time", clock)
        listener = Listener(Schedule(steps, batch, 1e-3), held_out=HeldOut(evaluate, rows))
        listener.on_train_begin(None, state, state, model=None)
        for step in range(1, steps + 1):
            listener.on_step_begin(None, state, state)
            clock.seconds += step_seconds
            state.global_step = step
            listener.on_step_end(None, state, state, model=None)
        listener.on_train_end(None, state, state, model=None)
    first, *between, last = seen
    assert (first, last) == ((0, None), (steps, None))
    assert len(between) <= POINTS
    assert all(count >= min(rows, LEAST_ROWS) for _, count in between)
    assert row_seconds * sum(count for _, count in between) <= SHARE * steps * step_seconds * (1 + 1e-9)


def test_long_training_has_points_all_along():
    for row_seconds in (0.001, 0.01, 0.02):
        pace = Pace.plan(Schedule(1000, 16, 1e-3), 500)
        pace.row_seconds = row_seconds
        points = [step for step in range(1, 1001) if pace.is_due(step, 0.5)]
        assert len(points) >= min(POINTS // 2, 0.25 * SHARE * 1000 * 0.5 / (row_seconds * pace.rows))
        gaps = [later - sooner for sooner, later in zip([0, *points], [*points, 1000], strict=True)]
        assert max(gaps) <= 2 * 1000 / len(points)


@pytest.fixture
def request_(tiny_bert, tmp_path):
    """A run that learns in a second."""
    data = write_splits(tmp_path / "data", train=review_rows(48), validation=review_rows(16, seed=1))
    return RunRequest(
        model=str(tiny_bert),
        method="relayed_lora",
        options={"r": 4, "k": 2, "dropout": 0.1},
        data=str(data),
        out=tmp_path / "run",
        steps=60,
        batch_size=8,
        learning_rate=1e-2,
        max_length=32,
    )


def test_weights_are_the_same_however_often_they_are_measured(request_, tmp_path, monkeypatch):
    monkeypatch.setattr(held_out_module, "SHARE", 0.1)  # so that a short training has points in between
    curves = {}
    for name, change in {
        "auto": {},
        "epochs": {"validate": "epochs"},
        "end": {"validate": "end"},
        "every": {"eval_every": 7},
    }.items():
        record = run(replace(request_, out=tmp_path / name, **change))
        curves[name] = [point["step"] for point in record.curve.validation]
        assert (tmp_path / name / WEIGHTS).read_bytes() == (tmp_path / "auto" / WEIGHTS).read_bytes()
    assert curves["auto"][0] == 0
    assert curves["auto"][-1] == 60
    assert 2 < len(curves["auto"]) < POINTS
    assert curves["epochs"] == list(range(0, 61, 6))
    assert curves["end"] == [60]
    assert curves["every"] == [*range(0, 60, 7), 60]


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
def test_adapter_of_the_best_evaluation_is_saved(request_, tmp_path, metric):
    """The one that a training of so many updates has, at the same rate."""
    same_rate = {"scheduler": "constant", "warmup": 0.0, "learning_rate": 0.3, "eval_every": 2}
    best = run(replace(request_, steps=12, **same_rate, save_best=metric))
    points = [point for point in best.curve.validation if point["step"]]
    chosen = (min if metric == "loss" else max)(points, key=lambda point: point[metric])
    assert best.training.best_step == chosen["step"]
    assert best.metrics["accuracy"] == chosen["accuracy"]
    short = replace(request_, out=tmp_path / "short", steps=int(chosen["step"]), **same_rate)
    run(short)
    assert (request_.out / WEIGHTS).read_bytes() == (short.out / WEIGHTS).read_bytes()


def test_training_stops_when_nothing_gets_better(request_):
    record = run(replace(request_, learning_rate=1.0, eval_every=3, early_stopping=2))
    losses = [(point["loss"], point["step"]) for point in record.curve.validation if point["step"]]
    assert record.training.stopped_early
    assert record.training.steps == min(losses)[1] + 2 * 3 < 60
    assert record.training.best_step is None
    assert RunRecord.read(request_.out) == record


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"save_best": "acuracy"}, "unknown metric 'acuracy' of save_best. Did you mean 'accuracy'"),
        ({"early_stopping": 2, "validate": "end"}, "early_stopping takes evaluations in between"),
        ({"report_to": "tensorbord"}, "unknown logger 'tensorbord' of report_to. Did you mean 'tensorboard'"),
    ],
    ids=str,
)
def test_choice_that_is_not_possible_is_refused(request_, change, message):
    with pytest.raises(SpecError, match=message):
        run(replace(request_, **change))


def test_evaluations_are_part_of_a_run_where_they_decide():
    request = RunRequest(model="m", method="lora", out="new")
    assert request.identity() == replace(request, eval_every=5, validate="end").identity()
    best = replace(request, save_best="loss")
    assert best.identity() != replace(best, eval_every=5).identity()


def test_curve_is_logged_by_the_integrations_of_the_trainer(request_):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    record = run(replace(request_, steps=4, eval_every=2, report_to="tensorboard"))
    (folder,) = (request_.out / "runs").iterdir()
    events = accumulator.EventAccumulator(str(folder)).Reload()
    losses = [event.value for event in events.Scalars("train/loss")]
    assert losses == pytest.approx([point["loss"] for point in record.curve.train], rel=1e-6)
    assert [event.step for event in events.Scalars("eval/accuracy")] == [0, 2, 4]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of their own libraries
@pytest.mark.parametrize("logger", ["wandb", "mlflow", "trackio"])
def test_curve_is_logged_without_a_network(logger, request_, tmp_path, monkeypatch):
    pytest.importorskip(logger, reason=f"the package '{logger}' is not installed")
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "WANDB_MODE": "offline",
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "HF_HUB_OFFLINE": "1",
    }.items():
        monkeypatch.setenv(name, value)
    record = run(replace(request_, steps=2, eval_every=1, report_to=logger))
    assert record.status == "done"
    written = [path for path in tmp_path.rglob("*") if path.is_file() and request_.out not in path.parents]
    assert written


def test_random_state_is_given_back_after_an_evaluation():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    listener = Listener(
        Schedule(2, 8, 1e-3), held_out=HeldOut(lambda _: Evaluation(float(torch.rand(1)), {}), 16)
    )
    listener.on_train_begin(None, State(), State(), model=None)
    assert torch.equal(torch.rand(2), expected)
