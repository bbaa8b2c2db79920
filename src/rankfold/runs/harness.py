"""EleutherAI's lm-evaluation-harness on a saved adapter of a causal language model.

The harness brings tasks, prompts and metrics; rankfold gives it the base model with the adapter. Metrics
compare with those that others report for a task of the same name and version.
"""

import json
import logging
import random
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, ClassVar, cast

import numpy as np
import torch
from pydantic import Field

from rankfold.errors import AdapterFileError, DataError, SpecError
from rankfold.files import write_whole
from rankfold.models.base import BaseModel, resolve_model
from rankfold.models.hardware import choose_device, choose_precision
from rankfold.progress import quiet_libraries
from rankfold.runs.adapted import load_adapted
from rankfold.runs.fields import Option, Request, request_class
from rankfold.runs.request import Device, Precision
from rankfold.runs.trained import open_trained
from rankfold.store.saved import open_adapter
from rankfold.tasks.kinds import default_kind

# The seeds of the harness's own command line.
_PYTHON_SEED, _SEED = 0, 1234


_WHAT, _WHERE = Option("What to evaluate"), Option("Where")


@request_class
class HarnessRequest(Request):
    """An evaluation by the harness.

    Raises:
        SpecError: If a number is out of range, a name is not one of its choices, or there is no task.
    """

    title: ClassVar[str] = "an evaluation by the harness"
    sections: ClassVar[tuple[str, ...]] = ("What to evaluate", "Where")

    adapter: Annotated[Path, _WHAT] = Field(strict=False, description="The folder of a saved adapter.")
    model: Annotated[str, _WHAT] = Field(description="Its base model, a causal one.")
    tasks: Annotated[tuple[str, ...], _WHAT] = Field(
        description="Tasks, groups or tags of the harness, or YAML files that define tasks."
    )
    include: Annotated[tuple[Path, ...], _WHAT] = Field(
        (), description="Folders with further task definitions."
    )
    limit: Annotated[int | None, _WHAT] = Field(None, gt=0, le=10**12, description="Examples per task.")
    num_fewshot: Annotated[int | None, _WHAT] = Field(
        None, ge=0, le=10**6, description="Solved examples in the prompt; those of the task if left out."
    )
    chat_template: Annotated[bool, _WHAT] = Field(
        default=False, description="Put prompts into the chat template of the tokenizer."
    )
    batch_size: Annotated[int, _WHERE] = Field(16, gt=0, le=10**6, description="Sequences at a time.")
    max_length: Annotated[int | None, _WHERE] = Field(
        None, gt=0, le=10**7, description="Most tokens of a sequence; those of the model if left out."
    )
    precision: Annotated[Precision, _WHERE] = Field("auto", description="auto, fp32 or bf16.")
    device: Annotated[Device, _WHERE] = Field("auto", description="auto, cpu, cuda or mps.")
    trust_remote_code: Annotated[bool, _WHERE] = Field(
        default=False, description="Run Python code in the model's folder."
    )

    def __post_init__(self) -> None:
        """Check that there is a task."""
        if not self.tasks:
            raise SpecError("no task of the harness is named; name one or more.")


@dataclass(frozen=True, slots=True)
class HarnessMetric:
    """One metric of one task.

    Args:
        task: Name of the task or group.
        version: Version of the task's definition; figures of different versions cannot be compared.
        num_fewshot: Solved examples in the prompt.
        filter: The filter that read the model's answers.
        metric: Name of the metric.
        value: Its value.
        stderr: Its standard error; None where the harness computes none.
        higher_is_better: Direction of the metric; None where the task does not say.
    """

    task: str
    version: str
    num_fewshot: int | None
    filter: str
    metric: str
    value: float
    stderr: float | None
    higher_is_better: bool | None


@dataclass(frozen=True, slots=True)
class HarnessResult:
    """Result of an evaluation by the harness.

    Args:
        adapter: The saved adapter.
        model: Its base model.
        metrics: All metrics of all tasks and groups.
        output: The harness's own result: metrics, definitions, versions and numbers of examples.
    """

    adapter: str
    model: str
    metrics: tuple[HarnessMetric, ...]
    output: Mapping[str, Any]

    def write(self, file: Path) -> None:
        """Write the harness's own result as JSON, with adapter and model beside it."""
        content = {"adapter": self.adapter, "model": self.model, **self.output}
        write_whole(file, json.dumps(content, indent=1, default=str).encode())


def evaluate_with_harness(request: HarnessRequest) -> HarnessResult:
    """Evaluate a saved adapter on tasks of the lm-evaluation-harness.

    Raises:
        AdapterFileError: If the adapter is damaged, does not fit the model, or is not of a causal language
            model.
        SpecError: If the harness is not installed, model or task is unknown, the model is not causal, or the
            harness cannot evaluate a task.
        DataError: If a task's definition or data cannot be loaded.
    """
    evaluate, language_model_class = _import_harness()
    base = _find_model(request)
    with quiet_libraries(), _quiet_harness(), _seeds():
        tasks = _load_tasks(request)
        loaded_base = default_kind(is_causal=True).load(base)
        model = load_adapted(open_trained(request.adapter), base, loaded_base)
        model.to(choose_device(request.device))
        precision = choose_precision(request.precision, model.device)
        language_model = language_model_class(
            pretrained=model,
            tokenizer=loaded_base.processor,
            batch_size=request.batch_size,
            max_length=request.max_length,
            mixed_precision_dtype="bfloat16" if precision == "bf16" else None,
        )
        try:
            output = evaluate(
                language_model,
                tasks,
                limit=request.limit,
                log_samples=False,
                apply_chat_template=request.chat_template,
            )
        except ValueError as error:
            raise SpecError(
                f"the harness cannot evaluate {_quote_names(request.tasks)} ({_reason(error)}); "
                "choose other tasks."
            ) from error
    return HarnessResult(str(request.adapter), request.model, tuple(_metrics(output)), output)


def _import_harness() -> tuple[Any, Any]:
    """Import the harness: its `evaluate` function and its class of Hugging Face models."""
    try:
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise SpecError(
            "--harness needs the package 'lm_eval'; install it with `pip install 'rankfold[harness]'`."
        ) from error
    return evaluate, HFLM


def _load_tasks(request: HarnessRequest) -> Any:
    """Load definitions and data of the tasks, and set their number of few-shot examples."""
    from lm_eval.tasks import TaskManager

    # The index of the harness's own tasks takes many seconds, and is needed only for its own names.
    for include_defaults in (False, True):
        manager: Any = TaskManager(
            include_path=[str(folder) for folder in request.include], include_defaults=include_defaults
        )
        missing = [name for name in request.tasks if name not in manager.all_tasks and not _is_file(name)]
        if not missing:
            break
    else:
        near = get_close_matches(missing[0], cast("list[str]", manager.all_tasks), n=1)
        hint = f"Did you mean '{near[0]}'?" if near else "`lm_eval ls tasks` lists all tasks."
        raise SpecError(f"unknown task '{missing[0]}' of the harness. {hint}")
    try:
        tasks = manager.load(list(request.tasks))
    except Exception as error:  # definitions run code and downloads of their own
        raise DataError(
            f"cannot load definition or data of {_quote_names(request.tasks)} ({_reason(error)}); "
            "check the task's files, or the connection to the hub."
        ) from error
    for task in tasks["tasks"].values():
        _set_fewshot(task, request.num_fewshot)
    return tasks


def _set_fewshot(task: Any, count: int | None) -> None:
    task_count = task.get_config("num_fewshot")
    if count is not None and task_count != 0:  # a definition with 0 allows no examples
        task.set_config(key="num_fewshot", value=count)
    elif task_count is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=_SEED)


def _find_model(request: HarnessRequest) -> BaseModel:
    """Find the base model, and check that it and the adapter are of a causal language model."""
    base = resolve_model(request.model, trust_remote_code=request.trust_remote_code)
    if not base.is_causal:
        raise SpecError(
            f"'{base.name}' is not a causal language model, which --harness needs; "
            "evaluate the adapter on a task of its own instead."
        )
    task_type = open_adapter(request.adapter).config_values.get("task_type")
    if task_type not in (None, "CAUSAL_LM"):
        raise AdapterFileError(
            f"the adapter '{request.adapter}' is for {task_type}, but --harness evaluates only causal "
            "language models (CAUSAL_LM); evaluate the adapter on a task of its own instead."
        )
    return base


def _metrics(output: Mapping[str, Any]) -> Generator[HarnessMetric]:
    """Yield the metrics of a result with the keys "metric,filter" and "metric_stderr,filter"."""
    for task, values in output["results"].items():
        for key, value in values.items():
            metric, comma, answer_filter = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            stderr = values.get(f"{metric}_stderr,{answer_filter}")
            yield HarnessMetric(
                task=task,
                version=str(output["versions"].get(task, "")),
                num_fewshot=output["n-shot"].get(task),
                filter=answer_filter,
                metric=metric,
                value=float(value),
                stderr=float(stderr) if isinstance(stderr, int | float) else None,
                higher_is_better=output["higher_is_better"].get(task, {}).get(metric),
            )


@contextmanager
def _quiet_harness() -> Generator[None]:
    """Silence the log of the harness but for errors."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _seeds() -> Generator[None]:
    """Seed every generator as the harness's command line does, and restore their states afterwards."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with cast(Any, torch.random).fork_rng():
        random.seed(_PYTHON_SEED)
        np.random.seed(_SEED)
        torch.default_generator.manual_seed(_SEED)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def _is_file(name: str) -> bool:
    return Path(name).suffix in (".yaml", ".yml") and Path(name).is_file()


def _quote_names(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _reason(error: Exception) -> str:
    """First line of an error's message, or its type where there is none."""
    return str(error).strip().split("\n", 1)[0].rstrip(".") or type(error).__name__
