"""LoRAMoE."""

from typing import Annotated, Literal

from rankfold.adapter.router import RouterSpec
from rankfold.adapter.spec import AdapterSpec
from rankfold.presets._preset import Dropout, Preset, Seed, balance
from rankfold.presets._recipes import RECIPES

Setting = Literal["script", "template"]

# r, alpha and number of experts: of the authors' script, and of MoE-PEFT's template, which EffiLoRA compares.
_SETTINGS: dict[Setting, tuple[int, float, int]] = {"script": (4, 32.0, 8), "template": (24, 48.0, 6)}


def _spec(
    *,
    setting: Annotated[Setting, "which published r, alpha and heads to take"] = "script",
    r: Annotated[int | None, "rank of the adapter; none: the setting's"] = None,
    alpha: Annotated[float | None, "numerator of the scaling; none: the setting's"] = None,
    dropout: Dropout = 0.05,
    heads: Annotated[int | None, "number of experts; none: the setting's"] = None,
    balance_loss: Annotated[float, "coefficient of the localized balance loss; the paper: 0.1"] = 0.0,
    delta: Annotated[
        float | None, "how much less the experts for the other type of task are favoured; none: 0.1"
    ] = None,
    seed: Seed = 0,
) -> AdapterSpec:
    own_r, own_alpha, own_heads = _SETTINGS[setting]
    return AdapterSpec(
        rank=own_r if r is None else r,
        alpha=own_alpha if alpha is None else alpha,
        dropout=dropout,
        heads=own_heads if heads is None else heads,
        down_per_head=True,
        router=RouterSpec(balance=balance("localized", balance_loss, delta)),
        seed=seed,
    )


PRESET = Preset(
    name="lora_moe",
    title="LoRAMoE",
    paper="Dou et al., 2024, arXiv:2312.09979",
    summary="Experts with separate down and up factors in the MLPs, all used; half for each type of task.",
    learning_rate=RECIPES["lora_moe"].learning_rate,
    build=_spec,
    targets="mlp",
)
