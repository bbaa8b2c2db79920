"""The class that a base model is loaded as: that of the model which the adapter was trained on."""

from collections.abc import Mapping
from typing import Any, cast

import transformers
from peft.utils import TaskType
from transformers import PreTrainedConfig, PreTrainedModel

from rankfold.errors import SpecError
from rankfold.peft_plugin.config import RankfoldConfig

_OF_TASKS: Mapping[str, str] = {
    TaskType.SEQ_CLS: "AutoModelForSequenceClassification",
    TaskType.CAUSAL_LM: "AutoModelForCausalLM",
    TaskType.SEQ_2_SEQ_LM: "AutoModelForSeq2SeqLM",
    TaskType.TOKEN_CLS: "AutoModelForTokenClassification",
    TaskType.QUESTION_ANS: "AutoModelForQuestionAnswering",
    TaskType.FEATURE_EXTRACTION: "AutoModel",
}


def model_class(config: RankfoldConfig, described: PreTrainedConfig) -> Any:
    """Return a class of transformers with `from_pretrained`.

    An adapter says its type of task; where it has none PEFT keeps the class of the model that it was on; and
    the base model's files name one.

    Args:
        config: The adapter's.
        described: The base model's.

    Raises:
        SpecError: If transformers has no such class.
    """
    if config.task_type is not None:
        return getattr(transformers, _OF_TASKS[config.task_type])
    mapping = cast("Mapping[str, str]", config.auto_mapping or {})  # pyright: ignore[reportUnknownMemberType] (PEFT's)
    architectures: list[str] = getattr(described, "architectures", None) or []
    name = mapping.get("base_model_class") or next(iter(architectures), None)
    if name is None:
        return transformers.AutoModel
    # Only transformers' own: a name in a file must not choose what is imported.
    found: Any = getattr(transformers, name, None)
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise SpecError(
            f"transformers has no model '{name}', which the adapter was trained on; "
            "save the adapter again with a task_type."
        )
    return found
