"""Estimates of runs, without data and without weights: parameters, operations, memory and hours.

Parameters and operations are counted on the meta device. Memory and time follow from them under the
assumptions stated at `Memory` and `Device`.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any, final

import torch
from peft import LoraConfig, PeftConfig
from pydantic import JsonValue

from rankfold.errors import DataError, SpecError, unknown_name
from rankfold.models.base import row_length
from rankfold.models.hardware import choose_precision
from rankfold.models.meta import MetaBase, generates_text
from rankfold.peft_plugin.count import count_parameters
from rankfold.progress import Progress
from rankfold.runs.methods import find_method, freeze_rest, parameters_of_run
from rankfold.runs.record import ParametersInfo
from rankfold.runs.request import DEFAULT_EPOCHS, RunRequest
from rankfold.runs.workload import Workload, measure_workload
from rankfold.tasks import MIXTURES, NAMED_TASKS, Task, TaskRequest, load_task
from rankfold.tasks.data.splits import HOLD_OUT_FRACTION
from rankfold.tasks.kinds import kind_base
from rankfold.tasks.task import SEPARATOR
from rankfold.train.schedule import updates_of_epoch

_NUMBER_BYTES = 4
# AdamW has a number, its gradient and two moments, in float32 each.
_TRAINED_BYTES = 4 * _NUMBER_BYTES
# Under autocast most tensors are halved and some are not, and each weight has a copy of half its size.
_AUTOCAST_KEPT, _AUTOCAST_COPY = 0.75, 0.5
# The backward pass has the gradients of an operation's two sides at once.
_GRADIENTS_AT_ONCE = 2


@dataclass(frozen=True, slots=True)
class Device:
    """The hardware that would train.

    Args:
        name: Name of the device.
        flops: Floating-point operations per second that a training reaches in its precision.
        assumption: How `flops` was estimated, in words.
        memory_bytes: Device memory in bytes; None if unknown.
    """

    name: str
    flops: float
    assumption: str
    memory_bytes: int | None = None


A100 = {
    "bf16": Device("an A100 80GB", 0.4 * 312e12, "40 % of 312 TFLOP/s in bf16", 80 * 2**30),
    "fp32": Device("an A100 80GB", 0.4 * 19.5e12, "40 % of 19.5 TFLOP/s in fp32", 80 * 2**30),
}
"""What is assumed where no device is named, by precision. Small models reach less."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes at the peak of a step, without the memory of the libraries themselves.

    Args:
        weights: The base model's, in float32, as they are loaded in any precision.
        trained: Trained parameters, their gradients and AdamW's two moments.
        activations: Tensors kept by the forward pass for the backward pass, with the attention weights that
            fused kernels on a GPU do not keep.
        gradients: The gradients that the backward pass has at once: twice the largest tensor.
    """

    weights: int
    trained: int
    activations: int
    gradients: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.trained + self.activations + self.gradients


@dataclass(frozen=True, slots=True)
class Estimate:
    """The estimate of one run.

    Args:
        model: Name of the base model.
        structure: Source of the model's structure.
        method: Name of the method.
        kind: Kind of task.
        base: Parameters of the base model, its task head included.
        parameters: Parameters of the adapter and of the head beside it.
        stored_bytes: Bytes of their values in the adapter's file.
        rows: Of the training split; None if the steps were given without it.
        steps: Updates.
        batch_size: Rows of an update.
        length: Tokens of a row, if all are as long as they may be: shorter ones take less.
        precision: `fp32` or `bf16`.
        step_flops: Operations of a step.
        flops: Operations of the training; its evaluations are not counted.
        memory: Memory at the peak of a step.
        device: Device the estimate is for.
        hours: Estimated hours.
        left_out: Parts that operations and memory do not count, in words; None if they are complete.
    """

    model: str
    structure: str
    method: str
    kind: str
    base: int
    parameters: ParametersInfo
    stored_bytes: int
    rows: int | None
    steps: int
    batch_size: int
    length: int
    precision: str
    step_flops: float
    flops: float
    memory: Memory
    device: Device
    hours: float
    left_out: str | None

    @property
    def fits(self) -> bool | None:
        """Whether the device has the memory; None if that is not known."""
        has = self.device.memory_bytes
        return None if has is None else self.memory.total <= has

    def to_dict(self) -> dict[str, Any]:
        """Return the estimate as plain values, with the total of the memory and whether it fits."""
        values = asdict(self)
        values["memory"]["total"] = self.memory.total
        return {**values, "fits": self.fits}


@final
class Estimator:
    """Estimates runs; a step that several runs share is traced once.

    Args:
        device: What would train; an A100 if None.
    """

    def __init__(self, device: Device | None = None) -> None:
        self._device = device
        self._measured: dict[str, Workload] = {}

    def estimate(
        self, request: RunRequest, *, rows: int | None = None, classes: int | None = None
    ) -> Estimate:
        """Estimate a run; neither data nor weights are read.

        Args:
            request: The run. Its task says the classes, and the rows of its official training split; a task
                or data of the user's own has two classes.
            rows: Of the training split, where the task does not say.
            classes: Of the task, where it does not say.

        Raises:
            SpecError: If there is no such model, method or task, they cannot be built as asked, or neither
                the steps nor the rows are known.
        """
        tasks = _tasks(request, is_own=request.data is not None or rows is not None)
        used = _used_rows(request, tasks, rows)
        steps = _steps(request, used)
        is_free = request.precision == "auto"
        precision = "bf16" if is_free else choose_precision(request.precision, torch.device("cpu"))
        trainer = self._device or A100[precision]
        base = _base(request, tasks, classes)
        length = row_length(base.config, base.head.max_length, request.max_length)
        work = self._workload(request, base, length)
        return Estimate(
            model=request.model,
            structure=base.source,
            method=request.method,
            kind=base.head.kind,
            base=work.base,
            parameters=work.parameters,
            stored_bytes=_NUMBER_BYTES * (work.parameters.stored + work.parameters.head),
            rows=used,
            steps=steps,
            batch_size=request.batch_size,
            length=length,
            precision=precision,
            step_flops=work.flops(1),
            flops=work.flops(steps),
            memory=memory_of(work, precision),
            device=trainer,
            hours=work.flops(steps) / trainer.flops / 3600,
            left_out=work.left_out,
        )

    def _workload(self, request: RunRequest, base: MetaBase, length: int) -> Workload:
        key = json.dumps([*step_settings(request), base.head.kind, base.config.num_labels, length])
        if key not in self._measured:
            config = find_method(request.method).config(
                request.options, base.head.task_type, seed=request.seed
            )
            self._measured[key] = measure_workload(
                base, config, request, rows=request.batch_size, length=length
            )
        return self._measured[key]


def estimate(
    request: RunRequest,
    *,
    rows: int | None = None,
    classes: int | None = None,
    device: Device | None = None,
) -> Estimate:
    """Estimate one run, as `Estimator.estimate` does."""
    return Estimator(device).estimate(request, rows=rows, classes=classes)


def read_size(request: RunRequest) -> tuple[RunRequest, int, int | None]:
    """Read the data of a run for its kind of task, its training rows and its classes.

    Args:
        request: The run, with data of the user's own.

    Returns:
        The request with the kind, the rows, and the number of classes if the kind has any.

    Raises:
        SpecError: If there is no such model or task.
        DataError: If the data cannot be read or understood.
    """
    # The estimate itself subtracts the rows that are held out.
    whole = replace(request.task_request, holds_out=False)
    data = load_task(whole, is_causal=generates_text(request.model))
    names = data.examples.label_names
    classes = None if names is None else len(names)
    return replace(request, kind=data.kind.name), data.examples.counts["train"], classes


def step_settings(request: RunRequest) -> list[JsonValue]:
    """Return the settings that decide the cost of a step, except the task and the length of its rows."""
    options = {name: value for name, value in request.options.items() if name != "seed"}
    reducer = None if request.reducer is None else dict(request.reducer)
    return [request.model, request.method, options, reducer, request.batch_size, request.freeze_head]


def _tasks(request: RunRequest, *, is_own: bool) -> list[Task]:
    """Return the known tasks that are learned, those of a mixture one by one; none for a user's own data."""
    names = request.task.split(SEPARATOR) if request.task else []
    unknown = [name for name in names if name not in NAMED_TASKS]
    if unknown and not is_own:
        raise unknown_name("task", unknown[0], NAMED_TASKS)
    return [] if unknown else [NAMED_TASKS[name] for name in names]


def _base(request: RunRequest, tasks: list[Task], classes: int | None) -> MetaBase:
    kinds = [task.kind for task in tasks if task.kind is not None]
    labels = sum(len(task.label_names or ()) for task in tasks)
    kind = request.kind or (kinds[0] if kinds else None)
    return kind_base(request.model, kind=kind, num_labels=labels or classes or 2)


def _used_rows(request: RunRequest, tasks: list[Task], own_rows: int | None) -> int | None:
    """Return the rows that are trained on, of all tasks of a mixture together."""
    official = [task.rows.get("train") for task in tasks]
    known_rows = [rows for rows in official if rows is not None]
    rows = own_rows
    if rows is None and known_rows and len(known_rows) == len(official):
        rows = min(known_rows) * len(known_rows) if request.mixture == MIXTURES[0] else sum(known_rows)
    if rows is None:
        return None
    if request.hold_out:
        rows -= max(1, round(HOLD_OUT_FRACTION * rows))
    return min(rows, request.train_rows or rows)


def _steps(request: RunRequest, rows: int | None) -> int:
    if request.steps is not None:
        return request.steps
    if rows is None:
        raise SpecError(
            "the rows of the training split are not known; name a task or data, or give the number of steps."
        )
    updates = updates_of_epoch(rows, request.batch_size, request.gradient_accumulation)
    return max(1, round((request.epochs or DEFAULT_EPOCHS) * updates))


def memory_of(work: Workload, precision: str) -> Memory:
    """Return the memory that a training takes at the peak of a step.

    Args:
        work: What the training takes.
        precision: `fp32` or `bf16`.
    """
    step, activations = work.step, float(work.step.kept_bytes)
    if precision == "bf16":
        activations = _AUTOCAST_KEPT * activations + _AUTOCAST_COPY * step.kept_weight_bytes
    return Memory(
        weights=_NUMBER_BYTES * work.base,
        trained=_TRAINED_BYTES * work.trained,
        activations=round(activations),
        gradients=_GRADIENTS_AT_ONCE * step.largest_bytes,
    )


# Beside what decides a step: how many there are, of how long rows, in which numbers.
_DECISIVE = ("task", "data", "kind", "epochs", "steps", "max_length", "precision", "train_rows", "hold_out")


@dataclass(frozen=True, slots=True)
class RunsEstimate:
    """The estimate shared by runs of equal cost, such as those of several seeds.

    Args:
        request: The first of them.
        runs: How many they are.
        estimate: What each of them would take; None if that cannot be said.
        reason: Why it cannot.
    """

    request: RunRequest
    runs: int
    estimate: Estimate | None
    reason: str | None = None

    @property
    def hours(self) -> float | None:
        """How long they would train, one after the other; None if that cannot be said."""
        return None if self.estimate is None else self.runs * self.estimate.hours


def estimate_runs(
    requests: Iterable[RunRequest], *, device: Device | None = None, progress: Progress | None = None
) -> list[RunsEstimate]:
    """Estimate runs, grouped by equal cost, in the order of their first occurrence.

    Data that is of no named task is read, for the number of its rows.

    Args:
        requests: The runs.
        device: What would train; an A100 if None.
        progress: Receives the progress, one unit a group.
    """
    alike: dict[str, list[RunRequest]] = {}
    for request in requests:
        alike.setdefault(_key(request), []).append(request)
    if progress:
        progress.start(len(alike), "estimates")
    estimator, count_own = Estimator(device), cache(_own_rows)
    estimates: list[RunsEstimate] = []
    for number, group in enumerate(alike.values(), start=1):
        estimates.append(_estimate_group(group[0], len(group), estimator, count_own))
        if progress:
            progress.advance(number)
    if progress:
        progress.finish()
    return estimates


def _estimate_group(
    request: RunRequest, runs: int, estimator: Estimator, count_own: Callable[[TaskRequest, str], int]
) -> RunsEstimate:
    try:
        rows = None if _is_counted(request) else count_own(request.task_request, request.model)
        return RunsEstimate(request, runs, estimator.estimate(request, rows=rows))
    except (SpecError, DataError) as error:
        return RunsEstimate(request, runs, None, str(error))


def _is_counted(request: RunRequest) -> bool:
    """Return whether the rows of the training split are known without reading data."""
    names = request.task.split(SEPARATOR) if request.task else []
    return request.data is None and all(name in NAMED_TASKS for name in names)


def _own_rows(request: TaskRequest, model: str) -> int:
    """Return the rows of the whole training split; the estimate subtracts held-out rows itself."""
    data = load_task(replace(request, holds_out=False), is_causal=generates_text(model))
    return data.examples.counts["train"]


def _key(request: RunRequest) -> str:
    return json.dumps([*step_settings(request), *(getattr(request, name) for name in _DECISIVE)])


@dataclass(frozen=True, slots=True)
class MethodCount:
    """Parameter counts of one adapter on one model.

    Args:
        base: Parameters of the base model, its task head included.
        stored: What the adapter's file keeps.
        trainable: What the method trains.
        active: What would be updated in a step now.
        head: Parameters of the task head beside the adapter.
        by_factor: Trainable parameters by the factor's role.
        by_module: Trainable parameters by the layer's path; a shared factor counts at the layer that owns it.
        lora: Trainable parameters of plain LoRA of the same rank on the same layers; None without a rank.
    """

    base: int
    stored: int
    trainable: int
    active: int
    head: int
    by_factor: dict[str, int]
    by_module: dict[str, int]
    lora: int | None


def count_on_meta(
    model: str, method: str, options: Mapping[str, JsonValue], *, kind: str | None, num_labels: int
) -> MethodCount:
    """Count the parameters of a method on a model whose weights are never created.

    Args:
        model: As for `rankfold train`, or the path of a `config.json`.
        method: The name of any method.
        options: The method's options and PEFT's targeting options.
        kind: What is learned; by the model's architecture if None.
        num_labels: Classes of a classification.

    Raises:
        SpecError: If model, method or options cannot be built as asked, or nothing would be trained.
    """
    head_base, adapter_method = kind_base(model, kind=kind, num_labels=num_labels), find_method(method)
    config = adapter_method.config(options, head_base.head.task_type, seed=0)
    base, peft_model = head_base.with_adapter(config)
    freeze_rest(peft_model, adapter_method)
    lora = _plain_lora(config) if adapter_method.trains_adapter else None
    reference = None if lora is None else count_parameters(head_base.with_adapter(lora)[1]).active
    count = count_parameters(peft_model)
    by_factor, by_module = (
        {name: part.active for name, part in parts.items() if part.active}
        for parts in (count.by_factor, count.by_module)
    )
    counts = asdict(parameters_of_run(peft_model))
    return MethodCount(base, **counts, by_factor=by_factor, by_module=by_module, lora=reference)


def _plain_lora(config: PeftConfig) -> LoraConfig | None:
    """Return PEFT's own LoRA with the rank and the targets of a configuration that has been applied."""
    rank = getattr(config, "r", None)
    if not isinstance(rank, int):
        return None
    names = (
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "rank_pattern",
        "modules_to_save",
    )
    targets = {name: value for name in names if (value := getattr(config, name, None)) is not None}
    return LoraConfig(r=rank, task_type=config.task_type, **targets)
