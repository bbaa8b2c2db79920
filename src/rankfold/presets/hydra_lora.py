"""HydraLoRA."""

from rankfold.adapter.router import RouterSpec
from rankfold.adapter.spec import AdapterSpec
from rankfold.presets._preset import Alpha, Dropout, Heads, Preset, Rank, Seed
from rankfold.presets._recipes import RECIPES


def _spec(
    *,
    r: Rank = 16,
    alpha: Alpha = 32.0,
    dropout: Dropout = 0.05,
    heads: Heads = 4,
    seed: Seed = 0,
) -> AdapterSpec:
    return AdapterSpec(
        rank=r,
        alpha=alpha,
        dropout=dropout,
        heads=heads,
        router=RouterSpec(reads="input") if heads > 1 else None,
        seed=seed,
    )


PRESET = Preset(
    name="hydra_lora",
    title="HydraLoRA",
    paper="Tian et al., 2024, arXiv:2404.19245",
    summary="One down and several up factors in each layer, weighted by a router on the layer's input.",
    learning_rate=RECIPES["hydra_lora"].learning_rate,
    build=_spec,
)
