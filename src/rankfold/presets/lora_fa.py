"""LoRA-FA."""

from rankfold.adapter.spec import AdapterSpec
from rankfold.factors import DenseSpec, SeededSpec
from rankfold.presets._preset import Alpha, Dropout, Preset, Rank, Seed
from rankfold.presets._recipes import RECIPES


def _spec(*, r: Rank = 8, alpha: Alpha = 16.0, dropout: Dropout = 0.0, seed: Seed = 0) -> AdapterSpec:
    return AdapterSpec(
        rank=r, alpha=alpha, dropout=dropout, down=SeededSpec(), up=DenseSpec("zeros"), seed=seed
    )


PRESET = Preset(
    name="lora_fa",
    title="LoRA-FA",
    paper="Zhang et al., 2023, arXiv:2308.03303",
    summary="LoRA with the down factor frozen at its random initial values, stored as a seed.",
    learning_rate=RECIPES["lora_fa"].learning_rate,
    build=_spec,
)
