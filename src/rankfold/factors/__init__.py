"""Matrices: a factor yields one; a spec describes a factor without tensors.

The union `FactorSpec` is closed: a new type of factor adds its file and its line here, and the type checker
lists every `match` that has to answer for it.
"""

from collections.abc import Callable, Mapping

from rankfold.errors import RankfoldError, SpecError, unknown_name
from rankfold.factors.base import (
    INITIALS,
    Factor,
    FixedFactor,
    Initial,
    Side,
    initial_matrix,
    standard_deviation,
    without_autocast,
)
from rankfold.factors.basis import Basis, BasisLayer, BasisSide, BasisSpec, add_basis, find_basis, look_beside
from rankfold.factors.dense import Dense, DenseSpec
from rankfold.factors.diagonal import Diagonal, DiagonalSpec
from rankfold.factors.low_rank import LowRank, LowRankSpec
from rankfold.factors.pool import SHARES, Pool, Share, Window
from rankfold.factors.relay import RELAY_MAPS, Relay, RelayMap, RelaySpec, rank_cap
from rankfold.factors.relay_batch import RelayBatches
from rankfold.factors.seeded import Seeded, SeededSpec
from rankfold.factors.svd import SPLITS, Decomposition, Split, Svd, SvdSpec

FactorSpec = DenseSpec | RelaySpec | SeededSpec | SvdSpec | BasisSpec
"""What may stand at either side of an adapter."""

CoreSpec = DenseSpec | DiagonalSpec | LowRankSpec
"""What may stand between the two sides."""

_FACTORS: Mapping[str, tuple[Callable[..., FactorSpec], type]] = {
    "dense": (DenseSpec, str),
    "relay": (RelaySpec, int),
    "seeded": (SeededSpec, str),
    "svd": (SvdSpec, str),
    "basis": (BasisSpec.of, str),
}


def parse_factor(text: str) -> FactorSpec:
    """Return the factor that a text of the command line describes.

    Args:
        text: Its kind, and perhaps its first option: `basis:minilm.basis`, `relay:8`, `dense:zeros`, `svd`.

    Raises:
        SpecError: If there is no such kind, or it has no such option.
        AdapterFileError: If the file of a basis is damaged.
    """
    kind, colon, option = text.partition(":")
    if kind not in _FACTORS:
        raise unknown_name("kind of factor", kind, _FACTORS)
    make, convert = _FACTORS[kind]
    try:
        return make(convert(option)) if colon else make()
    except (TypeError, ValueError) as error:
        if isinstance(error, RankfoldError):
            raise
        example = {"basis": "basis:FILE", "relay": "relay:8"}[kind]
        raise SpecError(f"'{text}' describes no factor; write it like {example}.") from error


__all__ = [
    "INITIALS",
    "RELAY_MAPS",
    "SHARES",
    "SPLITS",
    "Basis",
    "BasisLayer",
    "BasisSide",
    "BasisSpec",
    "CoreSpec",
    "Decomposition",
    "Dense",
    "DenseSpec",
    "Diagonal",
    "DiagonalSpec",
    "Factor",
    "FactorSpec",
    "FixedFactor",
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
    "add_basis",
    "find_basis",
    "initial_matrix",
    "look_beside",
    "parse_factor",
    "rank_cap",
    "standard_deviation",
    "without_autocast",
]
