"""One run, from a request to a folder with the adapter, its curve and its record."""

import csv
import logging
import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import peft
import torch

from rankfold.files import check_writable, naming_full_disk
from rankfold.models.hardware import choose_device, peak_memory_bytes
from rankfold.progress import Progress, Silent
from rankfold.runs.check import check_threads
from rankfold.runs.describe import starting_record
from rankfold.runs.examples import choose_examples, write_examples
from rankfold.runs.output import check_output, clear_failure, find_finished, output_folder
from rankfold.runs.prepare import RunSetup, prepare
from rankfold.runs.record import (
    BytesInfo,
    CurveInfo,
    Prediction,
    ReducerInfo,
    ReducerPoint,
    RunRecord,
    SecondsInfo,
    StoredInfo,
    TrainingInfo,
)
from rankfold.runs.request import RunRequest
from rankfold.runs.resume import check_unchanged, check_unfinished, remove_leftover, unfinished_run
from rankfold.runs.rounding import Measurement, certify
from rankfold.runs.trained import finish_adapter
from rankfold.store.adapter import CONFIG_NAME, WEIGHTS_NAME
from rankfold.store.certificate import ScoreChange
from rankfold.store.manifest import MANIFEST_NAME
from rankfold.store.rounding import Dtype, restore, round_adapter
from rankfold.store.saved import open_adapter, write_packed
from rankfold.tasks import limit_rows
from rankfold.tasks.kinds import Evaluation
from rankfold.tasks.mixture import baselines, with_parts
from rankfold.train.checkpoint import Checkpoints
from rankfold.train.curve import Curve
from rankfold.train.distributed import is_main_process, join_processes, wait_for_all
from rankfold.train.held_out import LOSS, HeldOut
from rankfold.train.store_bits import StoreBits
from rankfold.train.trainer import train_model

logger = logging.getLogger("rankfold.runs")

CURVE_NAME = "curve.csv"
LOGS_NAME = "runs"
"""The folder of TensorBoard's files, as transformers names it."""

STORED_NAME = "adapter.rankfold"
"""The adapter in the type that `store` names."""


def run(request: RunRequest, *, progress: Progress | None = None) -> RunRecord:
    """Train, evaluate, and write the run's folder.

    The folder is a PEFT adapter directory with `run.json` and `curve.csv` beside. It appears complete or not
    at all, and an earlier run is replaced only by a finished one. A training that fails leaves a folder with
    nothing but a `run.json` of status "failed", unless the folder exists. A training that is stopped leaves
    `<out>.unfinished` beside it, and ends as if it had not been stopped when it is resumed. A run that is
    done already is not resumed: its record is returned.

    Args:
        request: The run.
        progress: Gets the progress of every update.

    Raises:
        OutputExistsError: If the folder exists and may not be replaced, or a run of it is not finished.
        BusyError: If another process is at this run.
        SpecError: If method, options, model or task cannot be built as asked, or are not those of the run to
            resume.
        DataError: If the data cannot be read or understood, or data or model have changed since the run to
            resume was done.
        TrainingError: If a loss is not a finite number, or the memory is too small.
        DiskError: If the disk is full; the run can be resumed from its last checkpoint.
    """
    check_threads(request.threads)
    join_processes(choose_device(request.device))
    remove_leftover(request.out)
    if (finished_record := _done_before(request)) is not None:
        return finished_record
    check_unfinished(request)
    wait_for_all()
    began = time.perf_counter()
    with _threads(request.threads):
        setup = prepare(request, progress)
        start = starting_record(setup)
        with unfinished_run(request, start) as checkpoints:
            # Until now another process may have been at it, and may have finished it.
            if (finished_record := _done_before(request)) is not None:
                return finished_record
            try:
                with naming_full_disk(checkpoints.folder):
                    result = _execute(setup, checkpoints, progress)
            except Exception as error:
                with suppress(OSError):  # a full disk takes no record either
                    _leave_failure(start, request.out, checkpoints.folder, error)
                raise
            seconds = time.perf_counter() - began + result.curve.earlier_seconds
            if is_main_process():
                _write(start, setup, result, checkpoints.folder, seconds)
                logger.info("wrote '%s'.", request.out)
            wait_for_all()
    return RunRecord.read(request.out)


def _done_before(request: RunRequest) -> RunRecord | None:
    """Return the record of a run that there is nothing to resume of, because it is done.

    Raises:
        OutputExistsError: If there is something that may not be replaced.
        DataError: If it is done, but its data or its model has changed since.
    """
    if not request.resume or request.overwrite:
        check_output(request.out, overwrite=request.overwrite)
        return None
    record = find_finished(request)
    wait_for_all()
    if record is None:
        if is_main_process():
            clear_failure(request.out)
        wait_for_all()
    else:
        check_unchanged(record, request)
        logger.info("'%s' is done already; --overwrite does it again.", request.out)
    return record


def dry_run(request: RunRequest) -> RunRecord:
    """Prepare a run without training or writing, and return its record, which has no results.

    Args:
        request: The run.

    Raises:
        SpecError: If method, options, model or task cannot be built as asked, or nothing can be written.
        DataError: If the data cannot be read or understood.
    """
    check_writable(request.out)
    check_threads(request.threads)
    with _threads(request.threads):
        return starting_record(prepare(request))


@dataclass(frozen=True, slots=True)
class _Result:
    curve: Curve
    evaluation: Evaluation
    evaluate_seconds: float


@dataclass(slots=True)
class _Validation:
    """Measures the validation split, and keeps the last measurement of all its rows."""

    setup: RunSetup
    progress: Progress
    latest: Evaluation | None = None

    def during(self, rows: int | None) -> Evaluation:
        """Measure so many rows, or all of them."""
        setup = self.setup
        if rows is not None:
            return limit_rows(setup.data, {"validation": rows}).evaluate(
                setup.learner, "validation", is_final=False
            )
        # A metric of predictions takes predictions, however long they take.
        self.latest = self._measure(is_final=setup.request.save_best not in (None, LOSS))
        return self.latest

    def final(self, *, is_current: bool) -> Evaluation:
        """Return the last measurement of all rows, or measure again where the model is another since."""
        if self.latest is None or not is_current or self.setup.data.kind.predicts_at_end:
            # In the course of a training its own progress is shown.
            self.latest = self._measure(is_final=True, progress=self.progress)
        return self.latest

    def _measure(self, *, is_final: bool, progress: Progress | None = None) -> Evaluation:
        learner = replace(self.setup.learner, progress=progress or Silent())
        return self.setup.data.evaluate(learner, "validation", is_final=is_final)


def _execute(setup: RunSetup, checkpoints: Checkpoints, progress: Progress | None) -> _Result:
    validation, request = _Validation(setup, progress or Silent()), setup.request
    if request.quantise is None:  # quantised weights are where they belong
        setup.model.to(setup.device)
    store_bits = None
    if request.store_bits is not None:
        store_bits = StoreBits(setup.model, request.store_bits, setup.schedule.steps)
    curve = train_model(
        setup.model,
        setup.rows,
        setup.schedule,
        kind=setup.data.kind,
        collate=setup.data.kind.collate(setup.learner),
        device=setup.device,
        groups=setup.groups,
        held_out=HeldOut(
            validation.during,
            len(setup.data.examples.splits["validation"]),
            request.validate,
            request.eval_every,
            request.save_best,
            request.early_stopping,
        ),
        report_to=request.loggers,
        progress=progress,
        callbacks=[callback for callback in (setup.reducer, store_bits) if callback is not None],
        checkpoints=checkpoints,
    )
    began = time.perf_counter()
    is_current = curve.best_step in (None, curve.steps)
    if store_bits is not None and store_bits.finish():
        is_current = False
    evaluation = validation.final(is_current=is_current)
    return _Result(curve, evaluation, curve.evaluate_seconds + time.perf_counter() - began)


def _write(start: RunRecord, setup: RunSetup, result: _Result, scratch: Path, total_seconds: float) -> None:
    request = setup.request
    with output_folder(request.out, scratch=scratch, overwrite=request.overwrite) as work:
        _save(setup, work)
        record = finish_adapter(
            work, _with_results(start, setup, result, total_seconds), setup.base.public_name
        )
        _write_curve(result.curve, work / CURVE_NAME)
        if request.keep_texts:
            _write_examples(setup, result.evaluation, work)
        if request.stored_type is not None:
            record = replace(record, stored=_store(setup, record, cast("Dtype", request.stored_type), work))
        if (scratch / LOGS_NAME).is_dir():
            shutil.move(scratch / LOGS_NAME, work / LOGS_NAME)
        replace(record, bytes=adapter_bytes(work)).write(work)


def _store(setup: RunSetup, record: RunRecord, dtype: Dtype, folder: Path) -> dict[str, StoredInfo]:
    """Write the adapter of a run in another type, and measure the model with its numbers.

    The model keeps them.
    """
    exact = open_adapter(folder)
    rounded = restore(round_adapter(exact, dtype))
    metric = record.task.metric
    score = record.metrics[metric]
    if any(
        not torch.equal(tensor.float(), exact.tensors[name].float())
        for name, tensor in rounded.tensors.items()
    ):
        cast(Any, peft).set_peft_model_state_dict(setup.model, dict(rounded.tensors))
        score = with_parts(setup.data.task, setup.data.evaluate(setup.learner, "validation"))[metric]
    change = ScoreChange(record.task.name, metric, len(record.predictions), record.metrics[metric], score)
    certificate = certify(exact, dtype, Measurement(weights_only=True))
    packed = write_packed(
        exact,
        folder / STORED_NAME,
        dtype=dtype,
        certificate=certificate and replace(certificate, score=change),
    )
    return {dtype: StoredInfo(packed.learned_bytes, score, packed.file_bytes)}


def _with_results(start: RunRecord, setup: RunSetup, result: _Result, total_seconds: float) -> RunRecord:
    evaluation = result.evaluation
    examples = zip(evaluation.ids, evaluation.labels, evaluation.predictions, strict=True)
    baseline_metrics = baselines(setup.data, evaluation)
    step_seconds = result.curve.median_step_seconds
    return replace(
        start,
        status="done",
        error=None,
        seconds=SecondsInfo(result.curve.train_seconds, result.evaluate_seconds, total_seconds, step_seconds),
        training=_training_made(start.training, setup, result.curve),
        flops=None if start.flops is None else start.flops * result.curve.steps / setup.schedule.steps,
        peak_memory_bytes=peak_memory_bytes(setup.device),
        metrics=with_parts(setup.data.task, evaluation),
        baselines=(
            {name: scores[start.task.metric] for name, scores in baseline_metrics.items()}
            or _untrained_metric(setup, result.curve)
        ),
        baseline_metrics=baseline_metrics,
        predictions=tuple(Prediction(*example) for example in examples),
        curve=CurveInfo(tuple(result.curve.train), tuple(result.curve.validation)),
        reducer=_with_history(start.reducer, setup),
    )


def _untrained_metric(setup: RunSetup, curve: Curve) -> dict[str, float]:
    """Return the primary metric before the first update, if it was measured."""
    first = curve.validation[0] if curve.validation else {"step": -1}
    metric = setup.data.task.metrics[0]
    return {"untrained": first[metric]} if first["step"] == 0 and metric in first else {}


def _training_made(training: TrainingInfo, setup: RunSetup, curve: Curve) -> TrainingInfo:
    """Return the training as it was made: it may have stopped early, and not with its last weights."""
    epochs = training.epochs * curve.steps / setup.schedule.steps
    if curve.steps == setup.schedule.steps:
        return replace(training, best_step=curve.best_step)
    return replace(training, steps=curve.steps, epochs=epochs, best_step=curve.best_step, stopped_early=True)


def _with_history(part: ReducerInfo | None, setup: RunSetup) -> ReducerInfo | None:
    if part is None or setup.reducer is None:
        return None
    history = setup.reducer.scores.history
    return replace(
        part, history=tuple(ReducerPoint(point.step, point.importance, point.trained) for point in history)
    )


def adapter_bytes(folder: Path) -> BytesInfo:
    """Measure a saved adapter: its weights file, all its files, and the values of its tensors alone."""
    files = [folder / name for name in (WEIGHTS_NAME, CONFIG_NAME, MANIFEST_NAME)]
    return BytesInfo(
        weights_file=files[0].stat().st_size,
        directory=sum(file.stat().st_size for file in files if file.exists()),
        learned=open_adapter(folder).learned_bytes,
    )


def _save(setup: RunSetup, folder: Path) -> None:
    setup.model.save_pretrained(str(folder))
    # PEFT's model card is a form that nobody has filled in.
    (folder / "README.md").unlink(missing_ok=True)


def _write_curve(curve: Curve, path: Path) -> None:
    points = [{"split": "train", **point} for point in curve.train]
    points += [{"split": "validation", **point} for point in curve.validation]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(
            file, list(dict.fromkeys(name for point in points for name in point)), lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(sorted(points, key=lambda point: point["step"]))


def _write_examples(setup: RunSetup, evaluation: Evaluation, folder: Path) -> None:
    try:
        examples = choose_examples(setup.data, setup.learner, evaluation)
    except Exception as error:  # the training is done, and must not be lost for want of examples
        logger.info("no examples are kept (%s).", str(error).rstrip("."))
        return
    write_examples(examples, folder)


def _leave_failure(start: RunRecord, folder: Path, scratch: Path, error: Exception) -> None:
    if folder.exists() or not is_main_process():
        return
    with output_folder(folder, scratch=scratch, overwrite=False) as work:
        replace(start, error=f"{type(error).__name__}: {error}").write(work)


@contextmanager
def _threads(count: int | None) -> Generator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
