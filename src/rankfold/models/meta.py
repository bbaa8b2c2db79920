"""A model on the meta device: its structure, without loading or drawing any weight."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, final

import peft
import torch
from peft import PeftConfig, PeftModel
from transformers import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import hub

from rankfold.errors import RankfoldError, SpecError
from rankfold.models.architectures import architecture_names, read_architecture
from rankfold.models.base import (
    TaskHead,
    is_causal,
    needs_code,
    read_config,
    refuse_code,
    resolve_model,
)
from rankfold.models.pipelines import build_denoiser
from rankfold.progress import quiet_libraries

logger = logging.getLogger("rankfold.models")


@final
@dataclass(frozen=True, slots=True)
class MetaBase:
    """A base model of which only the structure is known.

    Attributes:
        config: Its configuration, with the labels of the head.
        head: The class of the model, and its task head.
        source: Where the structure is from.
    """

    config: PreTrainedConfig
    head: TaskHead
    source: str

    @property
    def has_class(self) -> bool:
        """Whether transformers has a class of this type of model for the kind of task."""
        auto_class = self.head.auto_class
        return auto_class is None or type(self.config) in auto_class._model_mapping

    def model(self) -> PreTrainedModel:
        """Return the model, on the meta device.

        Raises:
            SpecError: If transformers cannot build it for this kind of task.
        """
        if not self.has_class:
            raise SpecError(
                f"a model of type '{self.config.model_type}' cannot be built for tasks of the kind "
                f"{self.head.kind}; name another kind by --kind."
            )
        try:
            with quiet_libraries(), torch.device("meta"):
                if self.head.auto_class is None:
                    return cast(PreTrainedModel, build_denoiser(self.config))
                return self.head.auto_class.from_config(self.config, trust_remote_code=False)
        except (ValueError, KeyError, AttributeError) as error:
            if needs_code(error):
                raise refuse_code(self.source) from error
            raise SpecError(
                f"the model cannot be built ({_words(error)}); check its configuration."
            ) from error

    def with_adapter(self, config: PeftConfig) -> tuple[int, PeftModel]:
        """Return the parameters of the base model, and the model with its adapter, all on the meta device.

        Raises:
            SpecError: If the adapter cannot be built on this model.
        """
        model = self.model()
        base = sum(parameter.numel() for parameter in model.parameters())
        try:
            with quiet_libraries(), torch.device("meta"):
                peft_model = cast(PeftModel, peft.get_peft_model(model, config))
        except RankfoldError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise SpecError(
                f"the adapter cannot be built on this model ({_words(error)}); change its options."
            ) from error
        except RuntimeError as error:
            raise SpecError(
                f"the adapter cannot be built without weights ({_words(error).partition('. ')[0]}); "
                "count it where the weights are, with `rankfold train --dry-run`."
            ) from error
        return base, peft_model


def meta_base(model: str, head_for: Callable[[bool], TaskHead]) -> MetaBase:
    """Return a model whose weights are never made.

    The papers' models need no files: where neither a folder nor the hub's cache has them, their structure is
    the one that comes with rankfold.

    Args:
        model: As for `rankfold train`, or the path of a `config.json`.
        head_for: Returns the task head, given whether the model continues text.

    Raises:
        SpecError: If there is no such model, or its configuration cannot be read.
    """
    config, generates, source = _read_structure(model)
    head = head_for(generates)
    config.num_labels = head.num_labels or 1
    return MetaBase(config, head, source)


def generates_text(model: str) -> bool:
    """Return whether a model continues text, by its structure alone.

    Args:
        model: As for `meta_base`.

    Raises:
        SpecError: If there is no such model, or its configuration cannot be read.
    """
    return _read_structure(model)[1]


def _read_structure(model: str) -> tuple[PreTrainedConfig, bool, str]:
    """Return the configuration of a model, whether it continues text, and where it is from."""
    path = Path(model)
    if path.suffix == ".json" and path.is_file():
        config = read_config(model)
        return config, is_causal(config), model
    if model in architecture_names() and not path.exists() and not _is_cached(model):
        logger.info("the structure of '%s' is the one that comes with rankfold.", model)
        config = read_architecture(model)
        return config, is_causal(config), "rankfold"
    try:
        base = resolve_model(model)
    except SpecError as error:
        if path.exists():
            raise
        names = ", ".join(architecture_names())
        raise SpecError(f"{error} The structures of these are known without it: {names}.") from error
    return base.config(), base.is_causal, base.source


def _is_cached(model: str) -> bool:
    try:
        return bool(cast(Any, hub).cached_file(model, "config.json", local_files_only=True))
    except OSError:
        return False


def _words(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
