"""The one place that writes to PEFT's tables."""

from typing import cast

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import PeftType

from rankfold.peft_plugin.config import RankfoldConfig, RankfoldPeftType
from rankfold.peft_plugin.model import RankfoldModel


def register() -> None:
    """Make rankfold's method known to PEFT. Doing so again changes nothing."""
    # PEFT's own `register_peft_method` takes names of its own enumeration only; the tables take any key that
    # has a value.
    key = cast("PeftType", RankfoldPeftType.RANKFOLD)
    PEFT_TYPE_TO_CONFIG_MAPPING[key] = RankfoldConfig
    PEFT_TYPE_TO_TUNER_MAPPING[key] = RankfoldModel
    PEFT_TYPE_TO_PREFIX_MAPPING[key] = RankfoldModel.prefix
