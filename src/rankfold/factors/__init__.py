"""Matrices: a factor yields one; a spec describes a factor without tensors.

The union `FactorSpec` is closed: a new type of factor adds its file and its line here, and the type checker
lists every `match` that has to answer for it.
"""

from rankfold.factors.base import (
    INITIALS,
    Factor,
    Initial,
    initial_matrix,
    standard_deviation,
    without_autocast,
)
from rankfold.factors.dense import Dense, DenseSpec
from rankfold.factors.diagonal import Diagonal, DiagonalSpec
from rankfold.factors.low_rank import LowRank, LowRankSpec
from rankfold.factors.pool import SHARES, Pool, Share, Window
from rankfold.factors.relay import RELAY_MAPS, Relay, RelayMap, RelaySpec, rank_cap
from rankfold.factors.relay_batch import RelayBatches
from rankfold.factors.seeded import Seeded, SeededSpec
from rankfold.factors.svd import SPLITS, Decomposition, Side, Split, Svd, SvdSpec

FactorSpec = DenseSpec | RelaySpec | SeededSpec | SvdSpec
"""What may stand at either side of an adapter."""

CoreSpec = DenseSpec | DiagonalSpec | LowRankSpec
"""What may stand between the two sides."""

__all__ = [
    "INITIALS",
    "RELAY_MAPS",
    "SHARES",
    "SPLITS",
    "CoreSpec",
    "Decomposition",
    "Dense",
    "DenseSpec",
    "Diagonal",
    "DiagonalSpec",
    "Factor",
    "FactorSpec",
    "Initial",
    "LowRank",
    "LowRankSpec",
    "Pool",
    "Relay",
    "RelayBatches",
    "RelayMap",
    "RelaySpec",
    "Seeded",
    "SeededSpec",
    "Share",
    "Side",
    "Split",
    "Svd",
    "SvdSpec",
    "Window",
    "initial_matrix",
    "rank_cap",
    "standard_deviation",
    "without_autocast",
]
