"""Training: `transformers.Trainer` with a curve, progress, checkpoints, and a stop at the first bad loss."""

import math
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, cast, final

import torch
from torch import nn
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState

from rankfold.errors import TrainingError
from rankfold.progress import Progress, Silent, quiet_libraries
from rankfold.tasks.kinds import Evaluation, TaskKind
from rankfold.train.auxiliary import AuxiliaryLossMixin
from rankfold.train.checkpoint import MAX_CHECKPOINTS, Checkpointer, Checkpoints
from rankfold.train.distributed import rows_per_process
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
    """Callback that records the curve and reports progress.

    Checkpoints hold its public attributes under the name of this class, so neither can be renamed.

    Args:
        steps: Total number of updates.
        learning_rate: The peak, for the advice in the error about a bad loss.
        evaluate: Evaluates the model on held-out data.
        at_end_only: Evaluate at the end only, not also before the first update and after every epoch.
        progress: Receives every update.
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
        """State for checkpoints, in the form that transformers expects."""
        names = ("points", "losses", "measured_at", "evaluate_seconds")
        attributes = {name: getattr(self, name) for name in names}
        return {"args": {}, "attributes": {**attributes, "earlier_seconds": self._seconds()}}

    @property
    def points(self) -> dict[str, list[list[tuple[str, float]]]]:
        """The curve as pairs: a checkpoint sorts names, whose order is that of `curve.csv`."""
        parts = {"train": self.train, "validation": self.validation}
        return {name: [list(point.items()) for point in points] for name, points in parts.items()}

    @points.setter
    def points(self, value: dict[str, list[list[tuple[str, float]]]]) -> None:
        self.train = [dict(pairs) for pairs in value["train"]]
        self.validation = [dict(pairs) for pairs in value["validation"]]

    def curve(self) -> Curve:
        """Return the curve so far."""
        return Curve(
            self.train,
            self.validation,
            self._step_seconds,
            train_seconds=self._seconds() - self.evaluate_seconds,
            evaluate_seconds=self.evaluate_seconds,
            earlier_seconds=self.earlier_seconds,
        )

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

    def finish(self) -> None:
        """End the progress, whether the training is complete or not."""
        self._progress.finish()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Evaluate before the first update, or show the progress of the resumed training."""
        if state.global_step == 0 and not self._at_end_only:
            self._evaluate_at(0)
        self._progress.start(self._steps, "training")
        if state.global_step:
            self._progress.advance(state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start timing an update."""
        self._step_began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop timing an update, and report it."""
        self._step_seconds.append(time.perf_counter() - self._step_began)
        latest = {"loss": self.train[-1]["loss"]} if self.train else {}
        self._progress.advance(state.global_step, **latest)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Evaluate."""
        if not self._at_end_only:
            self._evaluate_at(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Evaluate, unless the end of the last epoch did."""
        self._evaluate_at(state.global_step)

    def _seconds(self) -> float:
        return self.earlier_seconds + time.perf_counter() - self._began

    def _evaluate_at(self, step: int) -> None:
        if self._evaluate is None or step == self.measured_at:
            return
        self.measured_at = step
        began = time.perf_counter()
        evaluation = self._evaluate()
        self.evaluate_seconds += time.perf_counter() - began
        self.validation.append({"step": step, "loss": evaluation.loss, **evaluation.metrics})


def train_model(  # noqa: PLR0913 (one for each concern of a training)
    model: nn.Module,
    rows: Sequence[Mapping[str, Any]],
    schedule: Schedule,
    *,
    collate: Callable[..., Any],
    kind: TaskKind | None = None,
    device: torch.device,
    groups: Sequence[Mapping[str, Any]] | None = None,
    evaluate: Callable[[], Evaluation] | None = None,
    at_end_only: bool = False,
    progress: Progress | None = None,
    checkpoints: Checkpoints | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> Curve:
    """Train a model in place.

    Args:
        model: Its trainable parameters are trained with AdamW.
        rows: Encoded examples.
        schedule: Steps, batch size, learning rate.
        collate: Makes a batch of rows.
        kind: The kind of task, whose loss is minimised; the model's own loss over rows if None.
        device: Device to train on; the model stays there.
        groups: Parameter groups from `parameter_groups`; one group at the schedule's rate if None.
        evaluate: Evaluates held-out data before the first update, at the end of every epoch and at the end.
        at_end_only: Evaluate at the end only.
        progress: Receives every update.
        checkpoints: Folder to resume from, bit for bit, and to write checkpoints into.
        callbacks: Further callbacks; the state of an `ExportableState` is part of a checkpoint.

    Raises:
        TrainingError: If a loss is not a finite number, or the memory is too small.
    """
    listener = Listener(
        schedule.steps,
        schedule.learning_rate,
        evaluate=evaluate,
        at_end_only=at_end_only,
        progress=progress,
    )
    with _checkpoints_or_scratch(checkpoints) as storage, quiet_libraries():
        arguments = _arguments(schedule, device, storage.folder)
        trainer = _Trainer(
            model=model,
            args=arguments,
            train_dataset=cast(Any, rows),
            data_collator=collate,
            callbacks=[Checkpointer(storage, [listener, *callbacks]), listener, *callbacks],
            optimizer_cls_and_kwargs=None if groups is None else _default_optimizer(groups, arguments),
        )
        trainer.listener = listener
        # A loss over rows is a mean already; with their number, the Trainer would divide by every process.
        if kind is None or not kind.loss_per_token:
            trainer.model_accepts_loss_kwargs = False
        if kind is not None and kind.has_own_loss:
            trainer.kind_loss = kind.loss
        # One prints without a terminal, the other with one; the listener reports instead.
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        newest = storage.newest()
        try:
            cast(Any, trainer).train(resume_from_checkpoint=newest and str(newest))
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"the memory of '{device}' is too small; "
                f"lower --batch-size (it is {schedule.batch_size}) or --max-length."
            ) from error
        finally:
            listener.finish()
    return listener.curve()


@contextmanager
def _checkpoints_or_scratch(checkpoints: Checkpoints | None) -> Generator[Checkpoints]:
    """Yield the checkpoints, or a temporary folder without any, since the Trainer needs one."""
    if checkpoints is not None:
        yield checkpoints
        return
    with tempfile.TemporaryDirectory(prefix="rankfold-") as scratch:
        yield Checkpoints(Path(scratch), every=0)


def _arguments(schedule: Schedule, device: torch.device, folder: Path) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=schedule.steps,
        per_device_train_batch_size=rows_per_process(schedule.batch_size),
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
        # The checkpointer decides when to save.
        save_strategy="no",
        save_total_limit=MAX_CHECKPOINTS,
        eval_strategy="no",
    )
    # A process has one device: on several GPUs the Trainer would copy the model by nn.DataParallel, which
    # cannot copy adapters, and take as many times the rows in an update.
    cast(Any, arguments)._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _default_optimizer(groups: Sequence[Mapping[str, Any]], arguments: TrainingArguments) -> tuple[Any, Any]:
    """Return class and options of the Trainer's default optimiser, with these parameter groups."""
    optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
    return optimizer_class, {**options, "params": [dict(group) for group in groups]}


class _KindTrainer(Trainer):
    """The Trainer, with the loss of a kind of task that has another than the model's own."""

    kind_loss: Callable[[nn.Module, Mapping[str, Any]], torch.Tensor] | None = None

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if self.kind_loss is None:
            return super().compute_loss(model, inputs, *args, **kwargs)
        return self.kind_loss(model, inputs)


@final
class _Trainer(AuxiliaryLossMixin, _KindTrainer):
    """Trainer that shows every loss (mean over processes) to the listener before the update."""

    listener: Listener

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        # Every group has the same schedule, so the base rate follows from the first one.
        multiplier = cast(Any, self).optimizer.param_groups[0].get("multiplier", 1.0)
        rate = float(cast(Any, self).lr_scheduler.get_last_lr()[0]) / multiplier
        mean: torch.Tensor = cast(Any, self).accelerator.reduce(loss, "mean")
        self.listener.record_loss(mean.item(), self.state.global_step + 1, rate)
        return loss
