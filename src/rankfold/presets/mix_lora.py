"""MixLoRA."""

from typing import Annotated

from rankfold.adapter.router import RouterSpec
from rankfold.adapter.spec import AdapterSpec
from rankfold.presets._preset import Alpha, Dropout, Heads, Preset, Rank, Seed, balance
from rankfold.presets._recipes import RECIPES


def _spec(
    *,
    r: Rank = 16,
    alpha: Alpha = 32.0,
    dropout: Dropout = 0.05,
    heads: Heads = 8,
    top_k: Annotated[int, "experts chosen for a token"] = 2,
    jitter: Annotated[float, "in training, the router's input is multiplied by 1 +- jitter"] = 0.0,
    balance_loss: Annotated[float, "coefficient of Mixtral's balance loss; the paper: 0.01"] = 0.001,
    seed: Seed = 0,
) -> AdapterSpec:
    router = RouterSpec(
        scope="experts",
        initial="normal",
        top_k=top_k,
        jitter=jitter,
        balance=balance("mixtral", balance_loss),
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
    name="mix_lora",
    title="MixLoRA",
    paper="Li et al., 2024, arXiv:2404.15159",
    summary="LoRA in attention; each expert is a whole MLP with its own adapter; two experts per token.",
    learning_rate=RECIPES["mix_lora"].learning_rate,
    build=_spec,
    targets="all-linear",
)
