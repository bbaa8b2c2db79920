"""What a training goes through: its curve, its times, and how it tells its progress."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any, final

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from rankfold.errors import TrainingError
from rankfold.progress import Progress, Silent
from rankfold.tasks.kinds.predict import Evaluation

CURVE_POINTS = 100
"""The most points of a training curve; a longer run has each point average several steps."""


@dataclass(slots=True)
class Curve:
    """What a training went through.

    Args:
        train: Points of step, mean loss since the last point, and learning rate.
        validation: Points of step, loss and metrics; the first is before any update, if any is.
        step_seconds: How long each update took, without evaluation; since the last resumption.
        train_seconds: How long the training took in all, without evaluation.
        evaluate_seconds: How long the evaluations took in all.
        earlier_seconds: How much of both was before the last resumption.
    """

    train: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    validation: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    step_seconds: list[float] = field(default_factory=list[float])
    train_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    earlier_seconds: float = 0.0

    @property
    def median_step_seconds(self) -> float:
        """The median time of an update, in seconds."""
        return median(self.step_seconds) if self.step_seconds else 0.0


@final
class Listener(TrainerCallback, ExportableState):
    """Turns the Trainer's events into a curve and progress. Its public fields are its state in checkpoints.

    Args:
        steps: How many updates there will be.
        learning_rate: The highest, for the advice that goes with a bad loss.
        evaluate: Measures held-out data.
        at_end_only: Measure it at the end alone, not before the first update and after every epoch as well.
        progress: Is told about every update.
    """

    def __init__(
        self,
        steps: int,
        learning_rate: float,
        *,
        evaluate: Callable[[], Evaluation] | None = None,
        at_end_only: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self.train: list[dict[str, float]] = []
        self.validation: list[dict[str, float]] = []
        self.losses: list[float] = []
        self.measured_at = -1
        self.evaluate_seconds = 0.0
        self.earlier_seconds = 0.0
        self._steps = steps
        self._learning_rate = learning_rate
        self._evaluate = evaluate
        self._at_end_only = at_end_only
        self._progress = progress or Silent()
        self._every = math.ceil(steps / CURVE_POINTS)
        self._step_seconds: list[float] = []
        self._began = self._step_began = time.perf_counter()

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, as transformers asks for it."""
        names = ("points", "losses", "measured_at", "evaluate_seconds")
        attributes = {name: getattr(self, name) for name in names}
        return {"args": {}, "attributes": {**attributes, "earlier_seconds": self._seconds()}}

    @property
    def points(self) -> dict[str, list[list[tuple[str, float]]]]:
        """The curve as pairs: a checkpoint sorts names, whose order is that of `curve.csv`."""
        parts = {"train": self.train, "validation": self.validation}
        return {name: [list(point.items()) for point in points] for name, points in parts.items()}

    @points.setter
    def points(self, saved: dict[str, list[list[tuple[str, float]]]]) -> None:
        self.train = [dict(pairs) for pairs in saved["train"]]
        self.validation = [dict(pairs) for pairs in saved["validation"]]

    def curve(self) -> Curve:
        """Return what the training went through."""
        return Curve(
            self.train,
            self.validation,
            self._step_seconds,
            train_seconds=self._seconds() - self.evaluate_seconds,
            evaluate_seconds=self.evaluate_seconds,
            earlier_seconds=self.earlier_seconds,
        )

    def loss(self, value: float, step: int, learning_rate: float) -> None:
        """Take the loss of one update.

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

    def finish(self) -> None:
        """End the progress, whether the training is complete or not."""
        self._progress.finish()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Measure before the first update, or show how far the training had come."""
        if state.global_step == 0 and not self._at_end_only:
            self._measure(0)
        self._progress.start(self._steps, "training")
        if state.global_step:
            self._progress.advance(state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock of an update."""
        self._step_began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop the clock of an update, and tell the progress."""
        self._step_seconds.append(time.perf_counter() - self._step_began)
        latest = {"loss": self.train[-1]["loss"]} if self.train else {}
        self._progress.advance(state.global_step, **latest)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Measure."""
        if not self._at_end_only:
            self._measure(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Measure, if the last epoch's end has not done so."""
        self._measure(state.global_step)

    def _seconds(self) -> float:
        return self.earlier_seconds + time.perf_counter() - self._began

    def _measure(self, step: int) -> None:
        if self._evaluate is None or step == self.measured_at:
            return
        self.measured_at = step
        began = time.perf_counter()
        evaluation = self._evaluate()
        self.evaluate_seconds += time.perf_counter() - began
        self.validation.append({"step": step, "loss": evaluation.loss, **evaluation.metrics})
