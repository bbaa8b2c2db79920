"""Everything a run needs before its first update: data, base model, adapter, schedule. Writes nothing."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from torch.utils.data import DataLoader
from transformers import set_seed

from rankfold.errors import RankfoldError, RankfoldWarning, SpecError, unknown_name
from rankfold.factors import BasisSpec, find_basis
from rankfold.models.base import BaseModel, LoadedModel, resolve_model, row_length
from rankfold.models.hardware import choose_device, choose_precision
from rankfold.models.loading import Loading
from rankfold.progress import Progress, Silent, quiet_libraries
from rankfold.runs.methods import (
    check_rate,
    find_method,
    freeze_rest,
    parameters_of_run,
    recipe_of,
)
from rankfold.runs.record import InitInfo, ParametersInfo
from rankfold.runs.request import BALANCED, DEFAULT_EPOCHS, RunRequest
from rankfold.runs.warm_start import start_from, with_seed_of
from rankfold.store.saved import open_adapter
from rankfold.tasks import TaskData, choose_metrics, limit_rows, load_task
from rankfold.tasks.data.label_findings import IMBALANCED
from rankfold.tasks.data.table import Finding, log_findings
from rankfold.tasks.kinds import Features, Learner, TaskKind, claiming_base
from rankfold.tasks.kinds.learner import some_rows
from rankfold.tasks.metrics import metric_name
from rankfold.train.held_out import LOSS
from rankfold.train.optimizer import parameter_groups
from rankfold.train.reducer.probe import hold_out_probes
from rankfold.train.reducer.reducer import Reducer
from rankfold.train.reducer.spec import ReducerSpec
from rankfold.train.schedule import Rates, Schedule, updates_of_epoch

_Rows = Sequence[Features]


@dataclass(frozen=True, slots=True)
class RunSetup:
    """A run that is ready to train.

    Args:
        request: The request.
        base: Where the base model is from.
        data: The task, and the examples that will be used.
        model: The base model with the adapter, on the CPU.
        config: The adapter's configuration.
        schedule: How it will be trained.
        groups: What is trained at which learning rate, where the request asks for several.
        rows: The encoded training split.
        learner: The model, and how to run it.
        reducer: Chooses the layers that train, if it was asked for.
        probe_rows: Encoded rows that were held out of the training split for the Reducer's probes.
        init: The saved adapter that it begins with, if any.
        findings: Remarks on data, examples and tokens, which have been logged.
    """

    request: RunRequest
    base: BaseModel
    data: TaskData
    model: PeftModel
    config: PeftConfig
    schedule: Schedule
    groups: list[dict[str, Any]] | None
    rows: _Rows
    learner: Learner
    reducer: Reducer | None = None
    probe_rows: _Rows = ()
    init: InitInfo | None = None
    findings: tuple[Finding, ...] = ()

    @property
    def device(self) -> torch.device:
        """Where the run takes place."""
        return self.learner.device

    def parameters(self) -> ParametersInfo:
        """Count the numbers of adapter and head, as they are active in the first step."""
        counts = parameters_of_run(self.model)
        if self.reducer is None:
            return counts
        self.reducer.attach(self.model).before_step()
        active = parameters_of_run(self.model).active
        self.reducer.detach()
        return replace(counts, active=active)


def prepare(request: RunRequest, progress: Progress | None = None) -> RunSetup:
    """Read data, load the base model and add the adapter.

    Args:
        request: The run.
        progress: Gets the progress of encoding many rows.

    Raises:
        SpecError: If method, options, model or task cannot be built as asked.
        DataError: If the data cannot be read or understood.
    """
    method = find_method(request.method)
    check_rate(request, recipe_of(request))
    device = choose_device(request.device)
    # Weights in bf16 take activations in bf16.
    precision = choose_precision("bf16" if request.base_dtype == "bf16" else request.precision, device)
    base = replace(
        resolve_model(request.model, trust_remote_code=request.trust_remote_code),
        loading=Loading(request.base_dtype, request.attn, request.quantise, precision, device.type),
    )
    data = _load_data(request, base)
    data.kind.check_base(base, data.columns)
    scoring = data.kind.scoring(request.scoring, data.task.metrics, data.task.name)
    findings = [
        finding
        for finding in data.all_findings
        if (request.class_weights, request.sampling) == (None, None) or finding.name != IMBALANCED
    ]
    log_findings(findings)
    data = limit_rows(data, {"train": request.train_rows, "validation": request.eval_rows})
    if request.class_weights is not None:
        weights = None if request.class_weights == BALANCED else request.class_weights
        data = replace(data, kind=data.kind.weigh_classes(data.examples, cast(Any, weights)))
    if request.save_best not in (None, LOSS, *data.task.metrics):
        raise _unmeasured_metric(str(request.save_best), data)
    # Once for the head, once more for the adapter: runs that differ in method alone start from the same head.
    set_seed(request.seed)
    head = data.kind.head(data.examples.label_names)
    loaded_base = data.kind.load(base, data.examples.label_names)
    data = replace(
        data,
        examples=replace(data.examples, settings=data.kind.model_settings(loaded_base, data.examples)),
    )
    max_length = row_length(loaded_base.model.config, head.max_length, request.max_length, loaded_base.model)
    start = None if request.init_from is None else open_adapter(request.init_from)
    options = request.options
    if start is not None and method.draws_factors:
        options = with_seed_of(start, options)
    config = method.config(
        options, head.task_type, seed=request.seed, fresh_modules=loaded_base.fresh_modules
    )
    _warn_of_basis(config, data.task.name)
    data.kind.start_head(loaded_base, data.examples)
    set_seed(request.seed)
    model = _with_adapter(loaded_base, config)
    init = None if start is None else start_from(model, start, config, data.examples.label_names)
    freeze_rest(model, method, freeze_head=request.freeze_head)
    learner = Learner(
        model,
        loaded_base.processor,
        max_length,
        request.batch_size,
        device,
        precision,
        scoring,
        data.examples.settings,
        data.examples.label_names or (),
        progress=progress or Silent(),
    )
    remarks = data.kind.findings(learner, data.examples.splits)
    log_findings(remarks)
    # An example that cannot be evaluated is better known before the training than after it.
    data.kind.check(learner, data.examples.splits["validation"])
    rows = data.kind.encode(learner, data.examples.splits["train"], training=True)
    token_remarks = learner.token_findings(rows)
    if request.sampling is not None:
        order = data.kind.balanced_order(data.examples.splits["train"])
        rows = some_rows(rows, order)
        token_remarks.append(Finding("sampling", f"balanced sampling makes {len(rows):,} rows of an epoch."))
    log_findings(token_remarks)
    if request.packing:
        rows = data.kind.pack(learner, rows)
    rows, probe_rows, reducer = _reducer(request, data.kind, learner, rows)
    if reducer is not None:
        reducer.attach(model).detach()  # what it cannot work with is refused now
    schedule = schedule_of(request, len(rows), precision)
    return RunSetup(
        request=request,
        base=base,
        data=data,
        model=model,
        config=config,
        schedule=schedule,
        groups=_groups(model, schedule, request.rates),
        rows=rows,
        learner=replace(learner, progress=Silent()),
        reducer=reducer,
        probe_rows=probe_rows,
        init=init,
        findings=(*findings, *remarks, *token_remarks),
    )


def _load_data(request: RunRequest, base: BaseModel) -> TaskData:
    """Return the task of a request with its examples, as a base model learns it."""
    task = request.task_request
    if task.kind is None and (base_kind := claiming_base(base)) is not None:
        task = replace(task, kind=base_kind.name)
    data = choose_metrics(load_task(task, is_causal=base.is_causal), request.metrics)
    return replace(data, kind=data.kind.with_options(request.kind_options))


def _unmeasured_metric(name: str, data: TaskData) -> SpecError:
    """Return the error for a metric of save_best that a run does not measure."""
    measured = (LOSS, *data.task.metrics)
    possible = data.kind.possible_metrics(data.examples)
    try:
        metric = metric_name(name, possible, data.kind.name)
    except SpecError:
        return unknown_name("metric of save_best", name, (*measured, *possible))
    return SpecError(
        f"save_best is '{name}', which this run does not measure; give --metric {metric} with --save-best "
        f"{metric}, or one of {', '.join(measured)}."
    )


def _reducer(
    request: RunRequest, kind: TaskKind, learner: Learner, rows: _Rows
) -> tuple[_Rows, _Rows, Reducer | None]:
    """Return the rows to train on, those held out for probes, and the Reducer, if one was asked for."""
    if request.reducer is None:
        return rows, (), None
    options: dict[str, Any] = {"seed": request.seed, **request.reducer}
    if not ReducerSpec.of(options).needs_probes:
        return rows, (), Reducer(**options)
    rows, probe_rows = hold_out_probes(rows, request.batch_size)
    loader = DataLoader(
        cast(Any, probe_rows), batch_size=request.batch_size, collate_fn=kind.collate(learner)
    )
    loss = kind.loss if kind.has_own_loss else None
    return rows, probe_rows, Reducer(probe_loader=loader, loss=loss, **options)


def _warn_of_basis(config: PeftConfig, task: str) -> None:
    """Warn of a basis that was learned from an adapter of the task itself."""
    for factor in {getattr(config, side, None) for side in ("down", "up")}:
        if isinstance(factor, BasisSpec):
            basis = find_basis(factor.digest)
            if known := sorted(set(task.split("+")) & set(basis.tasks)):
                message = (
                    f"{basis.title} was learned from an adapter of '{known[0]}' too, so this run's score is "
                    "no measure of the basis; learn one without it to compare methods."
                )
                warnings.warn(message, RankfoldWarning, stacklevel=3)


def _with_adapter(loaded_base: LoadedModel, config: PeftConfig) -> PeftModel:
    try:
        with quiet_libraries():
            return cast(PeftModel, get_peft_model(loaded_base.model, config))
    except RankfoldError:
        raise
    except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        words = " ".join(str(error).split()).rstrip(".")
        targets = _quote_names(getattr(config, "target_modules", None))
        raise SpecError(
            f"cannot add the adapter to target_modules {targets} ({words}); change the method's options: "
            f"the model's linear layers are {_quote_names(_linear_names(loaded_base.model))}."
        ) from error


def _linear_names(model: torch.nn.Module) -> set[str]:
    modules: Iterable[tuple[str, torch.nn.Module]] = cast(Any, model).named_modules()
    # Where adding the adapter failed half-way, some layers are inside of others already.
    names = (
        name.removesuffix(".base_layer") for name, module in modules if isinstance(module, torch.nn.Linear)
    )
    return {name.rpartition(".")[2] for name in names}


def _quote_names(names: object) -> str:
    if not isinstance(names, set | list):
        return f"'{names}'"
    return ", ".join(f"'{name}'" for name in sorted(cast("set[str]", names)))


def schedule_of(request: RunRequest, rows: int, precision: str) -> Schedule:
    """Return how a request is trained on a number of rows."""
    epochs = request.epochs or DEFAULT_EPOCHS
    return Schedule(
        steps=request.steps
        or max(1, round(epochs * updates_of_epoch(rows, request.batch_size, request.gradient_accumulation))),
        batch_size=request.batch_size,
        learning_rate=request.learning_rate or recipe_of(request).learning_rate,
        scheduler=request.scheduler,
        warmup=request.warmup,
        weight_decay=request.weight_decay,
        max_grad_norm=request.max_grad_norm,
        precision=precision,
        seed=request.seed,
        optimizer=request.optimizer,
        accumulation=request.gradient_accumulation,
        gradient_checkpointing=request.gradient_checkpointing,
        compiles=request.compile,
        groups_lengths=request.group_by_length,
    )


def _groups(model: PeftModel, schedule: Schedule, rates: Rates) -> list[dict[str, Any]] | None:
    if not rates.non_default():
        return None
    return parameter_groups(
        model, lr=schedule.learning_rate, weight_decay=schedule.weight_decay, **rates.non_default()
    )
