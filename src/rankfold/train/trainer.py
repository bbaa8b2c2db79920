"""Training: `transformers.Trainer` with a curve, progress, checkpoints, and a stop at the first bad loss."""

import math
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, cast, final

import torch
from peft import PeftModel
from torch import nn
from torch.utils.data import Sampler
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState

from rankfold.errors import SpecError, TrainingError
from rankfold.progress import Progress, Silent, quiet_libraries
from rankfold.tasks.kinds import Evaluation, TaskKind
from rankfold.train.auxiliary import AuxiliaryLossMixin
from rankfold.train.checkpoint import MAX_CHECKPOINTS, Checkpointer, Checkpoints
from rankfold.train.distributed import rows_per_process
from rankfold.train.schedule import Schedule

CURVE_POINTS = 100
"""Maximum points of a training curve; in a longer run each point averages several steps."""

_SORTED_BATCHES = 50


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
        model: Its trainable parameters are trained.
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
        if schedule.gradient_checkpointing:
            recompute_activations(model)
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
        trainer.kind = kind
        trainer.lengths = _lengths(rows) if schedule.groups_lengths else None
        # A loss over rows is a mean already; with their number, the Trainer would divide by every process.
        # Over several batches the loss is weighed here, which the Trainer must not do again.
        trainer.model_accepts_loss_kwargs = schedule.accumulation > 1 or (
            kind is not None and kind.loss_per_token and bool(cast(Any, trainer).model_accepts_loss_kwargs)
        )
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
    # The default is the fastest AdamW that the device has.
    optimizer: dict[str, Any] = {} if schedule.optimizer == "adamw" else {"optim": schedule.optimizer}
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=schedule.steps,
        per_device_train_batch_size=rows_per_process(schedule.batch_size),
        gradient_accumulation_steps=schedule.accumulation,
        torch_compile=schedule.compiles,
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
        **optimizer,
    )
    # A process has one device: on several GPUs the Trainer would copy the model by nn.DataParallel, which
    # cannot copy adapters, and take as many times the rows in an update.
    cast(Any, arguments)._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _default_optimizer(groups: Sequence[Mapping[str, Any]], arguments: TrainingArguments) -> tuple[Any, Any]:
    """Return class and options of the arguments' optimiser, with these parameter groups."""
    optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
    return optimizer_class, {**options, "params": [dict(group) for group in groups]}


def _lengths(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the tokens of each row.

    Raises:
        SpecError: If rows are no texts.
    """
    if any("input_ids" not in row for row in rows):
        raise SpecError("rows without tokens have no length; leave out --group-by-length.")
    return [len(row["input_ids"]) for row in rows]


def recompute_activations(model: nn.Module) -> None:
    """Let a model compute the activations of its blocks again in the backward pass.

    Not the reentrant way, which gives no gradients behind frozen embeddings, and none to routers.

    Raises:
        SpecError: If the model cannot.
    """
    base: Any = cast(Any, model).get_base_model() if isinstance(model, PeftModel) else model
    names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
    enable = next((getattr(base, name) for name in names if hasattr(base, name)), None)
    try:
        cast(Any, enable)({"use_reentrant": False})
    except (ValueError, TypeError) as error:
        raise SpecError(
            f"'{type(base).__name__}' cannot compute its activations again; leave out "
            "--gradient-checkpointing."
        ) from error


@final
class _LengthSampler(Sampler[int]):
    """Rows in random order, but with rows of similar length in one batch.

    Args:
        lengths: The length of each row.
        batch_size: Rows of a batch.
        seed: Of the order.
        epoch: Returns the number of passes that are done, on which the order depends.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, epoch: Callable[[], int]) -> None:
        self._lengths = lengths
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch())
        order: list[int] = torch.randperm(len(self._lengths), generator=generator).tolist()
        window = _SORTED_BATCHES * self._batch_size
        batches: list[list[int]] = []
        for first in range(0, len(order), window):
            rows = sorted(order[first : first + window], key=self._lengths.__getitem__)
            batches += [rows[row : row + self._batch_size] for row in range(0, len(rows), self._batch_size)]
        # A batch that is not full must be the last one.
        full = [batch for batch in batches if len(batch) == self._batch_size]
        for index in torch.randperm(len(full), generator=generator).tolist():
            yield from full[index]
        yield from (row for batch in batches if len(batch) < self._batch_size for row in batch)


def _arguments_of(trainer: Trainer) -> Any:
    return cast(Any, trainer).args


class _KindTrainer(Trainer):
    """The Trainer with the loss of a kind of task, as a mean over all batches of an update."""

    kind: TaskKind | None = None
    _items = 0.0

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        batches, items = cast(Any, super()).get_batch_samples(*args, **kwargs)
        if _arguments_of(self).gradient_accumulation_steps > 1:
            count = torch.tensor(sum(map(self._loss_items, batches)), device=_arguments_of(self).device)
            self._items = float(cast(Any, self).accelerator.reduce(count, "sum"))
            items = self._items  # any number: it keeps the Trainer from dividing by the number of batches
        return batches, items

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        is_part = _arguments_of(self).gradient_accumulation_steps > 1 and model.training
        if not is_part and (self.kind is None or not self.kind.has_own_loss):
            return cast(Any, super()).compute_loss(model, inputs, *args, **kwargs)
        loss = model(**inputs).loss if self.kind is None else self.kind.loss(model, inputs)
        if not is_part:
            return loss
        # Every process adds its part, and their gradients are averaged.
        return loss * (_arguments_of(self).world_size * self._loss_items(inputs) / self._items)

    def _loss_items(self, batch: Mapping[str, Any]) -> float:
        return float(len(next(iter(batch.values())))) if self.kind is None else self.kind.loss_items(batch)


@final
class _Trainer(AuxiliaryLossMixin, _KindTrainer):
    """Trainer that shows the loss of every update (mean over processes) to the listener before it is made."""

    listener: Listener
    lengths: Sequence[int] | None = None
    _update_loss = 0.0

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        if self.lengths is None:
            return cast(Any, super())._get_train_sampler(*args, **kwargs)
        # The state says the epoch also after a resumption; accelerate tells it to its own samplers only.
        arguments = _arguments_of(self)
        rows = arguments.train_batch_size * arguments.world_size
        return _LengthSampler(self.lengths, rows, arguments.seed, lambda: int(self.state.epoch or 0))

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        mean: torch.Tensor = cast(Any, self).accelerator.reduce(loss, "mean")
        self._update_loss += mean.item()
        if cast(Any, self).accelerator.sync_gradients:
            # Every group has the same schedule, so the base rate follows from the first one.
            multiplier = cast(Any, self).optimizer.param_groups[0].get("multiplier", 1.0)
            rate = float(cast(Any, self).lr_scheduler.get_last_lr()[0]) / multiplier
            self.listener.record_loss(self._update_loss, self.state.global_step + 1, rate)
            self._update_loss = 0.0
        return loss
