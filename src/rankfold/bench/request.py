"""What a run is asked to do, as one value."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from math import isfinite
from pathlib import Path

from pydantic import JsonValue

from rankfold.bench.tasks import TaskRequest
from rankfold.errors import SpecError, unknown_name
from rankfold.train.columns import Columns
from rankfold.train.trainer import SCHEDULERS

DEFAULT_EPOCHS = 3.0

_POSITIVE = (
    "epochs",
    "steps",
    "batch_size",
    "learning_rate",
    "max_length",
    "threads",
    "train_rows",
    "eval_rows",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """One run: a model learns a task with a method.

    Args:
        model: `minilm`, `smollm2`, a folder, a GGUF file or a hub id.
        method: A preset's name, or `peft:` and one of PEFT's methods, as in `peft:lora`.
        out: The folder to write; it must not exist unless `overwrite`.
        task: A task's name; see `rankfold.bench.tasks`.
        data: A folder, a file or a hub id, if the data is not found by the task's name.
        data_root: The folder that has a folder for each task.
        kind: `classification`, `regression` or `instruction`, where it should not be inferred.
        text_column: The column of the text.
        pair_column: The column of the second text.
        label_column: The column of the label.
        options: The method's options and PEFT's targeting options.
        seed: Of the head, the adapter, the data order and dropout.
        epochs: Passes over the training split; 3 if neither this nor `steps` is given.
        steps: Updates, instead of epochs.
        batch_size: Rows of an update.
        learning_rate: The highest; the method's own recommendation if None.
        scheduler: The shape of the learning rate after the warm-up, one of `trainer.SCHEDULERS`.
        warmup: Share of the steps in which the learning rate rises.
        weight_decay: AdamW's.
        max_length: The most tokens of a row; 128, or 256 for instructions, if None.
        precision: `auto`, `fp32` or `bf16`.
        device: `auto`, `cpu`, `cuda` or `mps`.
        threads: CPU threads; torch's choice if None.
        train_rows: Train on this many rows, drawn with a fixed seed; on all if None.
        eval_rows: Evaluate on this many rows, drawn with a fixed seed; on all if None.
        freeze_head: Leave a new head as the seed drew it.
        overwrite: Replace `out` if it holds an earlier run.

    Raises:
        SpecError: If a number is out of its range, the scheduler unknown, or both epochs and steps given.
    """

    model: str
    method: str
    out: Path
    task: str | None = None
    data: str | None = None
    data_root: str | None = None
    kind: str | None = None
    text_column: str | None = None
    pair_column: str | None = None
    label_column: str | None = None
    options: Mapping[str, JsonValue] = field(default_factory=dict[str, JsonValue])
    seed: int = 0
    epochs: float | None = None
    steps: int | None = None
    batch_size: int = 16
    learning_rate: float | None = None
    scheduler: str = "linear"
    warmup: float = 0.06
    weight_decay: float = 0.0
    max_length: int | None = None
    precision: str = "auto"
    device: str = "auto"
    threads: int | None = None
    train_rows: int | None = None
    eval_rows: int | None = None
    freeze_head: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Check what can be checked without a model."""
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not (value > 0 and isfinite(value)):
                raise SpecError(f"{name} is {value}; give a {'finite ' if value > 0 else ''}number above 0.")
        if not (self.weight_decay >= 0 and isfinite(self.weight_decay)):
            raise SpecError(f"weight_decay is {self.weight_decay}; give 0 or a number above it.")
        if self.epochs is not None and self.steps is not None:
            raise SpecError(
                f"epochs ({self.epochs:g}) and steps ({self.steps}) are both given; give one of them."
            )
        if self.scheduler not in SCHEDULERS:
            raise unknown_name("scheduler", self.scheduler, SCHEDULERS)
        if not 0 <= self.warmup < 1:
            raise SpecError(f"warmup is {self.warmup}; give the share of steps, from 0 to below 1.")
        if not 0 <= self.seed < 2**32:
            raise SpecError(f"seed is {self.seed}; give a whole number from 0 to 4294967295.")

    @property
    def task_request(self) -> TaskRequest:
        """The part that says which data to read."""
        columns = Columns(self.text_column, self.pair_column, self.label_column)
        return TaskRequest(self.task, self.data, self.data_root, self.kind, columns)

    def command(self) -> tuple[str, ...]:
        """Return the command line that repeats this run."""
        words = ["rankfold", "train"]
        for each in fields(self):
            value = getattr(self, each.name)
            flag = f"--{each.name.replace('_', '-')}"
            if each.name == "options":
                for key, option in self.options.items():
                    words += ["--set", f"{key}={json.dumps(option)}"]
            elif value is True:
                words.append(flag)
            elif value is not None and value is not False and value != each.default:
                words += [flag, f"{value:g}" if isinstance(value, float) else str(value)]
        return tuple(words)
