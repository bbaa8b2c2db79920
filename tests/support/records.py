"""Run records that could have come from runs: all fields, curves and predictions, drawn from a seed."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from rankfold.errors import BusyError, TrainingError
from rankfold.runs.record import (
    BytesInfo,
    CurveInfo,
    DataInfo,
    HardwareInfo,
    MethodInfo,
    ModelInfo,
    ParametersInfo,
    Prediction,
    RunRecord,
    SecondsInfo,
    TaskInfo,
    TrainingInfo,
)
from rankfold.runs.request import RunRequest


def make_record(
    method="lora",
    *,
    seed=0,
    quality=0.95,
    size=148_000,
    options=None,
    learning_rate=5e-4,
    task="bbc_news",
    model="minilm",
    kind="classification",
    examples=445,
    steps=100,
):
    """Return a finished run whose predictions are right with the probability `quality`."""
    name = sum(map(ord, method))
    generator = np.random.default_rng([name, seed])
    labels = np.random.default_rng(0).integers(0, 5, examples)
    if kind == "regression":
        predictions = quality * labels + (1 - quality) * 4 * generator.normal(size=examples)
        metric, names, baselines = "pearson", None, {"mean": 0.0}
    else:
        predictions = np.where(generator.random(examples) < quality, labels, (labels + 1) % 5)
        metric, names = "accuracy", ("business", "entertainment", "politics", "sport", "tech")
        baselines = {"majority": 0.229}
    value = (
        float(np.corrcoef(labels, predictions)[0, 1])
        if kind == "regression"
        else float(np.mean(labels == predictions))
    )
    return RunRecord(
        status="done",
        error=None,
        created=f"2026-03-0{1 + seed}T10:20:30+00:00",
        request=RunRequest(model=model, method=method, task=task, seed=seed, out=Path("run")),
        method=MethodInfo(
            method, options or {"r": 8}, {"peft_type": "RANKFOLD", "r": 8, "target_modules": ["query"]}
        ),
        model=ModelInfo(model, f"package {model}", "ab" * 32),
        task=TaskInfo(task, kind, metric, names, "CC0"),
        data=DataInfo(f"package {task}", "cd" * 32, {"train": 1600, "validation": examples}),
        training=TrainingInfo(
            epochs=1.0,
            steps=steps,
            batch_size=16,
            learning_rate=learning_rate,
            scheduler="linear",
            warmup=0.06,
            weight_decay=0.01,
            max_grad_norm=1.0,
            max_length=128,
            precision="float32",
            seed=seed,
            head="trained",
        ),
        versions={"rankfold": "0.1.0", "python": "3.11.7", "torch": "2.13.0", "peft": "0.21.2"},
        hardware=HardwareInfo("a processor with two cores", 1, None),
        parameters=ParametersInfo(size // 4, size // 4, size // 4, 150_149),
        bytes=BytesInfo(size + 4_000, size + 10_000, size),
        seconds=SecondsInfo(80.0 + seed, 6.0, 88.0 + seed, 0.7),
        peak_memory_bytes=900_000_000,
        metrics={metric: value},
        baselines=baselines,
        predictions=tuple(
            Prediction(index, label, prediction)
            for index, (label, prediction) in enumerate(
                zip(labels.tolist(), predictions.tolist(), strict=True)
            )
        ),
        curve=_curve(generator, metric, value, steps),
    )


def with_request(record, **changes):
    """Return the record of a run that was asked for with other values."""
    return replace(record, request=replace(record.request, **changes))


def fail(record, error="the loss is not a number at step 12; lower the learning rate."):
    """Return the record of the same run, had it failed."""
    nothing = {
        "metrics": {},
        "baselines": {},
        "predictions": (),
        "curve": CurveInfo(),
        "peak_memory_bytes": 0,
    }
    return replace(
        record,
        status="failed",
        error=error,
        training=replace(record.training, steps=12),
        parameters=ParametersInfo(0, 0, 0, 0),
        bytes=BytesInfo(0, 0, 0),
        seconds=SecondsInfo(0.0, 0.0, 0.0, 0.0),
        **nothing,
    )


def _curve(generator, metric, value, steps):
    train = tuple(
        {
            "step": float(step),
            "loss": float(1.6 * np.exp(-step / 30) + 0.15 + 0.05 * generator.normal()),
            "learning_rate": 5e-4 * (1 - step / steps),
        }
        for step in range(1, steps + 1, 5)
    )
    validation = tuple(
        {
            "step": float(step),
            "loss": float(1.6 * np.exp(-step / 30) + 0.2),
            metric: value * float(1 - 0.7 * np.exp(-step / 25)),
        }
        for step in range(steps // 5, steps + 1, steps // 5)
    )
    return CurveInfo(train, validation)


class Trainer:
    """Stands in for training: writes a record, or fails as told, and remembers what it was asked.

    Runs that are `elsewhere` are those that another process is making.
    """

    def __init__(self, failing=(), *, leaves_record=False, elsewhere=()):
        self.failing, self.leaves_record, self.elsewhere, self.asked = failing, leaves_record, elsewhere, []

    def __call__(self, request, *, progress=None):
        self.asked.append(request.out.name)
        record = replace(make_record(request.method, seed=request.seed), request=request)
        if request.out.name in self.elsewhere:
            raise BusyError("another process is at work.")
        if request.out.name in self.failing:
            if self.leaves_record:
                request.out.mkdir(parents=True)
                fail(record, "the loss is not a number.").write(request.out)
            raise TrainingError("the loss is not a number.")
        request.out.mkdir(parents=True, exist_ok=True)
        record.write(request.out)
        return record


def reading(trainer):
    """Return a stand-in for training whose records have the hash of the data that their runs would read."""
    from rankfold.tasks import load_task

    def train(request, *, progress=None):
        digest = load_task(request.task_request, is_causal=False).sha256
        record = trainer(request, progress=progress)
        record = replace(record, data=replace(record.data, sha256=digest))
        record.write(request.out)
        return record

    return train
