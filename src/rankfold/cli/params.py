"""`rankfold params`: what a method would train on a model, counted without loading or drawing any weight."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

import click

from rankfold.cli.console import note, print_json, print_table
from rankfold.cli.meta import model_and_method_options
from rankfold.cli.notes import shown_notes
from rankfold.cli.options import json_option, parse_settings

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel


@dataclass(frozen=True, slots=True)
class Counted:
    """The numbers of one adapter on one model.

    Attributes:
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
    model: str, method: str, options: dict[str, Any], *, kind: str | None, num_labels: int
) -> Counted:
    """Count what a method would train on a model whose weights are never made.

    Args:
        model: As for `rankfold train`, or the path of a `config.json`.
        method: A preset's name, or `peft:` and one of PEFT's methods.
        options: The method's options and PEFT's targeting options.
        kind: What is learned; by the model's architecture if None.
        num_labels: Classes of a classification.

    Raises:
        SpecError: If model, method or options cannot be built as asked.
    """
    import rankfold  # seconds of imports that --help can do without
    from rankfold.bench.meta import meta_base
    from rankfold.bench.method import PEFT_PREFIX, method_config

    plan = meta_base(model, kind=kind, num_labels=num_labels)
    config = method_config(method, options, plan.kind, seed=0)
    base, adapted = plan.adapted(config)
    lora = _plain_lora(config)
    head = sum(p.numel() for name, p in adapted.named_parameters() if ".modules_to_save." in name)
    reference = None if lora is None else _trainable(plan.adapted(lora)[1]) - head
    if method.startswith(PEFT_PREFIX):
        trainable = _trainable(adapted) - head
        return Counted(
            base, _stored(adapted) - head, trainable, trainable, head, *_by_name(adapted), reference
        )
    count = rankfold.count_parameters(adapted)
    by_factor = {name: part.trainable for name, part in count.by_factor.items() if part.trainable}
    by_module = {name: part.trainable for name, part in count.by_module.items()}
    return Counted(base, count.stored, count.trainable, count.active, head, by_factor, by_module, reference)


def _plain_lora(config: "PeftConfig") -> "PeftConfig | None":
    """Return PEFT's own LoRA with the rank and the targets of a configuration that has been applied."""
    from peft import LoraConfig

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


def _trainable(model: "PeftModel") -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _stored(model: "PeftModel") -> int:
    import peft

    state = cast("dict[str, Any]", cast("Any", peft).get_peft_model_state_dict(model))
    return sum(tensor.numel() for tensor in state.values())


def _by_name(model: "PeftModel") -> tuple[dict[str, int], dict[str, int]]:
    """Return trainable numbers of any PEFT method by factor and by layer, read from its tensors' names."""
    factors: dict[str, int] = {}
    modules: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or ".modules_to_save." in name:
            continue
        path, _, factor = name.removesuffix(".weight").removesuffix(".default").rpartition(".")
        factors[factor] = factors.get(factor, 0) + parameter.numel()
        modules[path] = modules.get(path, 0) + parameter.numel()
    return factors, modules


@click.command()
@model_and_method_options
@click.option("--by-module", is_flag=True, help="Show every layer.")
@json_option
def command(
    *,
    model: str,
    method: str,
    settings: Sequence[str],
    task_kind: str | None,
    num_labels: int,
    by_module: bool,
    as_json: bool,
) -> None:
    """Count what a method would train on a model, without loading weights."""
    with shown_notes():
        counted = count_on_meta(
            model, method, parse_settings(settings), kind=task_kind, num_labels=num_labels
        )
    if as_json:
        print_json({"model": model, "method": method, **asdict(counted)})
        return
    parts = [
        ("stored", counted.stored),
        ("trainable", counted.trainable),
        ("active", counted.active),
        *((f"  {name}", count) for name, count in counted.by_factor.items()),
        ("task head", counted.head),
        *([] if counted.lora is None else [("plain LoRA of the same rank", counted.lora)]),
        ("base model", counted.base),
    ]
    rows = [[name, f"{count:,}", f"{count / counted.base:.4%}"] for name, count in parts]
    print_table(["numbers", "count", "of the base"], rows, title=f"{method} on {model}")
    if by_module:
        layers = [[path, f"{count:,}"] for path, count in counted.by_module.items()]
        print_table(["layer", "trainable"], layers)
    if counted.lora:
        note(f"{method} trains {counted.trainable / counted.lora:.1%} of what plain LoRA trains.")
