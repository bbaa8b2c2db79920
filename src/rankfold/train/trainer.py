"""Training: `transformers.Trainer` with our losses, order of rows, checkpoints and curve."""

import math
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast, final

import torch
from peft import PeftModel
from torch import nn
from torch.utils.data import Sampler
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments

from rankfold.errors import SpecError, TrainingError
from rankfold.progress import Progress, quiet_libraries
from rankfold.tasks.kinds import TaskKind
from rankfold.tasks.kinds.learner import row_lengths
from rankfold.train.auxiliary import AuxiliaryLossMixin
from rankfold.train.checkpoint import MAX_CHECKPOINTS, Checkpointer, Checkpoints
from rankfold.train.curve import Curve, Listener
from rankfold.train.distributed import rows_per_process
from rankfold.train.held_out import HeldOut
from rankfold.train.schedule import Schedule

_SORTED_BATCHES = 50


def train_model(  # noqa: PLR0913 (one for each concern of a training)
    model: nn.Module,
    rows: Sequence[Mapping[str, Any]],
    schedule: Schedule,
    *,
    collate: Callable[..., Any],
    kind: TaskKind | None = None,
    device: torch.device,
    groups: Sequence[Mapping[str, Any]] | None = None,
    held_out: HeldOut | None = None,
    report_to: Sequence[str] = (),
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
        held_out: Rows that are measured in between and at the end.
        report_to: Names of transformers' integrations that log the curve, such as "tensorboard".
        progress: Receives every update.
        checkpoints: Folder to resume from, bit for bit, and to write checkpoints into.
        callbacks: Further callbacks; the state of an `ExportableState` is part of a checkpoint.

    Raises:
        TrainingError: If a loss is not a finite number, or the memory is too small.
        CheckpointError: If the newest checkpoint is whole, but its content is not of this training.
    """
    listener = Listener(schedule, held_out=held_out, progress=progress)
    with _checkpoints_or_scratch(checkpoints) as storage, quiet_libraries():
        if schedule.gradient_checkpointing:
            recompute_activations(model)
        arguments = _arguments(schedule, device, storage.folder, report_to)
        checkpointer = Checkpointer(storage, [listener, *callbacks])
        trainer = _Trainer(
            model=model,
            args=arguments,
            train_dataset=cast(Any, rows),
            data_collator=collate,
            callbacks=[checkpointer, listener, *callbacks],
            optimizer_cls_and_kwargs=None if groups is None else _default_optimizer(groups, arguments),
        )
        trainer.listener = listener
        listener.log = cast(Any, trainer).log if report_to else None
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
            with checkpointer.resuming(newest, model):
                cast(Any, trainer).train(resume_from_checkpoint=newest and str(newest))
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"the memory of '{device}' is too small; "
                f"lower --batch-size (it is {schedule.batch_size}) or --max-length."
            ) from error
        finally:
            listener.finish()
    listener.restore_best(model)
    return listener.curve(trainer.state.global_step)


@contextmanager
def _checkpoints_or_scratch(checkpoints: Checkpoints | None) -> Generator[Checkpoints]:
    """Yield the checkpoints, or a temporary folder without any, since the Trainer needs one."""
    if checkpoints is not None:
        yield checkpoints
        return
    with tempfile.TemporaryDirectory(prefix="rankfold-") as scratch:
        yield Checkpoints(Path(scratch), every=0)


def _arguments(
    schedule: Schedule, device: torch.device, folder: Path, report_to: Sequence[str]
) -> TrainingArguments:
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
        report_to=list(report_to),
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


def _lengths(rows: Sequence[Mapping[str, Any]]) -> Sequence[int]:
    """Return the tokens of each row.

    Raises:
        SpecError: If rows are no texts.
    """
    lengths = row_lengths(rows)
    if not all(lengths):
        raise SpecError("rows without tokens have no length; leave out --group-by-length.")
    return lengths


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
        order = _random_order(len(self._lengths), generator)
        window = _SORTED_BATCHES * self._batch_size
        batches: list[list[int]] = []
        for first in range(0, len(order), window):
            rows = sorted(order[first : first + window], key=self._lengths.__getitem__)
            batches += [rows[row : row + self._batch_size] for row in range(0, len(rows), self._batch_size)]
        # A batch that is not full must be the last one.
        full = [batch for batch in batches if len(batch) == self._batch_size]
        for index in _random_order(len(full), generator):
            yield from full[index]
        yield from (row for batch in batches if len(batch) < self._batch_size for row in batch)


def _arguments_of(trainer: Trainer) -> Any:
    return cast(Any, trainer).args


def _random_order(count: int, generator: torch.Generator) -> list[int]:
    return cast(Any, torch.randperm(count, generator=generator)).tolist()


class _KindTrainer(Trainer):
    """The Trainer with the loss of a kind of task, as a mean over all batches of an update."""

    kind: TaskKind | None = None
    _items = 0.0

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        batches, items = cast(Any, super()).get_batch_samples(*args, **kwargs)
        if _arguments_of(self).gradient_accumulation_steps > 1:
            self._items = sum(map(self._loss_items, batches))
            if _arguments_of(self).world_size > 1:
                count = torch.tensor(self._items, dtype=torch.float64, device=_arguments_of(self).device)
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
