"""One run, from a request to a folder with the adapter, its curve and its record."""

import csv
import logging
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from rankfold.bench.describe import started_record
from rankfold.bench.output import check_output, output_folder
from rankfold.bench.prepare import Prepared, prepare
from rankfold.bench.record import (
    BytesPart,
    CurvePart,
    Prediction,
    ReducerPart,
    ReducerPoint,
    RunRecord,
    SecondsPart,
)
from rankfold.bench.request import RunRequest
from rankfold.train.encode import make_collator
from rankfold.train.hardware import peak_memory_bytes
from rankfold.train.load import CONFIG_NAME, WEIGHTS_NAME, stored_bytes
from rankfold.train.metrics import measure, trivial_predictions
from rankfold.train.models import Kind
from rankfold.train.predict import Evaluation
from rankfold.train.progress import Progress
from rankfold.train.trainer import Curve, train_model

logger = logging.getLogger("rankfold.bench")

CURVE_NAME = "curve.csv"


def run(request: RunRequest, *, progress: Progress | None = None) -> RunRecord:
    """Train, evaluate, and write the run's folder.

    The folder is a PEFT adapter directory with `run.json` and `curve.csv` beside. It appears complete or not
    at all, and an earlier run is replaced only by a finished one. A training that fails leaves a folder with
    nothing but a `run.json` of status "failed", unless the folder exists.

    Args:
        request: What to do.
        progress: Is told about every update.

    Raises:
        OutputExistsError: If the folder exists and may not be replaced.
        SpecError: If method, options, model or task cannot be built as asked.
        DataError: If the data cannot be read or understood.
        TrainingError: If a loss is not a finite number, or the memory is too small.
    """
    check_output(request.out, overwrite=request.overwrite)
    began = time.perf_counter()
    with _threads(request.threads):
        prepared = prepare(request)
        started = started_record(prepared)
        try:
            result = _execute(prepared, progress)
        except Exception as error:
            _leave_failure(started, request.out, error)
            raise
        with output_folder(request.out, overwrite=request.overwrite) as work:
            _save(prepared, work)
            record = _finished(started, prepared, result, work, time.perf_counter() - began)
            _write_curve(result.curve, work / CURVE_NAME)
            record.write(work)
    logger.info("wrote '%s'.", request.out)
    return record


def rehearse(request: RunRequest) -> RunRecord:
    """Do everything of a run but train and write: the record says what would be done, and has no results.

    Args:
        request: What would be done.

    Raises:
        OutputExistsError: If the folder exists and may not be replaced.
        SpecError: If method, options, model or task cannot be built as asked.
        DataError: If the data cannot be read or understood.
    """
    check_output(request.out, overwrite=request.overwrite)
    with _threads(request.threads):
        return started_record(prepare(request))


@dataclass(frozen=True, slots=True)
class _Result:
    curve: Curve
    evaluation: Evaluation
    train_seconds: float
    evaluate_seconds: float


@dataclass(slots=True)
class _Validation:
    """Measures the validation split, keeps the last measurement, and adds up the time it takes."""

    prepared: Prepared
    seconds: float = 0.0
    latest: Evaluation | None = None

    def during(self) -> Evaluation:
        self.latest = self._measure(is_final=False)
        return self.latest

    def final(self) -> Evaluation:
        if self.latest is None or self.prepared.data.kind is Kind.INSTRUCTION:
            self.latest = self._measure(is_final=True)
        return self.latest

    def _measure(self, *, is_final: bool) -> Evaluation:
        began = time.perf_counter()
        data = self.prepared.data
        evaluation = self.prepared.evaluator.measure(
            self.prepared.model, data.examples, "validation", data.task.metrics, is_final=is_final
        )
        self.seconds += time.perf_counter() - began
        return evaluation


def _execute(prepared: Prepared, progress: Progress | None) -> _Result:
    validation = _Validation(prepared)
    began = time.perf_counter()
    prepared.model.to(prepared.device)
    curve = train_model(
        prepared.model,
        prepared.rows,
        prepared.schedule,
        collate=make_collator(
            prepared.evaluator.tokenizer, tokens_have_labels=prepared.data.kind is Kind.INSTRUCTION
        ),
        device=prepared.device,
        evaluate=validation.during,
        progress=progress,
        callbacks=[prepared.reducer] if prepared.reducer else [],
    )
    train_seconds = time.perf_counter() - began - validation.seconds
    return _Result(curve, validation.final(), train_seconds, validation.seconds)


def _finished(
    started: RunRecord, prepared: Prepared, result: _Result, folder: Path, total_seconds: float
) -> RunRecord:
    evaluation = result.evaluation
    examples = zip(evaluation.ids, evaluation.labels, evaluation.predictions, strict=True)
    step_seconds = result.curve.median_step_seconds
    return replace(
        started,
        status="done",
        error=None,
        bytes=adapter_bytes(folder),
        seconds=SecondsPart(result.train_seconds, result.evaluate_seconds, total_seconds, step_seconds),
        peak_memory_bytes=peak_memory_bytes(prepared.device),
        metrics=evaluation.metrics,
        baselines=_baselines(prepared, evaluation),
        predictions=tuple(Prediction(*example) for example in examples),
        curve=CurvePart(tuple(result.curve.train), tuple(result.curve.validation)),
        reducer=_with_history(started.reducer, prepared),
    )


def _with_history(part: ReducerPart | None, prepared: Prepared) -> ReducerPart | None:
    if part is None or prepared.reducer is None:
        return None
    history = prepared.reducer.scores.history
    return replace(
        part, history=tuple(ReducerPoint(each.step, each.importance, each.trained) for each in history)
    )


def _baselines(prepared: Prepared, evaluation: Evaluation) -> dict[str, float]:
    """Return the primary metric of a model that never looks at its input."""
    data = prepared.data
    if not evaluation.labels:
        return {}
    if data.kind is Kind.INSTRUCTION:
        asked = (item for item in data.examples.instructions["train"] if item.candidates)
        train = [item.candidates.index(item.answer) for item in asked]
    else:
        train = [example.label for example in data.examples.labelled["train"]]
    guesses = trivial_predictions(data.kind, train, len(evaluation.labels))
    name = "mean" if data.kind is Kind.REGRESSION else "majority"
    metric = data.task.metrics[0]
    return {name: measure((metric,), evaluation.labels, guesses)[metric]}


def adapter_bytes(folder: Path) -> BytesPart:
    """Measure a saved adapter: its weights file, all its files, and the values of its tensors alone."""
    weights = (folder / WEIGHTS_NAME).stat().st_size
    return BytesPart(
        weights_file=weights,
        directory=weights + (folder / CONFIG_NAME).stat().st_size,
        learned=sum(stored_bytes(folder).values()),
    )


def _save(prepared: Prepared, folder: Path) -> None:
    prepared.model.save_pretrained(str(folder))
    # PEFT's model card is a form that nobody has filled in.
    (folder / "README.md").unlink(missing_ok=True)


def _write_curve(curve: Curve, path: Path) -> None:
    points = [{"split": "train", **point} for point in curve.train]
    points += [{"split": "validation", **point} for point in curve.validation]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, _columns(points), lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(points, key=lambda point: point["step"]))


def _columns(points: Sequence[dict[str, str | float]]) -> list[str]:
    return list(dict.fromkeys(name for point in points for name in point))


def _leave_failure(started: RunRecord, folder: Path, error: Exception) -> None:
    if folder.exists():
        return
    with output_folder(folder, overwrite=False) as work:
        replace(started, error=f"{type(error).__name__}: {error}").write(work)


@contextmanager
def _threads(count: int | None) -> Generator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
