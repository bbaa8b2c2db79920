"""ShareLoRA."""

from typing import Annotated, Literal

from rankfold.adapter.spec import AdapterSpec
from rankfold.factors import Share
from rankfold.presets._preset import Alpha, Dropout, Preset, Rank, Seed
from rankfold.presets._recipes import RECIPES


def _spec(
    *,
    r: Rank = 8,
    alpha: Alpha = 16.0,
    dropout: Dropout = 0.0,
    shared: Annotated[Literal["down", "up", "both"], "which factor the layers share"] = "down",
    scope: Annotated[Literal["module_type", "slice"], "which layers share it"] = "module_type",
    seed: Seed = 0,
) -> AdapterSpec:
    share: Share = scope
    return AdapterSpec(
        rank=r,
        alpha=alpha,
        dropout=dropout,
        share_down="none" if shared == "up" else share,
        share_up="none" if shared == "down" else share,
        seed=seed,
    )


PRESET = Preset(
    name="share_lora",
    title="ShareLoRA",
    paper="Song et al., 2024, arXiv:2406.10785",
    summary="LoRA with one down factor for all layers of a module type.",
    learning_rate=RECIPES["share_lora"].learning_rate,
    build=_spec,
)
