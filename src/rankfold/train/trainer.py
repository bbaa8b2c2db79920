"""One training: `transformers.Trainer` with our curve, our progress, and a stop at the first bad loss."""

import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, cast, final

import torch
from torch import nn
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments

from rankfold.errors import TrainingError
from rankfold.train.predict import Evaluation
from rankfold.train.progress import Progress, Silent
from rankfold.train.quiet import quiet_libraries

CURVE_POINTS = 100
"""The most points of a training curve; a longer run has each point average several steps."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """How a model is trained.

    Args:
        steps: Number of updates.
        batch_size: Rows of an update.
        learning_rate: The highest.
        scheduler: The shape after the warm-up, by transformers' name.
        warmup: Share of the steps in which the rate rises from zero.
        weight_decay: AdamW's.
        max_grad_norm: Gradients are scaled down to this norm.
        precision: `fp32` or `bf16`.
        seed: Of data order and dropout.
    """

    steps: int
    batch_size: int
    learning_rate: float
    scheduler: str = "linear"
    warmup: float = 0.06
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    precision: str = "fp32"
    seed: int = 0


@dataclass(slots=True)
class Curve:
    """What a training went through.

    Args:
        train: Points of step, mean loss since the last point, and learning rate.
        validation: Points of step, loss and metrics; the first is before any update.
        step_seconds: How long each update took, without evaluation.
    """

    train: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    validation: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    step_seconds: list[float] = field(default_factory=list[float])

    @property
    def median_step_seconds(self) -> float:
        """The median time of an update, in seconds."""
        return median(self.step_seconds) if self.step_seconds else 0.0


def train_model(  # noqa: PLR0913 (what a training is made of)
    model: nn.Module,
    rows: Sequence[Mapping[str, Any]],
    schedule: Schedule,
    *,
    collate: Callable[..., Any],
    device: torch.device,
    evaluate: Callable[[], Evaluation] | None = None,
    progress: Progress | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> Curve:
    """Train a model in place.

    Args:
        model: Its trainable parameters are trained with AdamW.
        rows: Encoded examples.
        schedule: How.
        collate: Makes a batch of rows.
        device: Where to train; the model stays there.
        evaluate: Measures held-out data, before the first update, at the end of every epoch and at the end.
        progress: Is told about every update.
        callbacks: Take part in the training, such as a Reducer.

    Raises:
        TrainingError: If a loss is not a finite number, or the memory is too small.
    """
    listener = _Listener(Curve(), schedule, evaluate, progress or Silent())
    with tempfile.TemporaryDirectory(prefix="rankfold-") as scratch, quiet_libraries():
        trainer = _Trainer(
            model=model,
            args=_arguments(schedule, device, scratch),
            train_dataset=cast(Any, rows),
            data_collator=collate,
            callbacks=[listener, *callbacks],
        )
        trainer.listener = listener
        # Without a terminal one of them prints, with one the other draws; the listener does both.
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        try:
            cast(Any, trainer).train()
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"the memory of '{device}' is too small; "
                f"lower --batch-size (it is {schedule.batch_size}) or --max-length."
            ) from error
        finally:
            listener.progress.finish()
    return listener.curve


def _arguments(schedule: Schedule, device: torch.device, scratch: str) -> TrainingArguments:
    return TrainingArguments(
        output_dir=scratch,
        max_steps=schedule.steps,
        per_device_train_batch_size=schedule.batch_size,
        learning_rate=schedule.learning_rate,
        lr_scheduler_type=schedule.scheduler,
        warmup_steps=math.ceil(schedule.warmup * schedule.steps),
        weight_decay=schedule.weight_decay,
        max_grad_norm=schedule.max_grad_norm,
        bf16=schedule.precision == "bf16",
        seed=schedule.seed,
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=device.type == "cuda",
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        save_strategy="no",
        eval_strategy="no",
    )


@final
class _Listener(TrainerCallback):
    """Turns the Trainer's events into a curve and progress."""

    def __init__(
        self,
        curve: Curve,
        schedule: Schedule,
        evaluate: Callable[[], Evaluation] | None,
        progress: Progress,
    ) -> None:
        self.curve = curve
        self.progress = progress
        self._schedule = schedule
        self._evaluate = evaluate
        self._every = math.ceil(schedule.steps / CURVE_POINTS)
        self._losses: list[float] = []
        self._measured_at = -1
        self._began = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._measure(0)
        self.progress.start(self._schedule.steps, "training")

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._began = time.perf_counter()

    def loss(self, value: float, step: int, learning_rate: float) -> None:
        """Take the loss of one update, and refuse one that is not a number."""
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss is {value} at step {step}; "
                f"lower --learning-rate (it is {self._schedule.learning_rate:g}), or use --precision fp32."
            )
        self._losses.append(value)
        if step % self._every == 0 or step == self._schedule.steps:
            mean = sum(self._losses) / len(self._losses)
            self.curve.train.append({"step": step, "loss": mean, "learning_rate": learning_rate})
            self._losses = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.curve.step_seconds.append(time.perf_counter() - self._began)
        latest = {"loss": self.curve.train[-1]["loss"]} if self.curve.train else {}
        self.progress.advance(state.global_step, **latest)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._measure(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._measure(state.global_step)

    def _measure(self, step: int) -> None:
        if self._evaluate is None or step == self._measured_at:
            return
        self._measured_at = step
        evaluation = self._evaluate()
        self.curve.validation.append({"step": step, "loss": evaluation.loss, **evaluation.metrics})


@final
class _Trainer(Trainer):
    """The Trainer, with every loss shown to the listener before the update that it would spoil."""

    listener: _Listener

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        rate = float(cast(Any, self).lr_scheduler.get_last_lr()[0])
        self.listener.loss(loss.item(), self.state.global_step + 1, rate)
        return loss
