"""Held-out evaluations during a training: when they take place, which one was the best, and when to stop."""

import math
import random
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, final

import numpy as np
import torch
from safetensors import torch as safetensors
from torch import Tensor, nn

from rankfold.tasks.kinds import Evaluation
from rankfold.tasks.metrics import is_smaller_better
from rankfold.train.distributed import same_everywhere
from rankfold.train.schedule import Moments, Schedule

SHARE = 0.02
"""The most time of evaluations in between, as a share of the training's."""

POINTS = 20
"""The most evaluations in between."""

LEAST_ROWS = 32
"""Rows of an evaluation in between, where the split has as many: fewer show nothing but chance."""

LOSS = "loss"
"""The name of the held-out loss among the metrics."""

# Evaluated rows that take no longer than one row of training. This first estimate does not depend on any
# clock, so that runs which are alike have points at the same steps; the clock may only take some away.
_ROWS_PER_TRAINED_ROW = 2.0
_BEST_FILE = "best.safetensors"


@final
@dataclass(frozen=True, slots=True)
class HeldOut:
    """Held-out rows, and when they are measured in the course of a training.

    Args:
        evaluate: Measures so many of the rows, all of them if None.
        rows: How many there are.
        moments: `auto`: before, after, and a few rows in between, in at most 2 % of the time; `epochs`: all
            rows before the first update and after every epoch; `end`: all rows at the end.
        every: Measure all rows before the first update and after each so many updates, instead of `moments`.
        best_by: The metric, or "loss", whose best value decides which weights the model has at the end; None
            leaves those of the last update.
        patience: Stop after so many evaluations of all rows without a better value; None never stops.
    """

    evaluate: Callable[[int | None], Evaluation]
    rows: int
    moments: Moments = "auto"
    every: int | None = None
    best_by: str | None = None
    patience: int | None = None

    @property
    def selects(self) -> bool:
        """Whether evaluations decide about the result, so that all of them are of all rows."""
        return self.best_by is not None or self.patience is not None

    @property
    def has_pace(self) -> bool:
        """Whether a few rows are measured in between, as time allows."""
        return self.every is None and self.moments == "auto" and not self.selects

    @property
    def at_start(self) -> bool:
        """Whether all rows are measured before the first update."""
        return self.every is not None or self.moments != "end"

    def is_due(self, step: int, *, ends_epoch: bool) -> bool:
        """Return whether all rows are to be measured after an update."""
        if self.every is not None:
            return step % self.every == 0
        return ends_epoch and (self.moments == "epochs" or (self.moments == "auto" and self.selects))


@final
@dataclass(slots=True)
class Pace:
    """The steps at which a few held-out rows are measured, so that they take at most `SHARE` of the time.

    Args:
        steps: Updates of the training.
        rows: Rows of an evaluation.
        interval: Updates between two places for an evaluation; 0 if there are none.
        next_step: The next place.
        row_seconds: Time of the last evaluation for each row.
        seconds: Time of all evaluations in between.
    """

    steps: int
    rows: int = 0
    interval: int = 0
    next_step: int = 0
    row_seconds: float = 0.0
    seconds: float = 0.0

    @classmethod
    def plan(cls, schedule: Schedule, rows: int) -> "Pace":
        """Return the pace of a training with a number of held-out rows, before any time is measured."""
        trained_rows = schedule.steps * schedule.batch_size * schedule.accumulation
        most_rows = SHARE * _ROWS_PER_TRAINED_ROW * trained_rows
        count = min(rows, max(LEAST_ROWS, int(most_rows / POINTS)))
        points = min(POINTS, int(most_rows / count)) if count else 0
        interval = math.ceil(schedule.steps / (points + 1)) if points else 0
        return cls(schedule.steps, count, interval, interval)

    def is_due(self, step: int, step_seconds: float) -> bool:
        """Return whether to measure after an update; if not enough time is left, the place is passed over.

        Args:
            step: The update.
            step_seconds: The time of an update so far.
        """
        if not self.interval or step != self.next_step or step >= self.steps:
            return False
        budget = same_everywhere(SHARE * self.steps * step_seconds - self.seconds)
        affordable = int(budget / max(self.row_seconds * self.rows, 1e-9))
        places = (self.steps - 1 - step) // self.interval + 1
        stride = max(1, math.ceil(places / affordable)) if affordable > 0 else 1
        self.next_step += stride * self.interval
        return affordable > 0

    def add(self, rows: int, seconds: float, *, is_between: bool) -> None:
        """Take note of the time of an evaluation."""
        self.row_seconds = same_everywhere(seconds) / max(rows, 1)
        if is_between:
            self.seconds += self.row_seconds * rows


@final
@dataclass(slots=True)
class Best:
    """The best evaluation of all held-out rows so far, and the weights of that update.

    Args:
        metric: Whose value is compared.
        keeps_weights: Whether the weights are kept.
        step: The update; 0 if there was no evaluation yet.
        value: The value of the metric.
        waits: Evaluations since.
        names: Names of the parameters and buffers that are kept; `begin` sets them.
    """

    metric: str
    keeps_weights: bool
    step: int = 0
    value: float = math.nan
    waits: int = 0
    names: frozenset[str] = frozenset()
    _weights: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    def begin(self, model: nn.Module) -> None:
        """Take note of everything that will be trained, before a Reducer lets a part of it rest."""
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        owners = {name.rpartition(".")[0] for name in trained}
        buffers = {name for name, _ in model.named_buffers() if name.rpartition(".")[0] in owners}
        self.names = frozenset(trained | buffers)

    def state(self) -> dict[str, Any]:
        """Return the values for a checkpoint, without the weights."""
        return {"step": self.step, "value": self.value if self.step else None, "waits": self.waits}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Take the values of a checkpoint."""
        self.step, self.waits = int(state["step"]), int(state["waits"])
        self.value = math.nan if state["value"] is None else float(state["value"])

    def add(self, step: int, evaluation: Evaluation, model: nn.Module) -> None:
        """Compare an evaluation with the best so far."""
        value = {LOSS: evaluation.loss, **evaluation.metrics}[self.metric]
        is_smaller = self.metric == LOSS or is_smaller_better(self.metric)
        if self.step and not (value < self.value if is_smaller else value > self.value):
            self.waits += 1
            return
        self.step, self.value, self.waits = step, value, 0
        if self.keeps_weights:
            tensors = _tensors(model)
            self._weights = {name: tensors[name].detach().cpu().clone() for name in sorted(self.names)}

    @torch.no_grad()
    def restore(self, model: nn.Module) -> None:
        """Give a model the weights of the best evaluation."""
        tensors = _tensors(model)
        for name, tensor in self._weights.items():
            tensors[name].copy_(tensor)

    def write(self, folder: Path) -> None:
        """Write the weights into a checkpoint."""
        if self._weights:
            cast(Any, safetensors).save_file(
                {name: tensor.contiguous() for name, tensor in self._weights.items()}, folder / _BEST_FILE
            )

    def read(self, folder: Path) -> None:
        """Read the weights from a checkpoint."""
        file = folder / _BEST_FILE
        self._weights = cast(Any, safetensors).load_file(file) if file.is_file() else {}


@contextmanager
def same_randomness() -> Generator[None]:
    """Give every generator of random numbers the state that it had before the block."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with cast(Any, torch.random).fork_rng():
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
