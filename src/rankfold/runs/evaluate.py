"""A saved adapter, measured on a split of a task."""

from dataclasses import dataclass, replace

from rankfold.errors import SpecError
from rankfold.models.base import resolve_model
from rankfold.runs.adapted import Learned, Placement, make_learner
from rankfold.runs.record import Prediction
from rankfold.runs.request import CompleteRequest, EvaluateRequest
from rankfold.runs.trained import open_trained
from rankfold.store.manifest import Manifest
from rankfold.tasks import TaskData, load_task
from rankfold.tasks.data.findings import log_findings
from rankfold.tasks.kinds import Evaluation
from rankfold.tasks.load import TRAINING_SPLITS
from rankfold.tasks.mixture import with_parts


@dataclass(frozen=True, slots=True)
class EvaluateResult:
    """Metrics and predictions of an evaluation, under the names of a run's record."""

    adapter: str
    model: str
    task: str
    metric: str
    split: str
    rows: int
    loss: float
    metrics: dict[str, float]
    predictions: tuple[Prediction, ...]
    scoring: str | None = None


def evaluate(request: EvaluateRequest) -> EvaluateResult:
    """Measure an adapter.

    Raises:
        AdapterFileError: If the adapter is damaged, or does not belong to the model.
        SpecError: If the model or the task is unknown, or takes fewer tokens than `max_length`, or the kind
            is not the one that was learned.
        DataError: If the data cannot be read or understood.
    """
    trained = open_trained(request.adapter)
    complete = request.completed_by(trained.record, trained.manifest)
    base = resolve_model(complete.model, trust_remote_code=complete.trust_remote_code)
    data = _load_data(complete, trained.manifest, is_causal=base.is_causal)
    log_findings(data.all_findings)
    scoring = data.kind.scoring(complete.scoring, data.task.metrics, data.task.name)
    learner = make_learner(
        trained,
        base,
        data.kind,
        Learned(data.examples.label_names, data.examples.settings, scoring),
        Placement(complete.max_length, complete.batch_size, complete.device, complete.precision),
    )
    data.kind.check(learner, data.examples.splits[complete.split])
    return replace(_result(complete, data, data.evaluate(learner, complete.split)), scoring=scoring)


def _load_data(request: CompleteRequest, manifest: Manifest | None, *, is_causal: bool) -> TaskData:
    if manifest is None or manifest.task is None:
        # The labels are those of the training split, whichever split is measured.
        splits = TRAINING_SPLITS if request.split == "train" else ("train", request.split)
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
    # What was cut off for validation was not trained on.
    splits = TRAINING_SPLITS if request.split == "train" else (request.split,)
    return load_task(known_task, is_causal=is_causal, splits=splits)


def _result(request: CompleteRequest, data: TaskData, evaluation: Evaluation) -> EvaluateResult:
    examples = zip(evaluation.ids, evaluation.labels, evaluation.predictions, strict=True)
    return EvaluateResult(
        adapter=str(request.adapter),
        model=request.model,
        task=data.task.name,
        metric=data.task.metrics[0],
        split=request.split,
        rows=data.examples.counts[request.split],
        loss=evaluation.loss,
        metrics=with_parts(data.task, evaluation),
        predictions=tuple(Prediction(*example) for example in examples),
    )
