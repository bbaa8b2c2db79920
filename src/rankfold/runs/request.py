"""What a run is asked to do, as one value."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from math import isfinite
from pathlib import Path
from typing import Any, Self, cast

from pydantic import JsonValue, TypeAdapter

from rankfold.errors import DataError, SpecError, unknown_name
from rankfold.tasks.data.columns import Columns
from rankfold.tasks.scoring import check_scoring
from rankfold.tasks.task import MIXTURES, TaskRequest
from rankfold.train.reducer.spec import ReducerSpec
from rankfold.train.schedule import SCHEDULERS, Rates

DEFAULT_EPOCHS = 3.0
VALIDATIONS = ("epochs", "end")

_REPEATED = {"options": "--set", "lr_groups": "--lr-group", "reducer": "--reducer-set"}
_OF_FLAG = {flag: name for name, flag in _REPEATED.items()}
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
        task: A task's name; see `rankfold.tasks`.
        data: A folder, a file or a hub id, if the data is not found by the task's name.
        data_root: The folder that has a folder for each task.
        kind: The name of a kind of task, such as `regression`, where it should not be inferred.
        text_column: The column of the text.
        pair_column: The column of the second text.
        label_column: The column of the label.
        group_column: The column that says whose row it is: nobody is on both sides of a split.
        options: The method's options and PEFT's targeting options.
        seed: Of the head, the adapter, the data order and dropout.
        epochs: Passes over the training split; 3 if neither this nor `steps` is given.
        steps: Updates, instead of epochs.
        batch_size: Rows of an update.
        learning_rate: The highest; the method's own recommendation if None.
        scheduler: Shape of the rate after the warm-up, one of `rankfold.train.schedule.SCHEDULERS`.
        warmup: Share of the steps in which the learning rate rises.
        weight_decay: AdamW's.
        tlora_ratio: TLoRA+'s ratio of learning rates.
        loraplus_ratio: LoRA+'s.
        lr_groups: Free multiples of the learning rate by role.
        lr_per_module: TLoRA+'s rates by the sizes of each layer.
        lr_base_role: Which factor has `learning_rate` itself in TLoRA+.
        max_length: The most tokens of a row; 128, or 256 for instructions, if None.
        precision: `auto`, `fp32` or `bf16`.
        device: `auto`, `cpu`, `cuda` or `mps`.
        threads: CPU threads; torch's choice if None.
        train_rows: Train on this many rows, drawn with a fixed seed; on all if None.
        eval_rows: Evaluate on this many rows, drawn with a fixed seed; on all if None.
        hold_out: Evaluate on a tenth of the training split, which is not trained on, instead of on the
            validation split.
        mixture: How many training rows each task of a mixture has: as many as the smallest ("equal"), or all
            that it has ("all").
        scoring: How answers with choices are found, one of `rankfold.tasks.scoring.Scoring`; by
            likelihood if None.
        freeze_head: Leave a new head as the seed drew it.
        validate: When held-out rows are measured: "epochs" (before the first update, after every epoch and at
            the end) or "end". It changes nothing of what is learned.
        overwrite: Replace `out` if it holds an earlier run, or a run that is not finished.
        reducer: The options of a Reducer, which trains only some layers in each step; none if None.
        resume: Go on with a run that is not finished, if there is one.
        checkpoint_every: Updates from one checkpoint to the next; 0 makes none.

    Raises:
        SpecError: If a number is out of its range, scheduler or scoring unknown, both epochs and steps given,
            or the options of learning rates or of the Reducer are not possible.
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
    group_column: str | None = None
    options: Mapping[str, JsonValue] = field(default_factory=dict[str, JsonValue])
    seed: int = 0
    epochs: float | None = None
    steps: int | None = None
    batch_size: int = 16
    learning_rate: float | None = None
    scheduler: str = "linear"
    warmup: float = 0.06
    weight_decay: float = 0.0
    tlora_ratio: float | None = None
    loraplus_ratio: float | None = None
    lr_groups: Mapping[str, float] = field(default_factory=dict[str, float])
    lr_per_module: bool = False
    lr_base_role: str = "down"
    max_length: int | None = None
    precision: str = "auto"
    device: str = "auto"
    threads: int | None = None
    train_rows: int | None = None
    eval_rows: int | None = None
    hold_out: bool = False
    mixture: str = MIXTURES[0]
    scoring: str | None = None
    freeze_head: bool = False
    validate: str = VALIDATIONS[0]
    reducer: Mapping[str, JsonValue] | None = None
    overwrite: bool = False
    resume: bool = False
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        """Check what can be checked without a model."""
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not (value > 0 and isfinite(value)):
                raise SpecError(f"{name} is {value}; give a {'finite ' if value > 0 else ''}number above 0.")
        if self.epochs is not None and self.steps is not None:
            raise SpecError(
                f"epochs ({self.epochs:g}) and steps ({self.steps}) are both given; give one of them."
            )
        if self.scheduler not in SCHEDULERS:
            raise unknown_name("scheduler", self.scheduler, SCHEDULERS)
        if self.mixture not in MIXTURES:
            raise unknown_name("mixture", self.mixture, MIXTURES)
        if self.validate not in VALIDATIONS:
            raise unknown_name("validate", self.validate, VALIDATIONS)
        check_scoring(self.scoring)
        # Both check their options by being made.
        _ = self.rates
        if self.reducer is not None:
            ReducerSpec.of(self.reducer)
        self._check_ranges()

    def _check_ranges(self) -> None:
        if not (self.weight_decay >= 0 and isfinite(self.weight_decay)):
            raise SpecError(f"weight_decay is {self.weight_decay}; give 0 or a number above it.")
        if not 0 <= self.warmup < 1:
            raise SpecError(f"warmup is {self.warmup}; give the share of steps, from 0 to below 1.")
        if self.checkpoint_every < 0:
            raise SpecError(
                f"checkpoint_every is {self.checkpoint_every}; give a number of steps, or 0 for none."
            )
        if not 0 <= self.seed < 2**32:
            raise SpecError(f"seed is {self.seed}; give a whole number from 0 to 4294967295.")

    @property
    def task_request(self) -> TaskRequest:
        """The part that says which data to read."""
        columns = Columns(self.text_column, self.pair_column, self.label_column, self.group_column)
        return TaskRequest(
            self.task,
            self.data,
            self.data_root,
            self.kind,
            columns,
            holds_out=self.hold_out,
            mixture=self.mixture,
        )

    @property
    def rates(self) -> Rates:
        """How the learning rates of the adapter's parts differ."""
        return Rates(
            tlora_ratio=self.tlora_ratio,
            per_module=self.lr_per_module,
            base_role=self.lr_base_role,
            loraplus_ratio=self.loraplus_ratio,
            groups=self.lr_groups,
        )

    def command(self) -> tuple[str, ...]:
        """Return the command line that repeats this run, from its beginning."""
        words = ["rankfold", "train"]
        for each in fields(self):
            if each.name == "resume":
                continue
            value = getattr(self, each.name)
            flag = f"--{each.name.replace('_', '-')}"
            if each.name == "reducer" and self.reducer is not None:
                words.append("--reducer")
            if each.name in _REPEATED:
                for key, option in cast("dict[str, JsonValue]", value or {}).items():
                    words += [_REPEATED[each.name], f"{key}={json.dumps(option)}"]
            elif value is True:
                words.append(flag)
            elif value is not None and value is not False and value != each.default:
                words += [flag, _number_text(value) if isinstance(value, float) else str(value)]
        return tuple(words)

    @classmethod
    def of_command(cls, words: Sequence[str]) -> Self:
        """Return the request that a command line repeats, as `command` wrote it.

        Raises:
            DataError: If it has an option that there is not, or a value that is not possible.
        """
        values = command_values(words)
        try:
            return cast("Self", _adapter().validate_python(values))
        except ValueError as error:
            raise _unreadable(words, str(error)) from error


def command_values(words: Sequence[str]) -> dict[str, Any]:
    """Return what a command line says, by the names of `RunRequest`; plain options as the texts they are.

    Raises:
        DataError: If it has an option that there is not.
    """
    known = {each.name: each for each in fields(RunRequest)}
    values: dict[str, Any] = {}
    rest = iter(words[2:])
    for flag in rest:
        name = _OF_FLAG.get(flag, flag.removeprefix("--").replace("-", "_"))
        if name not in known:
            raise _unreadable(words, f"there is no option {flag}")
        if flag == "--reducer":
            values.setdefault(name, {})
        elif flag in _OF_FLAG:
            key, _, option = next(rest, "").partition("=")
            try:
                values.setdefault(name, {})[key] = json.loads(option)
            except ValueError as error:
                raise _unreadable(words, f"{flag} {key}={option} is no JSON") from error
        else:
            values[name] = known[name].default is False or next(rest, "")
    return values


def _unreadable(words: Sequence[str], reason: str) -> DataError:
    command, reason = " ".join(words), " ".join(reason.split())
    return DataError(
        f"cannot read the command '{command}' ({reason}); the version of rankfold that wrote it can."
    )


@cache
def _adapter() -> TypeAdapter[RunRequest]:
    return TypeAdapter(RunRequest)


def _number_text(value: float) -> str:
    """Return the shortest text that is read as the same number."""
    return short if float(short := f"{value:g}") == value else repr(value)
