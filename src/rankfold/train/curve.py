"""The curve of a training: losses, rates, times and held-out metrics, recorded by a callback."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, final

from torch import nn
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from rankfold.errors import TrainingError
from rankfold.progress import Progress, Silent
from rankfold.tasks.kinds import Evaluation
from rankfold.train.held_out import LOSS, Best, HeldOut, Pace, same_randomness
from rankfold.train.schedule import Schedule

CURVE_POINTS = 100
"""Maximum points of a training curve; in a longer run each point averages several steps."""


@dataclass(slots=True)
class Curve:
    """Losses, metrics and times in the course of a training.

    Args:
        train: Points of step, mean loss since the last point, and learning rate.
        validation: Points of step, loss and metrics; the first is before any update, if any is.
        step_seconds: Time of each update since the last resumption, without evaluation.
        train_seconds: Time of the whole training without evaluation.
        evaluate_seconds: Time of all evaluations.
        earlier_seconds: The part of both before the last resumption.
        steps: Updates that were made.
        best_step: The update whose weights the model has, where the best evaluation decides; else None.
    """

    train: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    validation: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    step_seconds: list[float] = field(default_factory=list[float])
    train_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    earlier_seconds: float = 0.0
    steps: int = 0
    best_step: int | None = None

    @property
    def median_step_seconds(self) -> float:
        """The median time of an update, in seconds."""
        return median(self.step_seconds) if self.step_seconds else 0.0


@final
class Listener(TrainerCallback, ExportableState):
    """Callback that records the curve and reports progress.

    Checkpoints hold its public attributes under the name of this class, so neither can be renamed.

    Args:
        schedule: Says the number of updates, and the peak rate for the advice in the error about a bad loss.
        held_out: Rows that are measured in between; none if None.
        progress: Receives every update.
        log: Receives the values of every point, for loggers such as TensorBoard.
    """

    def __init__(
        self,
        schedule: Schedule,
        *,
        held_out: HeldOut | None = None,
        progress: Progress | None = None,
        log: Callable[[dict[str, float]], None] | None = None,
    ) -> None:
        self.train: list[dict[str, float]] = []
        self.validation: list[dict[str, float]] = []
        self.losses: list[float] = []
        self.measured_at = -1
        self.evaluate_seconds = 0.0
        self.earlier_seconds = 0.0
        self.log = log
        self._steps = schedule.steps
        self._learning_rate = schedule.learning_rate
        self._held_out = held_out
        self._pace = Pace.plan(schedule, 0 if held_out is None or not held_out.has_pace else held_out.rows)
        self._best = None
        if held_out is not None and held_out.selects:
            self._best = Best(held_out.best_by or LOSS, held_out.best_by is not None)
        self._progress = progress or Silent()
        self._every = math.ceil(schedule.steps / CURVE_POINTS)
        self._step_seconds: list[float] = []
        self._began = self._step_began = time.perf_counter()

    def state(self) -> dict[str, Any]:
        """State for checkpoints, in the form that transformers expects."""
        names = ("points", "losses", "measured_at", "evaluate_seconds", "pace", "best")
        attributes = {name: getattr(self, name) for name in names}
        return {"args": {}, "attributes": {**attributes, "earlier_seconds": self._seconds()}}

    @property
    def pace(self) -> dict[str, Any]:
        """The steps of the evaluations in between, as JSON values."""
        return asdict(self._pace)

    @pace.setter
    def pace(self, value: dict[str, Any]) -> None:
        self._pace = Pace(**value)

    @property
    def best(self) -> dict[str, Any] | None:
        """The best evaluation, as JSON values."""
        return None if self._best is None else self._best.state()

    @best.setter
    def best(self, value: dict[str, Any] | None) -> None:
        if self._best is not None and value is not None:
            self._best.set_state(value)

    def write_files(self, checkpoint: Path) -> None:
        """Write the best weights into a checkpoint."""
        if self._best is not None:
            self._best.write(checkpoint)

    def read_files(self, checkpoint: Path) -> None:
        """Read the best weights from a checkpoint."""
        if self._best is not None:
            self._best.read(checkpoint)

    @property
    def points(self) -> dict[str, list[list[tuple[str, float]]]]:
        """The curve as pairs: a checkpoint sorts names, whose order is that of `curve.csv`."""
        parts = {"train": self.train, "validation": self.validation}
        return {name: [list(point.items()) for point in points] for name, points in parts.items()}

    @points.setter
    def points(self, value: dict[str, list[list[tuple[str, float]]]]) -> None:
        self.train = [dict(pairs) for pairs in value["train"]]
        self.validation = [dict(pairs) for pairs in value["validation"]]

    def curve(self, steps: int) -> Curve:
        """Return the curve after a number of updates."""
        return Curve(
            self.train,
            self.validation,
            self._step_seconds,
            train_seconds=self._seconds() - self.evaluate_seconds,
            evaluate_seconds=self.evaluate_seconds,
            earlier_seconds=self.earlier_seconds,
            steps=steps,
            best_step=self._best.step if self._best is not None and self._best.keeps_weights else None,
        )

    def restore_best(self, model: nn.Module) -> None:
        """Give a model the weights of the best evaluation, if it is to have them."""
        if self._best is not None and self._best.keeps_weights:
            self._best.restore(model)

    def record_loss(self, value: float, step: int, learning_rate: float) -> None:
        """Record the loss of one update.

        Raises:
            TrainingError: If it is not a finite number.
        """
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss is {value} at step {step}; "
                f"lower --learning-rate (it is {self._learning_rate:g}), or use --precision fp32."
            )
        self.losses.append(value)
        if step % self._every == 0 or step == self._steps:
            mean = sum(self.losses) / len(self.losses)
            self.train.append({"step": step, "loss": mean, "learning_rate": learning_rate})
            self.losses = []
            self._log({"loss": mean, "learning_rate": learning_rate})

    def finish(self) -> None:
        """End the progress, whether the training is complete or not."""
        self._progress.finish()

    def on_train_begin(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        """Evaluate before the first update, or show the progress of the resumed training."""
        if self._best is not None:
            self._best.begin(objects["model"])
        if state.global_step == 0 and self._held_out is not None and self._held_out.at_start:
            self._evaluate(0)
        self._progress.start(self._steps, "training")
        if state.global_step:
            self._progress.advance(state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start timing an update."""
        self._step_began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        """Stop timing an update, report it, and evaluate if that is due."""
        self._step_seconds.append(time.perf_counter() - self._step_began)
        latest = {"loss": self.train[-1]["loss"]} if self.train else {}
        self._progress.advance(state.global_step, **latest)
        if self._held_out is None:
            return
        if self._held_out.is_due(state.global_step, ends_epoch=False):
            self._evaluate_and_judge(state, control, objects["model"])
        elif self._pace.is_due(state.global_step, median(self._step_seconds)):
            self._evaluate(state.global_step, self._pace.rows)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        """Evaluate if that is due."""
        if self._held_out is not None and self._held_out.is_due(state.global_step, ends_epoch=True):
            self._evaluate_and_judge(state, control, objects["model"])

    def on_train_end(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        """Evaluate, unless the last update was followed by an evaluation."""
        if self._held_out is not None:
            self._evaluate_and_judge(state, control, objects["model"])

    def _seconds(self) -> float:
        return self.earlier_seconds + time.perf_counter() - self._began

    def _evaluate_and_judge(self, state: Any, control: Any, model: nn.Module) -> None:
        """Evaluate on all rows, keep the weights if they are the best, and stop if patience is at an end."""
        step = state.global_step
        if step == self.measured_at or self._held_out is None:
            return
        self.measured_at = step
        evaluation = self._evaluate(step)
        if self._best is None or evaluation is None:
            return
        self._best.add(step, evaluation, model)
        if self._held_out.patience is not None and self._best.waits >= self._held_out.patience:
            control.should_training_stop = True
            # A training that resumes from here would go on.
            control.should_save = False

    def _evaluate(self, step: int, rows: int | None = None) -> Evaluation | None:
        """Measure so many of the held-out rows, or all of them, and add a point to the curve."""
        if self._held_out is None:
            return None
        began = time.perf_counter()
        with same_randomness():  # a training is the same however often it is watched
            evaluation = self._held_out.evaluate(rows)
        seconds = time.perf_counter() - began
        self.evaluate_seconds += seconds
        self._pace.add(rows or self._held_out.rows, seconds, is_between=rows is not None)
        size = {} if rows is None else {"rows": rows}
        self.validation.append({"step": step, "loss": evaluation.loss, **evaluation.metrics, **size})
        self._log({f"eval_{name}": value for name, value in self.validation[-1].items() if name != "step"})
        return evaluation

    def _log(self, values: dict[str, float]) -> None:
        if self.log is not None:
            self.log(values)
