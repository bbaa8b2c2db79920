"""A saved adapter, measured on a split of a task."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import JsonValue

from rankfold.errors import SpecError
from rankfold.models.base import resolve_model
from rankfold.progress import Progress, Silent
from rankfold.runs.adapted import Learned, Placement, make_learner
from rankfold.runs.adapter_request import CompleteRequest, EvaluateRequest
from rankfold.runs.record import Prediction, RunRecord
from rankfold.runs.trained import open_trained
from rankfold.store.manifest import Manifest
from rankfold.tasks import TaskData, choose_metrics, load_task
from rankfold.tasks.data.read import find_source
from rankfold.tasks.data.table import log_findings
from rankfold.tasks.kinds import Evaluation
from rankfold.tasks.load import TRAINING_SPLITS
from rankfold.tasks.mixture import with_parts

logger = logging.getLogger("rankfold.runs")


@dataclass(frozen=True, slots=True)
class EvaluateResult:
    """Metrics and predictions of an evaluation, under the names of a run's record.

    `described` are the predictions as people read them: with the names of classes instead of their ids.
    """

    adapter: str
    model: str
    task: str
    metric: str
    split: str
    rows: int
    loss: float
    metrics: dict[str, float]
    predictions: tuple[Prediction, ...]
    described: tuple[Prediction, ...] = ()
    scoring: str | None = None
    label_names: tuple[str, ...] | None = None


def evaluate(request: EvaluateRequest, *, progress: Progress | None = None) -> EvaluateResult:
    """Measure an adapter.

    Args:
        request: Names the adapter and the data.
        progress: Gets the progress of long evaluations.

    Raises:
        AdapterFileError: If the adapter is damaged, or does not belong to the model.
        SpecError: If the model or the task is unknown, or takes fewer tokens than `max_length`, or the kind
            is not the one that was learned.
        DataError: If the data cannot be read or understood.
    """
    trained = open_trained(request.adapter)
    complete = request.completed_by(trained.record, trained.manifest)
    measured = _choose_split(request, trained.record)
    base = resolve_model(complete.model, trust_remote_code=complete.trust_remote_code)
    data = _load_data(complete, measured, trained.manifest, is_causal=base.is_causal)
    data = choose_metrics(data, complete.metrics)
    log_findings(data.all_findings)
    scoring = data.kind.scoring(complete.scoring, data.task.metrics, data.task.name)
    learner = make_learner(
        trained,
        base,
        data.kind,
        Learned(data.examples.label_names, data.examples.settings, scoring),
        Placement(complete.max_length, complete.batch_size, complete.device, complete.precision),
    )
    learner = replace(learner, progress=progress or Silent())
    data.kind.check(learner, data.examples.splits[measured.name])
    evaluation = data.evaluate(learner, measured.name)
    return replace(_result(complete, measured, data, evaluation), scoring=scoring)


@dataclass(frozen=True, slots=True)
class _Split:
    """The rows to measure.

    Args:
        name: The split, as the reader of data has it.
        title: The split, as people read it; "all" for all rows of a file.
    """

    name: str
    title: str

    @property
    def needed(self) -> tuple[str, ...]:
        """The splits to read: rows that were cut off the training split for validation are no part of it."""
        return TRAINING_SPLITS if self.title == TRAINING_SPLITS[0] else (self.name,)


def _choose_split(request: EvaluateRequest, record: RunRecord | None) -> _Split:
    """Return the split to measure: that which is asked for, else all rows of a file, else validation.

    Raises:
        SpecError: If a split of a single file is asked for that is not cut from it.
    """
    name = request.split
    files: list[str] = [] if request.data is None else list(find_source(request.data).files)
    is_file = request.data is not None and len(files) == 1 and Path(request.data).expanduser().is_file()
    if is_file and name not in (None, *TRAINING_SPLITS):
        raise SpecError(f"'{request.data}' is one file and has no split '{name}'; leave --split out.")
    if name is not None:
        return _Split(name, name)
    if is_file and record is not None and record.request.data == request.data:
        logger.info(
            "'%s' is the data of the run, which was trained on most of its rows; leave --data out to measure "
            "those that were held out.",
            request.data,
        )
    if is_file or len(files) == 1:
        only = files[0]
        return _Split(only, "all" if is_file else only)
    has_no_validation = bool(files) and "validation" not in files and "test" in files
    return _Split(*("test", "test") if has_no_validation else ("validation", "validation"))


def _load_data(
    request: CompleteRequest, measured: _Split, manifest: Manifest | None, *, is_causal: bool
) -> TaskData:
    if manifest is None or manifest.task is None:
        # The labels are those of the training split, whichever split is measured.
        splits = tuple(dict.fromkeys(("train", *measured.needed)))
        return load_task(request.task_request, is_causal=is_causal, splits=splits)
    kind = manifest.task.kind
    if request.kind not in (None, kind):
        raise SpecError(
            f"kind is '{request.kind}', and what '{request.adapter}' learned is {kind}; leave it out."
        )
    known_task = replace(
        request.task_request,
        learned_names=manifest.label_names,
        learned_settings=manifest.task.settings,
        kind=kind,
    )
    return load_task(known_task, is_causal=is_causal, splits=measured.needed)


def _result(
    request: CompleteRequest, measured: _Split, data: TaskData, evaluation: Evaluation
) -> EvaluateResult:
    rows = list(zip(evaluation.ids, evaluation.labels, evaluation.predictions, strict=True))
    examples = {item.id: item for item in data.examples.splits[measured.name]}
    names = data.examples.label_names

    def describe(name: int | str, value: object) -> JsonValue:
        return data.kind.describe_label(examples[name], value, names)

    return EvaluateResult(
        adapter=str(request.adapter),
        model=request.model,
        task=data.task.name,
        metric=data.task.metrics[0],
        split=measured.title,
        rows=data.examples.counts[measured.name],
        loss=evaluation.loss,
        metrics=with_parts(data.task, evaluation),
        label_names=names,
        predictions=tuple(Prediction(*row) for row in rows),
        described=tuple(
            Prediction(name, describe(name, label), describe(name, prediction))
            for name, label, prediction in rows
        ),
    )
