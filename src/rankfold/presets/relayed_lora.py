"""Relayed LoRA (quad-matrix)."""

from typing import Annotated, Literal

from rankfold.adapter.spec import AdapterSpec
from rankfold.errors import SpecError
from rankfold.factors import RelayMap, RelaySpec
from rankfold.presets._preset import Alpha, Dropout, Preset, Rank, Reading, Seed
from rankfold.presets._recipes import RECIPES


def _spec(
    *,
    r: Rank = 8,
    k: Annotated[int, "inner width of the square products"] = 8,
    alpha: Alpha = 16.0,
    dropout: Dropout = 0.0,
    map: Annotated[
        RelayMap | None, "entry of the square to entry of the factor; none: that of the reading"
    ] = None,
    zero: Annotated[
        Literal["down", "up"] | None,
        "which factor starts at zero; none: up, and down in the paper's reading, which moves the layers "
        "three times as far in each step: four of nine runs on query and value never left their start",
    ] = None,
    std: Annotated[
        float | None, "standard deviation of the small matrices; none: LoRA's variance for the product"
    ] = None,
    reading: Annotated[
        Reading,
        "paper: row_major map, whose rank may be capped, and zero on the down side, which fails by chance; "
        "recommended: strided, up",
    ] = "recommended",
    seed: Seed = 0,
) -> AdapterSpec:
    order: RelayMap = map or ("row_major" if reading == "paper" else "strided")
    if map is not None and reading == "paper" and map != "row_major":
        raise SpecError(f"map='{map}' is not the paper's reading; leave out one of map and reading.")
    # Measured: zero on the down side stays at its start by chance, in about half the runs on query and value.
    zero_side = zero or ("down" if reading == "paper" else "up")
    return AdapterSpec(
        rank=r,
        alpha=alpha,
        dropout=dropout,
        down=RelaySpec(k, order, initial="zeros" if zero_side == "down" else "kaiming", std=std),
        up=RelaySpec(k, order, initial="zeros" if zero_side == "up" else "kaiming", std=std),
        seed=seed,
    )


PRESET = Preset(
    name="relayed_lora",
    title="Relayed LoRA",
    paper="Relayed LoRA, section 3, eq. 5-12",
    summary="Both factors are read from square products of two small matrices: 2k(d_up + d_down) parameters.",
    learning_rate=RECIPES["relayed_lora"].learning_rate,
    build=_spec,
    # One square for the whole model, a seeded down factor, and a learned scale for each layer.
    compositions=(
        *({"share_down": "entries", "share_up": "entries", "k": k} for k in (1, 2, 4, 8, 16)),
        *({"down": "seeded", "k": k} for k in (1, 2, 4, 8)),
        {"scaling": "learned", "k": 1},
    ),
    former_defaults={"zero": "down"},
)
