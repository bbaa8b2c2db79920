"""How many numbers a method would train on a model, and where, counted without any weight."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from peft import LoraConfig, PeftConfig
from pydantic import JsonValue

from rankfold.peft_plugin.count import count_parameters
from rankfold.runs.methods import find_method, freeze_rest, parameters_of_run
from rankfold.tasks.kinds import kind_base


@dataclass(frozen=True, slots=True)
class MethodCount:
    """The numbers of one adapter on one model.

    Args:
        base: Parameters of the base model, its task head included.
        stored: What the adapter's file keeps.
        trainable: What the method trains.
        active: What would be updated in a step now.
        head: Trained numbers beside the adapter.
        by_factor: Trainable numbers by the factor's role.
        by_module: Trainable numbers by the layer's path; a shared factor counts at the layer that owns it.
        lora: Trainable numbers of plain LoRA of the same rank on the same layers; None without a rank.
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
    """Count what a method would train on a model whose weights are never made.

    Args:
        model: As for `rankfold train`, or the path of a `config.json`.
        method: The name of any method.
        options: The method's options and PEFT's targeting options.
        kind: What is learned; by the model's architecture if None.
        num_labels: Classes of a classification.

    Raises:
        SpecError: If model, method or options cannot be built as asked, or nothing would be trained.
    """
    plan, found = kind_base(model, kind=kind, num_labels=num_labels), find_method(method)
    config = found.config(options, plan.head.task_type, seed=0)
    base, adapted = plan.with_adapter(config)
    freeze_rest(adapted, found)
    lora = _plain_lora(config) if found.trains_adapter else None
    reference = None if lora is None else count_parameters(plan.with_adapter(lora)[1]).active
    count = count_parameters(adapted)
    by_factor, by_module = (
        {name: part.active for name, part in parts.items() if part.active}
        for parts in (count.by_factor, count.by_module)
    )
    numbers = asdict(parameters_of_run(adapted))
    return MethodCount(base, **numbers, by_factor=by_factor, by_module=by_module, lora=reference)


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
