"""MoLA."""

from typing import Annotated

from rankfold.adapter.router import RouterSpec
from rankfold.adapter.spec import AdapterSpec
from rankfold.presets._preset import Alpha, Dropout, Preset, Rank, Seed, balance
from rankfold.presets._recipes import RECIPES


def _spec(
    *,
    r: Rank = 8,
    alpha: Alpha = 16.0,
    dropout: Dropout = 0.05,
    heads: Annotated[
        tuple[int, ...] | int, "experts of each equal part of the blocks, lowest blocks first"
    ] = (
        2,
        4,
        6,
        8,
    ),
    top_k: Annotated[int, "experts chosen for a token"] = 2,
    balance_loss: Annotated[
        float, "coefficient of the switch balance loss; the authors' other variant: 0.001"
    ] = 0.0,
    seed: Seed = 0,
) -> AdapterSpec:
    return AdapterSpec(
        rank=r,
        alpha=alpha,
        dropout=dropout,
        heads=heads,
        down_per_head=True,
        router=RouterSpec(top_k=top_k, balance=balance("switch", balance_loss)),
        seed=seed,
    )


PRESET = Preset(
    name="mola",
    title="MoLA",
    paper="Gao et al., 2024, arXiv:2402.08562",
    summary="Experts with separate down and up factors, more in higher blocks; two experts per token.",
    learning_rate=RECIPES["mola"].learning_rate,
    build=_spec,
)
