"""GraphMoE: an experiment after the idea; neither code nor full text could be read."""

from typing import Annotated

from rankfold.adapter.router import RouterSpec
from rankfold.adapter.spec import AdapterSpec
from rankfold.factors import DenseSpec
from rankfold.presets._preset import Alpha, Dropout, Heads, Preset, Rank, Seed


def _spec(
    *,
    r: Rank = 16,
    alpha: Alpha = 32.0,
    dropout: Dropout = 0.05,
    heads: Heads = 4,
    top_k: Annotated[int, "heads that are chosen for a token in each round"] = 2,
    rounds: Annotated[int, "how often the router decides, each time knowing what it chose before"] = 3,
    seed: Seed = 0,
) -> AdapterSpec:
    return AdapterSpec(
        rank=r,
        alpha=alpha,
        dropout=dropout,
        down=DenseSpec(),
        up=DenseSpec("zeros"),
        heads=heads,
        router=RouterSpec(reads="code", top_k=top_k, rounds=rounds),
        seed=seed,
    )


PRESET = Preset(
    name="graph_moe",
    title="GraphMoE (experimental)",
    paper="inspired by Tang et al., 2025, arXiv:2501.07890",
    summary="Experimental: heads chosen in several rounds, each of which tells the next one what it chose.",
    learning_rate=1e-3,
    build=_spec,
)
