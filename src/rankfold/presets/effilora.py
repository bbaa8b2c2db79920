"""EffiLoRA."""

from typing import Annotated

from rankfold.adapter.router import RouterInput, RouterSpec
from rankfold.adapter.spec import AdapterSpec
from rankfold.errors import SpecError
from rankfold.factors import Share
from rankfold.presets._preset import Alpha, Dropout, Heads, Preset, Rank, Seed, balance
from rankfold.presets._recipes import RECIPES


def _spec(
    *,
    r: Rank = 16,
    alpha: Alpha = 32.0,
    dropout: Dropout = 0.05,
    heads: Heads = 4,
    share: Annotated[Share, "which layers use one down factor"] = "in_features",
    router_reads: Annotated[RouterInput, "input of the router; code fits the paper's counts"] = "code",
    balance_loss: Annotated[
        float, "coefficient of LLaVA-MoLE's balance loss, which the paper leaves out"
    ] = 0.0,
    seed: Seed = 0,
) -> AdapterSpec:
    if heads == 1 and (router_reads, balance_loss) != ("code", 0.0):
        raise SpecError(
            "one head has no router; leave out router_reads and balance_loss, or give more heads."
        )
    router = RouterSpec(reads=router_reads, balance=balance("llava_mole", balance_loss))
    return AdapterSpec(
        rank=r,
        alpha=alpha,
        dropout=dropout,
        share_down=share,
        heads=heads,
        router=router if heads > 1 else None,
        seed=seed,
    )


PRESET = Preset(
    name="effilora",
    title="EffiLoRA",
    paper="Tian et al., 2025, arXiv:2512.00878",
    summary="One down factor per input width; several up factors in each layer, weighted by a router.",
    learning_rate=RECIPES["effilora"].learning_rate,
    build=_spec,
)
