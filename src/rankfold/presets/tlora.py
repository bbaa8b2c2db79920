"""TLoRA (tri-matrix with frozen sides)."""

from typing import Annotated

from rankfold.adapter.spec import AdapterSpec
from rankfold.factors import DenseSpec, SeededSpec
from rankfold.presets._preset import Preset, Rank, Reading, Seed
from rankfold.presets._recipes import RECIPES


def _spec(
    *,
    r: Rank = 32,
    dropout: Annotated[float | None, "dropout of the adapter's output; none: that of the reading"] = None,
    reading: Annotated[
        Reading, "paper: output dropout 0.5 and a trained multiplier; recommended: a trained multiplier only"
    ] = "recommended",
    seed: Seed = 0,
) -> AdapterSpec:
    default_dropout = 0.5 if reading == "paper" else 0.0
    return AdapterSpec(
        rank=r,
        scaling="learned",
        dropout=default_dropout if dropout is None else dropout,
        dropout_position="output",
        down=SeededSpec("islam"),
        core=DenseSpec("zeros"),
        up=SeededSpec("islam"),
        seed=seed,
    )


PRESET = Preset(
    name="tlora",
    title="TLoRA",
    paper="Islam, 2025, arXiv:2504.18735",
    summary="Frozen random down and up factors, stored as a seed; a small core and a multiplier are trained.",
    learning_rate=RECIPES["tlora"].learning_rate,
    build=_spec,
    # The paper adapts query and value only. That is too little for a small model: r * r numbers a layer.
    targets="all-linear",
)
