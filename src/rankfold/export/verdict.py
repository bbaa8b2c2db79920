"""Whether an adapter equals a plain LoRA, told from its spec alone."""

from dataclasses import dataclass
from typing import final

from rankfold.adapter.spec import AdapterSpec
from rankfold.errors import NotExactError
from rankfold.factors import LowRankSpec


@final
@dataclass(frozen=True, slots=True)
class Exact:
    """The adapter is a product of two thin matrices, up to rounding.

    Args:
        rank: Their inner width.
    """

    rank: int


@final
@dataclass(frozen=True, slots=True)
class Refused:
    """No two matrices are the adapter.

    Args:
        reason: Why, as a clause.
    """

    reason: str


Verdict = Exact | Refused


def verdict(spec: AdapterSpec) -> Verdict:
    """Return whether adapters of a spec equal plain LoRA, and of which rank.

    Every factor is a matrix, whether it is trained, relayed, shared, seeded or taken from the base weight,
    and so are cores and scales: their product is exact. Only gates are not: they differ from token to token.
    """
    if spec.router is not None:
        what = {"code": "the layer's own code", "input": "its input"}[spec.router.reads]
        return Refused(
            f"its router weighs {spec.most_heads} heads by {what}, differently for every token, so no weight "
            "equals it"
        )
    inner = spec.core.inner if isinstance(spec.core, LowRankSpec) else spec.rank
    return Exact(min(spec.rank, spec.up_rank, inner))


def exact_rank(name: str, spec: AdapterSpec) -> int:
    """Return the rank of a layer's plain LoRA.

    Args:
        name: What the error calls the adapter.
        spec: The layer's spec.

    Raises:
        NotExactError: If nothing of any rank equals the adapter.
    """
    match verdict(spec):
        case Exact(rank):
            return rank
        case Refused(reason):
            raise NotExactError(
                f"cannot fold '{name}' exactly: {reason}; serve it with rankfold, or compress it with "
                "--compress-rank and state the error."
            )
