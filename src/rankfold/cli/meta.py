"""A model and a method on the meta device: their structure, without loading or drawing any weight."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast, final

import click

from rankfold.cli.options import set_option
from rankfold.errors import RankfoldError, SpecError

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedConfig

    from rankfold.train.models import Kind

_KINDS = ("classification", "regression", "instruction")

_Function = TypeVar("_Function", bound=Callable[..., Any])


def model_and_method_options(command: _Function) -> _Function:
    """Add the options that say which method on which model."""
    for option in (
        click.option(
            "--num-labels",
            type=click.IntRange(min=1),
            default=2,
            show_default=True,
            help="Classes of the head.",
        ),
        click.option(
            "--task-kind", type=click.Choice(_KINDS), help="What is learned; by the architecture if left out."
        ),
        set_option,
        click.option(
            "--method",
            required=True,
            help="A method of `rankfold methods`, or one of PEFT's, such as peft:lora.",
        ),
        click.option("--model", required=True, help="minilm, smollm2, a folder, a config.json or a hub id."),
    ):
        command = cast("_Function", option(command))
    return command


@final
@dataclass(frozen=True, slots=True)
class MetaBase:
    """A base model of which only the structure is known.

    Attributes:
        described: Its configuration, with the labels of the head.
        kind: What is learned.
    """

    described: "PreTrainedConfig"
    kind: "Kind"

    def adapted(self, config: "PeftConfig") -> "tuple[int, PeftModel]":
        """Return the parameters of the base model, and the model with its adapter, all on the meta device.

        Raises:
            SpecError: If the adapter cannot be built on this model.
        """
        import peft
        import torch
        from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

        from rankfold.train.models import Kind
        from rankfold.train.quiet import quiet_libraries

        build = AutoModelForCausalLM if self.kind is Kind.INSTRUCTION else AutoModelForSequenceClassification
        try:
            with quiet_libraries(), torch.device("meta"):
                model = cast("Any", build).from_config(self.described)
                base = sum(parameter.numel() for parameter in model.parameters())
                return base, cast("PeftModel", peft.get_peft_model(model, config))
        except RankfoldError:
            raise
        except (ValueError, KeyError, AttributeError) as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise SpecError(
                f"the adapter cannot be built on this model ({reason}); change its options."
            ) from error


def meta_base(model: str, *, kind: str | None, num_labels: int) -> MetaBase:
    """Return a model whose weights are never made.

    Args:
        model: As for `rankfold train`, or the path of a `config.json`.
        kind: What is learned; by the model's architecture if None.
        num_labels: Classes of a classification.

    Raises:
        SpecError: If there is no such model, or its configuration cannot be read.
    """
    from rankfold.train.models import Kind, is_causal, read_config, resolve_model

    path = Path(model)
    if path.suffix == ".json" and path.is_file():
        described = read_config(model)
        generates = is_causal(described)
    else:
        base = resolve_model(model)
        described, generates = base.config(), base.is_causal
    usual = Kind.INSTRUCTION if generates else Kind.CLASSIFICATION
    chosen = Kind(kind) if kind else usual
    described.num_labels = num_labels if chosen is Kind.CLASSIFICATION else 1
    return MetaBase(described, chosen)
