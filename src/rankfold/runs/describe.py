"""The record of a run before it starts, without results."""

import copy
import json
import logging
import math
import platform
import random
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from statistics import fmean
from typing import Any, Literal, cast

import torch
from pydantic import JsonValue
from transformers import PreTrainedConfig

from rankfold.errors import RankfoldWarning
from rankfold.models.hardware import cpu_name, gpu_name
from rankfold.models.meta import MetaBase
from rankfold.runs.methods import head_parameters
from rankfold.runs.prepare import RunSetup
from rankfold.runs.record import (
    BytesInfo,
    DataInfo,
    HardwareInfo,
    LengthsInfo,
    MethodInfo,
    ModelInfo,
    ReducerInfo,
    RunRecord,
    SecondsInfo,
    TaskInfo,
    TrainingInfo,
)
from rankfold.runs.workload import measure_workload
from rankfold.tasks.kinds.learner import row_lengths
from rankfold.train.schedule import RateTable, Schedule

logger = logging.getLogger("rankfold.runs")

_BARS = 24
_LIBRARIES = ("rankfold", "torch", "peft", "transformers", "accelerate", "datasets", "numpy")


def starting_record(setup: RunSetup) -> RunRecord:
    """Return the record of a run that has not got anywhere yet; its status is "failed" until it has."""
    request, data, base = setup.request, setup.data, setup.base
    return RunRecord(
        status="failed",
        error="it did not start",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        request=replace(request, resume=False),
        method=MethodInfo(request.method, dict(request.options), _plain(_config(setup))),
        model=ModelInfo(base.name, base.source, base.sha256()),
        task=_task(setup),
        data=DataInfo(data.source, data.sha256, _rows(setup), data.columns.by_role()),
        training=_training(setup),
        versions=_versions(),
        hardware=HardwareInfo(cpu_name(), torch.get_num_threads(), gpu_name(setup.device)),
        parameters=setup.parameters(),
        bytes=BytesInfo(0, 0, 0),
        seconds=SecondsInfo(0.0, 0.0, 0.0, 0.0),
        peak_memory_bytes=0,
        metrics={},
        baselines={},
        reducer=_reducer(setup),
        flops=_flops(setup),
        lengths=_lengths(setup),
        init=setup.init,
        findings=tuple(dict.fromkeys(finding.message for finding in setup.findings)),
    )


def _task(setup: RunSetup) -> TaskInfo:
    data, task, scoring = setup.data, setup.data.task, setup.learner.scoring
    return TaskInfo(
        task.name,
        data.kind.name,
        task.metrics[0],
        data.examples.label_names,
        task.licence,
        task.version,
        scoring,
        data.examples.settings,
    )


def _lengths(setup: RunSetup) -> LengthsInfo | None:
    """Return the histogram of the training rows' lengths; None for a kind whose rows are not tokens."""
    lengths = row_lengths(setup.rows)
    if not any(lengths):
        return None
    low, high = min(lengths), max(lengths)
    width = max(1, math.ceil((high + 1 - low) / _BARS))
    counts = Counter((length - low) // width for length in lengths)
    bars = range(max(counts) + 1)
    edges = (*(float(low + width * bar) for bar in bars), float(low + width * len(bars)))
    cut = sum(length >= setup.learner.max_length for length in lengths)
    return LengthsInfo(edges, tuple(counts[bar] for bar in bars), cut)


def _config(setup: RunSetup) -> dict[str, Any]:
    """Return the adapter's configuration; the base model goes by the name it was asked for.

    PEFT has the folder that the model was loaded from, which for a packaged model is a place of this machine.
    """
    return {**cast(Any, setup.config).to_dict(), "base_model_name_or_path": setup.request.model}


def _rows(setup: RunSetup) -> dict[str, int]:
    """Return the rows of each split, with those that were held out of the training for probes apart."""
    counts = setup.data.examples.counts
    if not setup.probe_rows:
        return counts
    return {**counts, "train": len(setup.rows), "probe": len(setup.probe_rows)}


def _reducer(setup: RunSetup) -> ReducerInfo | None:
    if setup.request.reducer is None or setup.reducer is None:
        return None
    return ReducerInfo(dict(setup.request.reducer), setup.reducer.scores.layers)


def _flops(setup: RunSetup) -> float | None:
    """Return the operations of the training; None of rows without tokens, or where tracing takes weights."""
    if not any(row_lengths(setup.rows)):
        return None
    request, data = setup.request, setup.data
    base_config = cast(PreTrainedConfig, cast(Any, setup.model).get_base_model().config)
    with warnings.catch_warnings():
        # What is worth saying of ranks and relays was said when the adapter was made.
        warnings.simplefilter("ignore", RankfoldWarning)
        try:
            work = measure_workload(
                MetaBase(
                    copy.deepcopy(base_config),
                    data.kind.head(data.examples.label_names),
                    setup.base.source,
                ),
                copy.deepcopy(setup.config),
                request,
                rows=min(request.batch_size, len(setup.rows)),
                length=_padded_length(setup),
            )
        except Exception as error:  # an estimate must not end a run
            logger.info("the operations of the run are not estimated (%s).", error)
            return None
    return None if work.left_out else work.flops(setup.schedule.steps)


def _padded_length(setup: RunSetup) -> int:
    """Return the mean length of the batches, whose rows are padded to the longest among them."""
    lengths = list(row_lengths(setup.rows))
    random.Random(setup.request.seed).shuffle(lengths)  # noqa: S311 (an order like the training's)
    size = setup.schedule.batch_size
    return round(fmean(max(lengths[first : first + size]) for first in range(0, len(lengths), size)))


def _training(setup: RunSetup) -> TrainingInfo:
    part = training_part(setup.schedule, len(setup.rows), setup.learner.max_length, _head(setup))
    groups = RateTable.of(setup.groups or ()).groups
    return replace(part, rates=setup.request.rates.non_default(), groups=groups)


def training_part(
    schedule: Schedule, rows: int, max_length: int, head: Literal["trained", "frozen", "none"]
) -> TrainingInfo:
    """Return how a run is trained, at one rate for all of the adapter.

    Args:
        schedule: How.
        rows: Of the training split.
        max_length: The most tokens of a row.
        head: What becomes of a new head.
    """
    return TrainingInfo(
        epochs=schedule.epochs(rows),
        steps=schedule.steps,
        batch_size=schedule.batch_size,
        learning_rate=schedule.learning_rate,
        scheduler=schedule.scheduler,
        warmup=schedule.warmup,
        weight_decay=schedule.weight_decay,
        max_grad_norm=schedule.max_grad_norm,
        max_length=max_length,
        precision=schedule.precision,
        seed=schedule.seed,
        head=head,
    )


def _head(setup: RunSetup) -> Literal["trained", "frozen", "none"]:
    parameters = head_parameters(setup.model)
    if not parameters:
        return "none"
    return "trained" if any(parameter.requires_grad for parameter in parameters) else "frozen"


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            continue
    return versions


def _plain(config: Mapping[str, Any]) -> dict[str, JsonValue]:
    """Return a PEFT configuration as JSON values: sets sorted, enumerations by value."""
    return cast("dict[str, JsonValue]", json.loads(json.dumps(config, default=_plain_value)))


def _plain_value(value: object) -> object:
    if isinstance(value, set | frozenset):
        return sorted(cast("set[str]", value))
    return str(value)
