"""One run in full: how to repeat it, what it used, what it gave."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rankfold.report.words import bytes_text, metric_name, seconds_text
from rankfold.runs.record import RunRecord

_HASH_DIGITS = 16

Facts = list[tuple[str, str]]


def run_facts(label: str, record: RunRecord, metric: str) -> dict[str, Any]:
    """Return a run as the template shows it.

    Args:
        label: The row it belongs to.
        record: The run.
        metric: The metric that is compared.
    """
    is_failed = record.status == "failed"
    result = (
        "failed" if is_failed else f"{metric_name(metric)} {record.metrics.get(metric, float('nan')):.3f}"
    )
    groups: dict[str, Facts] = {
        "Metrics": [(metric_name(name), f"{value:.4f}") for name, value in record.metrics.items()],
        "Method": [("name", record.method.name), *_plain(record.method.options)],
        "Training": _training(record),
        "Learning rates": [(group.name, f"{group.learning_rate:g}") for group in record.training.groups],
        "Reducer": _plain(record.reducer.options) if record.reducer else [],
        "Model": _model(record),
        "Data": _data(record),
        "Size": _sizes(record),
        "Time": _times(record),
        "Versions": _plain(record.versions),
        "Hardware": [(name, str(value)) for name, value in asdict(record.hardware).items() if value],
    }  # fmt: skip
    return {
        "title": f"{label}, seed {record.training.seed}",
        "failed": is_failed,
        "result": result,
        "error": record.error,
        "command": shlex.join(record.command),
        "groups": [{"name": name, "facts": facts} for name, facts in groups.items() if facts],
        "config": json.dumps(record.method.config, indent=1, ensure_ascii=False)
        if record.method.config
        else "",
    }


def _training(record: RunRecord) -> Facts:
    values = asdict(record.training)
    del values["groups"], values["rates"]
    return _plain({**values, **record.training.rates})


def _model(record: RunRecord) -> Facts:
    model = record.model
    return [("name", model.name), ("source", model.source), ("sha256", model.sha256[:_HASH_DIGITS])]


def _data(record: RunRecord) -> Facts:
    task = record.task
    known = {"version": task.version, "scoring": task.scoring, "licence": task.licence}
    stated = [(name, str(value)) for name, value in known.items() if value is not None]
    rows = [(f"{split} rows", f"{count:,}") for split, count in record.data.rows.items()]
    digest = ("sha256", record.data.sha256[:_HASH_DIGITS])
    return [("task", task.name), ("source", record.data.source), *rows, *stated, digest]


def _sizes(record: RunRecord) -> Facts:
    if record.status == "failed":
        return []
    parameters = [(name, f"{count:,}") for name, count in asdict(record.parameters).items()]
    files = [(name.replace("_", " "), bytes_text(count)) for name, count in asdict(record.bytes).items()]
    return [*parameters, *files]


def _times(record: RunRecord) -> Facts:
    if record.status == "failed":
        return []
    spent = [(name.replace("_", " "), seconds_text(value)) for name, value in asdict(record.seconds).items()]
    step = ("a step", f"{record.seconds.step_median * 1000:.0f} ms")
    work = [("operations, estimated", f"{record.flops:.3g}")] if record.flops is not None else []
    return [*spent[:-1], step, ("peak memory", bytes_text(record.peak_memory_bytes)), *work]


def _plain(values: Mapping[str, Any]) -> Facts:
    return [
        (name.replace("_", " "), value if isinstance(value, str) else _short(value))
        for name, value in values.items()
    ]


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
