"""LoRA."""

from typing import Annotated

from rankfold.adapter.spec import AdapterSpec, Scaling
from rankfold.presets._preset import Alpha, Dropout, Preset, Rank, Seed
from rankfold.presets._recipes import RECIPES


def _spec(
    *,
    r: Rank = 8,
    alpha: Alpha = 16.0,
    dropout: Dropout = 0.0,
    scaling: Annotated[Scaling, "multiplier of the adapter's output"] = "alpha_over_r",
    seed: Seed = 0,
) -> AdapterSpec:
    return AdapterSpec(
        rank=r,
        alpha=alpha,
        dropout=dropout,
        scaling=scaling,
        seed=seed,
    )


PRESET = Preset(
    name="lora",
    title="LoRA",
    paper="Hu et al., 2022, arXiv:2106.09685",
    summary="Two dense factors; the up factor starts at zero.",
    learning_rate=RECIPES["lora"].learning_rate,
    build=_spec,
)
