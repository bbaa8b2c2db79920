"""Parameter counts of a method on a model, without its weights."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from peft import LoraConfig, PeftConfig
from pydantic import JsonValue

from rankfold.peft_plugin.count import count_parameters
from rankfold.runs.methods import find_method, freeze_rest, parameters_of_run
from rankfold.tasks.kinds import kind_base


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
