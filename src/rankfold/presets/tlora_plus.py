"""TLoRA+ (tri-matrix)."""

from typing import Annotated, Literal

from rankfold.adapter.spec import AdapterSpec
from rankfold.errors import SpecError
from rankfold.factors import DenseSpec, FactorSpec, SeededSpec
from rankfold.presets._preset import Dropout, Preset, Rank, Reading, Seed
from rankfold.presets._recipes import RECIPES

TrainedFactors = Literal["all", "core", "core_and_down", "core_and_up"]


def _spec(
    *,
    r: Rank = 8,
    rank_up: Annotated[int | None, "columns of the up factor; none: r"] = None,
    train: Annotated[
        TrainedFactors, "which factors are trained; the others are frozen and stored as a seed"
    ] = "all",
    dropout: Dropout = 0.0,
    alpha: Annotated[float | None, "scale by alpha / r; none: no scaling, as the paper states none"] = None,
    reading: Annotated[
        Reading,
        "paper: the core starts random, so a fresh adapter changes the model; recommended: it starts at zero",
    ] = "recommended",
    seed: Seed = 0,
) -> AdapterSpec:
    def side(trained_by: tuple[TrainedFactors, ...]) -> FactorSpec:
        return DenseSpec("lecun") if train in trained_by else SeededSpec("lecun")

    if alpha is not None and alpha == 0:
        raise SpecError("alpha=0 makes an adapter that changes nothing; leave it out for no scaling.")
    return AdapterSpec(
        rank=r,
        rank_up=rank_up,
        alpha=alpha or 1.0,
        scaling="none" if alpha is None else "alpha_over_r",
        dropout=dropout,
        down=side(("all", "core_and_down")),
        core=DenseSpec("lecun" if reading == "paper" else "zeros"),
        up=side(("all", "core_and_up")),
        seed=seed,
    )


PRESET = Preset(
    name="tlora_plus",
    title="TLoRA+",
    paper="Cao and Liu, 2026, eq. 1-8",
    summary="Three dense factors; an option selects which of them are trained.",
    learning_rate=RECIPES["tlora_plus"].learning_rate,
    build=_spec,
)
