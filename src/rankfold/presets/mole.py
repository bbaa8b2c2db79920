"""LLaVA-MoLE."""

from typing import Annotated, Literal

from rankfold.adapter.router import HeadWeights, RouterSpec
from rankfold.adapter.spec import AdapterSpec
from rankfold.presets._preset import Alpha, Dropout, Heads, Preset, Rank, Seed, balance
from rankfold.presets._recipes import RECIPES

Mode = Literal["top1", "dense"]


def _spec(
    *,
    r: Rank = 32,
    alpha: Alpha = 64.0,
    dropout: Dropout = 0.05,
    heads: Heads = 3,
    mode: Annotated[Mode, "top1: one expert per token, as trained; dense: all of them, weighted"] = "top1",
    weights: Annotated[
        HeadWeights,
        "weight of the one expert; renormalized is 1, so that only the balance loss trains the router",
    ] = "renormalized",
    balance_loss: Annotated[float, "coefficient of the balance loss"] = 0.05,
    seed: Seed = 0,
) -> AdapterSpec:
    router = RouterSpec(
        scope="mlp",
        bias=True,
        top_k=1 if mode == "top1" else None,
        weights=weights,
        balance=balance("llava_mole", balance_loss),
    )
    return AdapterSpec(
        rank=r,
        alpha=alpha,
        dropout=dropout,
        heads=heads,
        heads_in="mlp",
        down_per_head=True,
        router=router,
        seed=seed,
    )


PRESET = Preset(
    name="mole",
    title="LLaVA-MoLE",
    paper="Chen et al., 2024, arXiv:2401.16160",
    summary="LoRA in attention; experts in the MLPs, chosen once per MLP from its input.",
    learning_rate=RECIPES["mole"].learning_rate,
    build=_spec,
    targets="all-linear",
)
