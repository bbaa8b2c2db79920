"""What training a method on a model takes, from structure alone: its numbers and the work of a step."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from peft import PeftConfig, PeftModel
from pydantic import JsonValue

from rankfold.adapter.cost import adapter_work
from rankfold.bench.estimates.meta import MetaBase
from rankfold.bench.estimates.trace import Trace, trace_step
from rankfold.bench.methods.method import find_method
from rankfold.bench.methods.trained import count_numbers, freeze_rest
from rankfold.bench.records.record import ParametersPart
from rankfold.bench.request import RunRequest
from rankfold.errors import SpecError
from rankfold.peft_plugin.config import RankfoldConfig
from rankfold.peft_plugin.plan import plan_adapters
from rankfold.train.reducer.reducer import Reducer
from rankfold.train.reducer.spec import ReducerSpec

# What comes of looking at values where there are none.
_UNTRACEABLE = (RuntimeError, ValueError, TypeError, AttributeError)


@dataclass(frozen=True, slots=True)
class Workload:
    """What training takes.

    Args:
        base: Numbers of the base model, its task head included.
        parameters: Numbers of the adapter and of the head beside it.
        trained: How many of them are trained: all, but for a frozen head.
        step: What one step takes.
        probe_flops: Operations of a Reducer's probes, on average over the steps.
        left_out: What `step` does not have of the adapter, in words; None if it has all.
    """

    base: int
    parameters: ParametersPart
    trained: int
    step: Trace
    probe_flops: float = 0.0
    left_out: str | None = None

    def flops(self, steps: int) -> float:
        """Return the operations of so many steps."""
        return steps * (self.step.flops + self.probe_flops)


def measure_workload(
    base: MetaBase, config: PeftConfig, request: RunRequest, *, rows: int, length: int
) -> Workload:
    """Return what training takes; no weight is made.

    Args:
        base: The model.
        config: What came of the method and its options.
        request: Says the method, and what rests: a frozen head, or what a Reducer does not choose.
        rows: Of a batch.
        length: Tokens of a row.

    Raises:
        SpecError: If the adapter cannot be built on this model, the model cannot work without weights, or the
            Reducer has nothing to choose.
    """
    numbers, model = base.adapted(config)
    freeze_rest(model, find_method(request.method), freeze_head=request.freeze_head)
    parameters = count_numbers(model)
    trained = parameters.trainable + (0 if request.freeze_head else parameters.head)
    with _reduced(model, request.reducer):
        parameters = replace(parameters, active=count_numbers(model).active)
        step, left_out = _step(base, model, config, rows, length)
    probe_flops = 0.0
    if request.reducer is not None:
        probe_flops = _probes(ReducerSpec.of(request.reducer)) * step.forward_flops
    return Workload(numbers, parameters, trained, step, probe_flops, left_out)


def _step(
    base: MetaBase, model: PeftModel, config: PeftConfig, rows: int, length: int
) -> tuple[Trace, str | None]:
    """Return what a step takes, and what that lacks because the adapter cannot work without weights."""
    try:
        return trace_step(model, rows, length), None
    except _UNTRACEABLE:
        bare = base.model().requires_grad_(requires_grad=False)
    try:
        step = trace_step(bare, rows, length)
    except _UNTRACEABLE as error:
        raise SpecError(
            f"the model cannot be followed without weights ({_reason(error)}); measure a short run instead."
        ) from error
    if not isinstance(config, RankfoldConfig):
        return step, "what the adapter computes and keeps"
    work = adapter_work(plan_adapters(bare, config), rows * length)
    return replace(step, flops=step.flops + round(work.flops)), "what the adapter keeps"


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()).partition(". ")[0].rstrip(".")


@contextmanager
def _reduced(model: PeftModel, reducer: Mapping[str, JsonValue] | None) -> Generator[None]:
    """Let the layers rest that a Reducer would let rest in one step."""
    if reducer is None or ReducerSpec.of(reducer).select == "all":
        yield
        return
    options: dict[str, Any] = dict(reducer)
    if ReducerSpec.of(reducer).select == "importance":
        options["select"] = "random"  # without losses nothing is important, and any draw has as many layers
    attached = Reducer(**options).attach(model)
    attached.before_step()
    yield
    attached.detach()


def _probes(spec: ReducerSpec) -> float:
    """Return how many forward passes of probes there are for each step, on average."""
    if not spec.needs_probes:
        return 0.0
    sets = 1 if spec.suppress_select == "lowest" else spec.probes
    baseline = spec.score_rule == "loss_delta"
    return (sets + baseline) / spec.interval
