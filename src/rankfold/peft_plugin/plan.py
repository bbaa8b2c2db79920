"""What a configuration would add to a model, without adding it."""

from torch import nn

from rankfold.adapter.build import Builder
from rankfold.peft_plugin.config import RankfoldConfig
from rankfold.peft_plugin.model import RankfoldModel
from rankfold.peft_plugin.targets import find_targets


def plan_adapters(model: nn.Module, config: RankfoldConfig) -> Builder:
    """Return the builder of the adapters that a configuration would add; nothing is built or changed.

    Args:
        model: The base model, which may be on the meta device.
        config: The configuration, which stays as it is.

    Raises:
        SpecError: If a target matches nothing or cannot be adapted, or a rank is larger than a layer.
        ValueError: If the configuration names no layers, and PEFT does not know the model's usual ones.
    """
    # Which layers are meant can be asked of a tuner that has never been put on a model.
    targets = find_targets(RankfoldModel.__new__(RankfoldModel), model, config, None)
    return Builder({each.path: each.site for each in targets.values()}, name="default")
