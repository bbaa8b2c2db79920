"""NoRA (nested LoRA)."""

from typing import Annotated

from rankfold.adapter.spec import AdapterSpec
from rankfold.factors import LowRankSpec, Split, SvdSpec
from rankfold.presets._preset import Alpha, Dropout, Preset, Rank, Seed
from rankfold.presets._recipes import RECIPES


def _spec(
    *,
    r: Rank = 32,
    inner: Annotated[int, "rank of the trained inner pair"] = 8,
    alpha: Alpha = 32.0,
    dropout: Dropout = 0.0,
    split: Annotated[Split, "which outer factor gets the singular values; even: both their roots"] = "up",
    seed: Seed = 0,
) -> AdapterSpec:
    return AdapterSpec(
        rank=r,
        alpha=alpha,
        dropout=dropout,
        down=SvdSpec(split),
        core=LowRankSpec(inner),
        up=SvdSpec(split),
        seed=seed,
    )


PRESET = Preset(
    name="nora",
    title="NoRA",
    paper="Lin et al., 2024, arXiv:2408.10280",
    summary="Frozen outer factors from the base weight's singular vectors; a trained low-rank core.",
    learning_rate=RECIPES["nora"].learning_rate,
    build=_spec,
)
