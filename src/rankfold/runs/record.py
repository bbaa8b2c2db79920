"""The record of one run: everything needed to repeat it, and everything it showed.

`run.json` is this record as JSON. Reading is strict: an unknown or missing key is an error that names it.
"""

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, cast

from pydantic import AfterValidator, ConfigDict, JsonValue, TypeAdapter, ValidationError, with_config

from rankfold.errors import DataError
from rankfold.files import write_whole
from rankfold.runs.migrate import upgrade_record
from rankfold.runs.request import RunRequest
from rankfold.train.schedule import RateGroup

FORMAT = 2
NAME = "run.json"


@dataclass(frozen=True, slots=True)
class FitInfo:
    """The place of a run in a choice by `rankfold fit`.

    Args:
        budget: What every composition had to keep to, in words.
        steps: Updates of each rung.
        rung: The run's rung, from 1.
        kept: How many runs of the rung went on; 1 in the last, the chosen one.
        role: Whether it could be chosen, or is what the chosen one is held against.
    """

    budget: str
    steps: tuple[int, ...]
    rung: int
    kept: int
    role: Literal["candidate", "reference"] = "candidate"


@dataclass(frozen=True, slots=True)
class TuningInfo:
    """The tuning of a run: the search that chose its settings, or the trial that it is.

    Args:
        trials: Number of trials for the method; at least so many are planned while they are made.
        trial: The number of this trial, from 1; None for a run with the chosen values.
        values: The values of this trial, or the chosen ones.
        score: The metric of the chosen trial on rows cut from the training split; None if all of them failed.
        curve: Every trial's values with its `score`, averaged over the tasks that share the values; None as
            the score of one that failed. Empty for a trial.
    """

    trials: int
    trial: int | None
    values: Mapping[str, JsonValue]
    score: float | None = None
    curve: tuple[Mapping[str, JsonValue], ...] = ()


@dataclass(frozen=True, slots=True)
class MethodInfo:
    """Which method ran.

    Args:
        name: A preset's name, or `peft:` and the name of one of PEFT's methods.
        options: As they were given.
        config: The whole PEFT configuration that came of them.
    """

    name: str
    options: Mapping[str, JsonValue]
    config: Mapping[str, JsonValue]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Which base model was adapted: its name, where it is from, the fingerprint of its weights."""

    name: str
    source: str
    sha256: str


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """The task with its kind, metric, version and scoring of answers.

    `settings` is what its kind needs beside the class names to use the adapter again.
    """

    name: str
    kind: str
    metric: str
    label_names: tuple[str, ...] | None
    licence: str | None
    version: int | None = None
    scoring: str | None = None
    settings: Mapping[str, JsonValue] = field(default_factory=dict[str, JsonValue])


@dataclass(frozen=True, slots=True)
class DataInfo:
    """Which data: where it is from, the hash of its content before any limit, the rows that were used.

    `columns` has the names of its columns by role: text, pair, label, group.
    """

    source: str
    sha256: str
    rows: Mapping[str, int]
    columns: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class TrainingInfo:
    """The training. `steps` counts the updates that were made; `epochs` may be a fraction.

    `rates` is what was asked about learning rates by role, and `groups` what came of it; both are empty where
    everything learned at `learning_rate`. `best_step` is the update whose adapter was saved, where the best
    evaluation decided it.
    """

    epochs: float
    steps: int
    batch_size: int
    learning_rate: float
    scheduler: str
    warmup: float
    weight_decay: float
    max_grad_norm: float
    max_length: int
    precision: str
    seed: int
    head: Literal["trained", "frozen", "none"]
    rates: Mapping[str, JsonValue] = field(default_factory=dict[str, JsonValue])
    groups: tuple[RateGroup, ...] = ()
    best_step: int | None = None
    stopped_early: bool = False


@dataclass(frozen=True, slots=True)
class InitInfo:
    """The adapter that a training began with.

    Args:
        source: Where it was.
        sha256: The digest of its weights.
        head: Whether its head was taken over, or is new since the classes are others.
    """

    source: str
    sha256: str
    head: Literal["taken", "new", "none"]


@dataclass(frozen=True, slots=True)
class HardwareInfo:
    """Processor, threads and GPU of the run."""

    cpu: str
    threads: int
    gpu: str | None


@dataclass(frozen=True, slots=True)
class ParametersInfo:
    """Numbers of the adapter (stored, trainable, active at once) and of the trained head beside it."""

    stored: int
    trainable: int
    active: int
    head: int


@dataclass(frozen=True, slots=True)
class BytesInfo:
    """Sizes on disk: the weights file, the adapter's files together, and the values of the tensors alone."""

    weights_file: int
    directory: int
    learned: int


@dataclass(frozen=True, slots=True)
class StoredInfo:
    """The adapter in another type: the bytes of its values with their scales, and the metric with them.

    Args:
        bytes: Comparable with `BytesInfo.learned`.
        score: The primary metric with the rounded numbers.
        file: The bytes of the whole packed file.
    """

    bytes: int
    score: float
    file: int


@dataclass(frozen=True, slots=True)
class SecondsInfo:
    """Where the time went, in seconds; `step_median` is one update without evaluation."""

    train: float
    evaluate: float
    total: float
    step_median: float


@dataclass(frozen=True, slots=True)
class CurveInfo:
    """Points of step, loss and learning rate; and of step, loss and metrics on held-out data."""

    train: tuple[Mapping[str, int | float], ...] = ()
    validation: tuple[Mapping[str, int | float], ...] = ()


@dataclass(frozen=True, slots=True)
class LengthsInfo:
    """Histogram of the training rows' lengths in tokens.

    Args:
        edges: Bounds of the bars, one more than there are counts.
        counts: Rows of each bar.
        cut: Rows that have the most tokens and may have been cut.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    cut: int


@dataclass(frozen=True, slots=True)
class ReducerPoint:
    """The state of a Reducer after `step` updates: importance and number of trainings of each layer."""

    step: int
    importance: tuple[float, ...]
    trained: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ReducerInfo:
    """Which layers trained.

    Args:
        options: As they were given.
        layers: From the input to the output.
        history: What was known in the course of the training.
    """

    options: Mapping[str, JsonValue]
    layers: tuple[str, ...]
    history: tuple[ReducerPoint, ...] = ()


@dataclass(frozen=True, slots=True)
class Prediction:
    """The prediction of one held-out example.

    Args:
        id: The row's.
        label: The right prediction: a class id, a number, the index of a candidate; other kinds of tasks may
            have texts and lists.
        prediction: The model's; -1 where its text names no candidate.
    """

    id: int | str
    label: JsonValue
    prediction: JsonValue


def _with_zone(moment: str) -> str:
    """Return a time as it is if it can be put in order with others."""
    if datetime.fromisoformat(moment).utcoffset() is None:
        raise ValueError(f"'{moment}' has no time zone")
    return moment


@with_config(ConfigDict(extra="forbid", strict=True))
@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run, done or failed: the fields of `run.json`. `flops` is estimated; a failure has no results.

    `lengths` and `findings` are what was known of the data before the training. `stored` has the adapter in
    the type that was asked for, by the name of the type.
    """

    status: Literal["done", "failed"]
    error: str | None
    created: Annotated[str, AfterValidator(_with_zone)]
    request: RunRequest
    method: MethodInfo
    model: ModelInfo
    task: TaskInfo
    data: DataInfo
    training: TrainingInfo
    versions: Mapping[str, str]
    hardware: HardwareInfo
    parameters: ParametersInfo
    bytes: BytesInfo
    seconds: SecondsInfo
    peak_memory_bytes: int
    metrics: Mapping[str, float]
    baselines: Mapping[str, float]
    predictions: tuple[Prediction, ...] = ()
    curve: CurveInfo = CurveInfo()
    reducer: ReducerInfo | None = None
    fit: FitInfo | None = None
    tuning: TuningInfo | None = None
    flops: float | None = None
    baseline_metrics: Mapping[str, Mapping[str, float]] = field(
        default_factory=dict[str, Mapping[str, float]]
    )
    weights_sha256: str | None = None
    lengths: LengthsInfo | None = None
    findings: tuple[str, ...] = ()
    init: InitInfo | None = None
    stored: Mapping[str, StoredInfo] = field(default_factory=dict[str, StoredInfo])
    format: Literal[2] = FORMAT

    @property
    def name(self) -> str:
        """The name of its folder, which tells the runs of a suite apart."""
        return self.request.out.name

    def to_dict(self) -> dict[str, JsonValue]:
        """Return the record as JSON values, the format first."""
        values = {**asdict(self), "request": self.request.to_dict()}
        plain = cast("dict[str, JsonValue]", json.loads(json.dumps(values, allow_nan=False)))
        return {"format": plain.pop("format"), **plain}

    def write(self, folder: Path) -> Path:
        """Write `run.json` into a folder in one step, and return its path."""
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False)
        write_whole(folder / NAME, f"{text}\n".encode())
        return folder / NAME

    @classmethod
    def read(cls, path: Path) -> "RunRecord":
        """Read a record.

        Args:
            path: The `run.json`, or the folder that holds it.

        Raises:
            DataError: If it is missing, damaged, or of another format; all faults are named at once.
        """
        file = path / NAME if path.is_dir() else path
        try:
            content = file.read_bytes()
        except FileNotFoundError as error:
            raise DataError(f"there is no '{file}'; name a folder that `rankfold train` wrote.") from error
        except OSError as error:
            raise DataError(f"cannot read '{file}' ({error.strerror}); check its permissions.") from error
        return parse_record(content, f"'{file}'")


def parse_record(content: bytes, place: str) -> RunRecord:
    """Return the record that JSON holds.

    Args:
        content: The JSON.
        place: Where it is from, as an error should name it.

    Raises:
        DataError: If it is damaged, or of an unknown format; all faults are named at once.
    """
    try:
        return _adapter().validate_json(_upgrade(content))
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc'])) or 'file'}: {fault['msg']}" for fault in error.errors()
        )
        raise DataError(f"{place} is no run record of format {FORMAT} ({faults}); run it again.") from error


def _upgrade(content: bytes) -> bytes:
    """Return a record's JSON in the present format; anything else as it is, for the validation to explain."""
    try:
        values = json.loads(content)
    except ValueError:
        return content
    if not isinstance(values, dict):
        return content
    return json.dumps(upgrade_record(cast("dict[str, JsonValue]", values))).encode()


@cache
def _adapter() -> TypeAdapter[RunRecord]:
    return TypeAdapter(Annotated[RunRecord, AfterValidator(_with_result)])


def _with_result(record: RunRecord) -> RunRecord:
    """Return a record unchanged if a finished run has its metric, or raise ValueError."""
    if record.status == "done" and record.task.metric not in record.metrics:
        raise ValueError(f"status is 'done', but metrics has no '{record.task.metric}'")
    return record


logger = logging.getLogger("rankfold.runs")

DataVersion = tuple[str, int]
"""The hash of the rows, and the version of the task; a task without version counts as 1."""


def measured_on(record: RunRecord) -> DataVersion:
    """Return the data of a run's metrics: the hash of its rows and the version of its task."""
    return record.data.sha256, record.task.version or 1


def note_different_data(records: Iterable[RunRecord]) -> None:
    """Log a warning for every task of which some runs were measured on other rows than the rest."""
    versions: dict[tuple[str, str], set[DataVersion]] = {}
    for record in records:
        versions.setdefault((record.task.name, record.model.name), set()).add(measured_on(record))
    for (task, model), different in versions.items():
        if len(different) > 1:
            logger.warning(
                "the runs on '%s' with '%s' were measured on %d different sets of rows or versions of the "
                "task; each has a table of its own, and they are not compared.",
                *(task, model, len(different)),
            )
