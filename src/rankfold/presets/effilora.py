"""EffiLoRA with one head."""

from typing import Annotated

from rankfold.adapter.spec import AdapterSpec
from rankfold.factors import DenseSpec, Share
from rankfold.presets._preset import Alpha, Dropout, Preset, Rank, Seed


def _spec(
    *,
    r: Rank = 16,
    alpha: Alpha = 32.0,
    dropout: Dropout = 0.05,
    share: Annotated[Share, "which layers use one down factor"] = "in_features",
    seed: Seed = 0,
) -> AdapterSpec:
    return AdapterSpec(
        rank=r,
        alpha=alpha,
        dropout=dropout,
        down=DenseSpec(),
        up=DenseSpec("zeros"),
        share_down=share,
        seed=seed,
    )


PRESET = Preset(
    name="effilora",
    title="EffiLoRA",
    paper="Tian et al., 2025, arXiv:2512.00878",
    summary="One down factor for all layers of an input width, an up factor for each layer.",
    learning_rate=1e-3,
    build=_spec,
)
