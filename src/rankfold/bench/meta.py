"""A model on the meta device: its structure, without loading or drawing any weight."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, final

import peft
import torch
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from rankfold.errors import RankfoldError, SpecError, unknown_name
from rankfold.train.models import Kind, is_causal, read_config, resolve_model
from rankfold.train.quiet import quiet_libraries


@final
@dataclass(frozen=True, slots=True)
class MetaBase:
    """A base model of which only the structure is known.

    Attributes:
        described: Its configuration, with the labels of the head.
        kind: What is learned.
    """

    described: PreTrainedConfig
    kind: Kind

    def model(self) -> PreTrainedModel:
        """Return the model, on the meta device.

        Raises:
            SpecError: If transformers cannot build it for this kind of task.
        """
        build = AutoModelForCausalLM if self.kind is Kind.INSTRUCTION else AutoModelForSequenceClassification
        try:
            with quiet_libraries(), torch.device("meta"):
                return cast(Any, build).from_config(self.described)
        except (ValueError, KeyError, AttributeError) as error:
            raise SpecError(
                f"the model cannot be built ({_words(error)}); check its configuration."
            ) from error

    def adapted(self, config: PeftConfig) -> tuple[int, PeftModel]:
        """Return the parameters of the base model, and the model with its adapter, all on the meta device.

        Raises:
            SpecError: If the adapter cannot be built on this model.
        """
        model = self.model()
        base = sum(parameter.numel() for parameter in model.parameters())
        try:
            with quiet_libraries(), torch.device("meta"):
                return base, cast(PeftModel, peft.get_peft_model(model, config))
        except RankfoldError:
            raise
        except (ValueError, KeyError, AttributeError) as error:
            raise SpecError(
                f"the adapter cannot be built on this model ({_words(error)}); change its options."
            ) from error


def meta_base(model: str, *, kind: str | None, num_labels: int) -> MetaBase:
    """Return a model whose weights are never made.

    Args:
        model: As for `rankfold train`, or the path of a `config.json`.
        kind: What is learned; by the model's architecture if None.
        num_labels: Classes of a classification.

    Raises:
        SpecError: If there is no such model or kind, or the model's configuration cannot be read.
    """
    if kind is not None and kind not in set(Kind):
        raise unknown_name("kind", kind, Kind)
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


def _words(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
