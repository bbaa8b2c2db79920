"""A saved adapter, measured on a split of a task."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from peft import PeftModel
from pydantic import Field

from rankfold.errors import AdapterFileError, SpecError
from rankfold.models.base import BaseModel, LoadedModel, resolve_model, row_length
from rankfold.models.hardware import choose_device, choose_precision
from rankfold.runs.fields import Option, Request, request_class
from rankfold.runs.record import Prediction, RunRecord
from rankfold.runs.records import find_record
from rankfold.runs.request import Device, Precision, ScoringName
from rankfold.store.loading import load_adapter
from rankfold.store.saved import open_adapter
from rankfold.tasks import TaskData, TaskRequest, load_task
from rankfold.tasks.kinds import Evaluation, Learner
from rankfold.tasks.load import TRAINING_SPLITS
from rankfold.tasks.mixture import with_parts

_ADAPTER, _DATA, _WHERE = Option("What to evaluate"), Option("Data"), Option("Where")


@request_class
class EvaluateRequest(Request):
    """One evaluation: a saved adapter on a split of a task.

    Raises:
        SpecError: If a field is unknown or missing, a number is out of its range, or a name not one of its
            choices.
    """

    title: ClassVar[str] = "an evaluation"
    sections: ClassVar[tuple[str, ...]] = ("What to evaluate", "Data", "Where")

    adapter: Annotated[Path, _ADAPTER] = Field(
        strict=False, description="A folder that `rankfold train` or `save_pretrained` wrote."
    )
    model: Annotated[str, _ADAPTER] = Field(description="The base model, as for `rankfold train`.")
    split: Annotated[Literal["train", "validation", "test", "validation_mismatched"], _ADAPTER] = Field(
        "validation", description="The split that is measured."
    )
    data: Annotated[TaskRequest, _DATA] = Field(description="The task.")
    max_length: Annotated[int | None, _DATA] = Field(
        None, gt=0, le=10**7, description="Most tokens of a row; the usual ones for the kind of task if None."
    )
    scoring: Annotated[ScoringName | None, _DATA] = Field(
        None, description="How answers with choices are found; by likelihood if None."
    )
    batch_size: Annotated[int, _WHERE] = Field(16, gt=0, le=10**6, description="Rows at a time.")
    precision: Annotated[Precision, _WHERE] = Field("auto", description="auto, fp32 or bf16.")
    device: Annotated[Device, _WHERE] = Field("auto", description="auto, cpu, cuda or mps.")


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
    record = find_record(request.adapter)
    device = choose_device(request.device)
    base = resolve_model(request.model)
    data = _load_data(request, record, is_causal=base.is_causal)
    scoring = data.kind.scoring(request.scoring, data.task.metrics, data.task.name)
    head = data.kind.head(data.examples.label_names)
    loaded = data.kind.load(base, data.examples.label_names)
    model = load_adapted(request.adapter, record, base, loaded)
    learner = Learner(
        model.to(device),
        loaded.processor,
        row_length(loaded.model.config, head.max_length, request.max_length),
        request.batch_size,
        device,
        choose_precision(request.precision, device),
        scoring,
    )
    data.kind.check(learner, data.examples.splits[request.split])
    return replace(_result(request, data, data.evaluate(learner, request.split)), scoring=scoring)


def _load_data(request: EvaluateRequest, record: RunRecord | None, *, is_causal: bool) -> TaskData:
    if record is None:
        # The labels are those of the training split, whichever split is measured.
        splits = TRAINING_SPLITS if request.split == "train" else ("train", request.split)
        return load_task(request.data, is_causal=is_causal, splits=splits)
    learned = record.task.kind
    if request.data.kind not in (None, learned):
        raise SpecError(
            f"kind is '{request.data.kind}', and what '{request.adapter}' learned is {learned}; leave it out."
        )
    known = replace(request.data, learned_names=record.task.label_names, kind=learned)
    # What was cut off for validation was not trained on.
    splits = TRAINING_SPLITS if request.split == "train" else (request.split,)
    return load_task(known, is_causal=is_causal, splits=splits)


def load_adapted(adapter: Path, record: RunRecord | None, base: BaseModel, loaded: LoadedModel) -> PeftModel:
    """Put a saved adapter onto its loaded base model, in evaluation mode.

    Raises:
        AdapterFileError: If the adapter is damaged or lacks its task head, or was trained on another model.
    """
    if record is not None and record.model.sha256 not in ("", base.sha256()):
        raise AdapterFileError(
            f"the adapter '{adapter}' was trained on '{record.model.name}', not on '{base.name}'; "
            "name the model it was trained on with --model."
        )
    saved = open_adapter(adapter)
    for module in loaded.fresh_modules:
        if not any(f".{module}." in key for key in saved.tensors):
            raise AdapterFileError(
                f"neither the model '{base.name}' nor the adapter '{adapter}' has weights for '{module}'; "
                "save the adapter with its head (task_type, or modules_to_save)."
            )
    return load_adapter(loaded.model, saved)


def _result(request: EvaluateRequest, data: TaskData, evaluation: Evaluation) -> EvaluateResult:
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
