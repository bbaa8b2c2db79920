"""One training: `transformers.Trainer` with our curve, our progress, and a stop at the first bad loss."""

import math
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast, final

import torch
from torch import nn
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments

from rankfold.errors import TrainingError
from rankfold.progress import Progress, quiet_libraries
from rankfold.tasks.kinds.predict import Evaluation
from rankfold.train.auxiliary import AuxiliaryLossMixin
from rankfold.train.checkpoint import KEPT, Checkpointer, Checkpoints
from rankfold.train.curve import Curve, Listener
from rankfold.train.distributed import rows_of_a_process
from rankfold.train.schedule import Schedule


def train_model(  # noqa: PLR0913 (what a training needs)
    model: nn.Module,
    rows: Sequence[Mapping[str, Any]],
    schedule: Schedule,
    *,
    collate: Callable[..., Any],
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
        schedule: How.
        collate: Makes a batch of rows.
        device: Where to train; the model stays there.
        groups: What is trained at which learning rate, from `parameter_groups`; all of it at the schedule's
            rate if None.
        evaluate: Measures held-out data, before the first update, at the end of every epoch and at the end.
        at_end_only: Measure it at the end alone.
        progress: Is told about every update.
        checkpoints: Where to go on from, bit for bit, and to save what it takes to go on.
        callbacks: Take part in the training; the state of an `ExportableState` is part of a checkpoint.

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
    with _folder(checkpoints) as saved, quiet_libraries():
        arguments = _arguments(schedule, device, saved.folder)
        trainer = _Trainer(
            model=model,
            args=arguments,
            train_dataset=cast(Any, rows),
            data_collator=collate,
            callbacks=[Checkpointer(saved, [listener, *callbacks]), listener, *callbacks],
            optimizer_cls_and_kwargs=None if groups is None else _optimizer_of(groups, arguments),
        )
        trainer.listener = listener
        # A loss over rows is a mean already; told of their number, the Trainer would count every process.
        if not isinstance(rows[0]["labels"], list):
            trainer.model_accepts_loss_kwargs = False
        # Without a terminal one of them prints, with one the other draws; the listener does both.
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        newest = saved.newest()
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
def _folder(checkpoints: Checkpoints | None) -> Generator[Checkpoints]:
    """Give the checkpoints, or a folder for none, which the Trainer wants all the same."""
    if checkpoints is not None:
        yield checkpoints
        return
    with tempfile.TemporaryDirectory(prefix="rankfold-") as scratch:
        yield Checkpoints(Path(scratch), every=0)


def _arguments(schedule: Schedule, device: torch.device, folder: Path) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=schedule.steps,
        per_device_train_batch_size=rows_of_a_process(schedule.batch_size),
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
        # The checkpointer says when, and this how many may lie there.
        save_strategy="no",
        save_total_limit=KEPT,
        eval_strategy="no",
    )
    # A process has one device: on several GPUs the Trainer would copy the model by nn.DataParallel, which
    # cannot copy adapters, and take as many times the rows in an update.
    cast(Any, arguments)._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _optimizer_of(groups: Sequence[Mapping[str, Any]], arguments: TrainingArguments) -> tuple[Any, Any]:
    """Return the class and the options of the optimiser that the Trainer would make, but of these groups."""
    kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
    return kind, {**options, "params": [dict(group) for group in groups]}


@final
class _Trainer(AuxiliaryLossMixin, Trainer):
    """The Trainer, with every loss (of all processes) shown to the listener before it can spoil an update."""

    listener: Listener

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        # Every group is scheduled alike, so the first one tells the base rate.
        multiplier = cast(Any, self).optimizer.param_groups[0].get("multiplier", 1.0)
        rate = float(cast(Any, self).lr_scheduler.get_last_lr()[0]) / multiplier
        mean: torch.Tensor = cast(Any, self).accelerator.reduce(loss, "mean")
        self.listener.loss(mean.item(), self.state.global_step + 1, rate)
        return loss
