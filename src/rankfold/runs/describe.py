"""The record of a run before it starts, without results."""

import copy
import json
import logging
import math
import platform
import random
import warnings
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
from rankfold.runs.prepare import Prepared
from rankfold.runs.record import (
    BytesInfo,
    DataInfo,
    HardwareInfo,
    MethodInfo,
    ModelInfo,
    ReducerInfo,
    RunRecord,
    SecondsInfo,
    TaskInfo,
    TrainingInfo,
)
from rankfold.runs.workload import measure_workload
from rankfold.train.schedule import RateTable, Schedule

logger = logging.getLogger("rankfold.bench")

_LIBRARIES = ("rankfold", "torch", "peft", "transformers", "accelerate", "datasets", "numpy")


def started_record(prepared: Prepared) -> RunRecord:
    """Return the record of a run that has not got anywhere yet; its status is "failed" until it has."""
    request, data, base = prepared.request, prepared.data, prepared.base
    return RunRecord(
        status="failed",
        error="it did not start",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        request=replace(request, resume=False),
        method=MethodInfo(request.method, dict(request.options), _plain(_config(prepared))),
        model=ModelInfo(base.name, base.source, base.sha256()),
        task=_task(prepared),
        data=DataInfo(data.source, data.sha256, _rows(prepared)),
        training=_training(prepared),
        versions=_versions(),
        hardware=HardwareInfo(cpu_name(), torch.get_num_threads(), gpu_name(prepared.device)),
        parameters=prepared.parameters(),
        bytes=BytesInfo(0, 0, 0),
        seconds=SecondsInfo(0.0, 0.0, 0.0, 0.0),
        peak_memory_bytes=0,
        metrics={},
        baselines={},
        reducer=_reducer(prepared),
        flops=_flops(prepared),
    )


def _task(prepared: Prepared) -> TaskInfo:
    data, task, scoring = prepared.data, prepared.data.task, prepared.learner.scoring
    return TaskInfo(
        task.name,
        data.kind.name,
        task.metrics[0],
        data.examples.label_names,
        task.licence,
        task.version,
        scoring,
    )


def _config(prepared: Prepared) -> dict[str, Any]:
    """Return the adapter's configuration; the base model goes by the name it was asked for.

    PEFT has the folder that the model was loaded from, which for a packaged model is a place of this machine.
    """
    return {**cast(Any, prepared.config).to_dict(), "base_model_name_or_path": prepared.request.model}


def _rows(prepared: Prepared) -> dict[str, int]:
    """Return the rows of each split, with those that were held out of the training for probes apart."""
    counts = prepared.data.examples.counts
    if not prepared.probe_rows:
        return counts
    return {**counts, "train": len(prepared.rows), "probe": len(prepared.probe_rows)}


def _reducer(prepared: Prepared) -> ReducerInfo | None:
    if prepared.request.reducer is None or prepared.reducer is None:
        return None
    return ReducerInfo(dict(prepared.request.reducer), prepared.reducer.scores.layers)


def _flops(prepared: Prepared) -> float | None:
    """Return the operations of the training; None if the adapter cannot be traced whole without weights."""
    request, data = prepared.request, prepared.data
    described = cast(PreTrainedConfig, cast(Any, prepared.model).get_base_model().config)
    with warnings.catch_warnings():
        # What is worth saying of ranks and relays was said when the adapter was made.
        warnings.simplefilter("ignore", RankfoldWarning)
        try:
            work = measure_workload(
                MetaBase(
                    copy.deepcopy(described),
                    data.kind.head(data.examples.label_names),
                    prepared.base.source,
                ),
                copy.deepcopy(prepared.config),
                request,
                rows=min(request.batch_size, len(prepared.rows)),
                length=_padded_length(prepared),
            )
        except Exception as error:  # an estimate must not end a run
            logger.info("the operations of the run are not estimated (%s).", error)
            return None
    return None if work.left_out else work.flops(prepared.schedule.steps)


def _padded_length(prepared: Prepared) -> int:
    """Return the mean length of the batches, whose rows are padded to the longest among them."""
    lengths = [len(row["input_ids"]) for row in prepared.rows]
    random.Random(prepared.request.seed).shuffle(lengths)  # noqa: S311 (an order like the training's)
    size = prepared.schedule.batch_size
    return round(fmean(max(lengths[first : first + size]) for first in range(0, len(lengths), size)))


def _training(prepared: Prepared) -> TrainingInfo:
    part = training_part(prepared.schedule, len(prepared.rows), prepared.learner.max_length, _head(prepared))
    groups = RateTable.of(prepared.groups or ()).groups
    return replace(part, rates=prepared.request.rates.non_default(), groups=groups)


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
        epochs=schedule.steps / math.ceil(rows / schedule.batch_size),
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


def _head(prepared: Prepared) -> Literal["trained", "frozen", "none"]:
    parameters = head_parameters(prepared.model)
    if not parameters:
        return "none"
    return "trained" if any(parameter.requires_grad for parameter in parameters) else "frozen"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found


def _plain(config: Mapping[str, Any]) -> dict[str, JsonValue]:
    """Return a PEFT configuration as JSON values: sets sorted, enumerations by value."""
    return cast("dict[str, JsonValue]", json.loads(json.dumps(config, default=_plain_value)))


def _plain_value(value: object) -> object:
    if isinstance(value, set | frozenset):
        return sorted(cast("set[str]", value))
    return str(value)
