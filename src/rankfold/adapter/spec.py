"""What an adapter is, as a value without tensors."""

import math
from dataclasses import dataclass, field, replace
from typing import Literal, Self, final, get_args

from rankfold.errors import SpecError, unknown_name
from rankfold.factors import SHARES, CoreSpec, DenseSpec, DiagonalSpec, FactorSpec, SeededSpec, Share

Scaling = Literal["alpha_over_r", "alpha_over_sqrt_r", "none", "learned"]
"""The multiplier: alpha / r (LoRA), alpha / sqrt(r) (rsLoRA), 1, or one trained number a layer (TLoRA)."""

SCALINGS: tuple[Scaling, ...] = get_args(Scaling)

DropoutPosition = Literal["input", "output"]
"""Where dropout acts: on what enters the adapter (LoRA), or on what leaves it (TLoRA)."""

DROPOUT_POSITIONS: tuple[DropoutPosition, ...] = get_args(DropoutPosition)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSpec:
    r"""Description of one adapter: $\Delta y = s \cdot U C V \, dropout(x)$.

    Args:
        rank: Rows of the down factor V.
        rank_up: Columns of the up factor U, if they differ from `rank`; this takes a core.
        alpha: The user's number in the scaling.
        scaling: How the multiplier s comes from `alpha` and `rank`.
        dropout: Probability of dropout.
        dropout_position: What is dropped.
        down: The factor V, rank x in_features.
        core: The factor C, rank_up x rank, if any.
        up: The factor U, out_features x rank_up.
        share_down: Which layers use one V.
        share_up: Which layers use one U.
        seed: Seed of the frozen factors, and of the initial values of the others.

    Raises:
        SpecError: If a field is out of range or unknown, or if no adapter made from the spec could learn.
    """

    rank: int = 8
    rank_up: int | None = None
    alpha: float = 16.0
    scaling: Scaling = "alpha_over_r"
    dropout: float = 0.0
    dropout_position: DropoutPosition = "input"
    down: FactorSpec = field(default_factory=DenseSpec)
    core: CoreSpec | None = None
    up: FactorSpec = field(default_factory=lambda: DenseSpec("zeros"))
    share_down: Share = "none"
    share_up: Share = "none"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every field, then what they make together."""
        _check_ranges(self)
        _check_names(self)
        _check_that_it_can_learn(self)

    @property
    def up_rank(self) -> int:
        """Columns of the up factor."""
        return self.rank if self.rank_up is None else self.rank_up

    @property
    def multiplier(self) -> float:
        """The fixed part of the scaling; 1 where it is learned."""
        match self.scaling:
            case "alpha_over_r":
                return self.alpha / self.rank
            case "alpha_over_sqrt_r":
                return self.alpha / math.sqrt(self.rank)
            case "none" | "learned":
                return 1.0

    @property
    def starts_at_zero(self) -> bool:
        """Whether a fresh adapter changes nothing."""
        return bool(_zero_factors(self))

    def with_random_start(self) -> Self:
        """Return the adapter with random instead of zero factors, so that it changes something at once."""
        changes: dict[str, FactorSpec | CoreSpec] = {}
        if isinstance(self.core, DiagonalSpec) and self.core.starts_at_zero:
            changes["core"] = DiagonalSpec("ones")
        for role in _zero_factors(self):
            if role not in changes:
                changes[role] = replace(getattr(self, role), initial="kaiming")
        return replace(self, **changes)  # pyright: ignore[reportArgumentType] (each role keeps its kind)

    def with_zero_down(self) -> Self:
        """Return the adapter with its zero moved from the up to the down factor, as for an embedding.

        There a token reads one column of V; a random V would start with entries of size 1/sqrt(vocabulary),
        too small for U to learn from. Adapters that start otherwise, whose down factor is frozen, or that
        share a factor with layers of other kinds are returned as they are.
        """
        is_shared = self.share_down != "none" or self.share_up != "none"
        if _zero_factors(self) != ["up"] or isinstance(self.down, SeededSpec) or is_shared:
            return self
        return replace(self, down=replace(self.down, initial="zeros"), up=replace(self.up, initial="kaiming"))


def _zero_factors(spec: AdapterSpec) -> list[str]:
    """Return the roles of the factors that start at zero."""
    factors = {"down": spec.down, "core": spec.core, "up": spec.up}
    return [role for role, factor in factors.items() if factor is not None and factor.starts_at_zero]


def _check_ranges(spec: AdapterSpec) -> None:
    for name, value in (("r", spec.rank), ("rank_up", spec.up_rank)):
        if value < 1:
            raise SpecError(f"{name}={value} leaves an adapter without entries; give {name} at least 1.")
    if not 0 <= spec.dropout < 1:
        raise SpecError(f"dropout={spec.dropout} is not a probability below 1; give one from 0 up to 1.")
    if not (math.isfinite(spec.alpha) and spec.alpha != 0):
        raise SpecError(
            f"alpha={spec.alpha} makes an adapter that changes nothing; give a number that is not 0."
        )
    if spec.core is None and spec.up_rank != spec.rank:
        raise SpecError(
            f"up reads rank {spec.up_rank} but down writes rank {spec.rank}; give both one rank, or a core."
        )
    if isinstance(spec.core, DiagonalSpec) and spec.up_rank != spec.rank:
        raise SpecError(
            f"a diagonal core cannot join rank {spec.rank} to {spec.up_rank}; use one rank or a dense core."
        )


def _check_names(spec: AdapterSpec) -> None:
    if spec.scaling not in SCALINGS:
        raise unknown_name("scaling", spec.scaling, SCALINGS)
    if spec.dropout_position not in DROPOUT_POSITIONS:
        raise unknown_name("dropout position", spec.dropout_position, DROPOUT_POSITIONS)
    for share in (spec.share_down, spec.share_up):
        if share not in SHARES:
            raise unknown_name("share scope", share, SHARES)
    if spec.share_up == "in_features":
        raise SpecError(
            "share_up='in_features' has no meaning: an up factor faces outputs; use 'module_type' or 'slice'."
        )


def _check_that_it_can_learn(spec: AdapterSpec) -> None:
    zero = _zero_factors(spec)
    if len(zero) > 1:
        raise SpecError(
            f"{' and '.join(zero)} start at zero, so neither would get a gradient; let one start otherwise."
        )
    factors = [factor for factor in (spec.down, spec.core, spec.up) if factor is not None]
    if all(isinstance(factor, SeededSpec) for factor in factors):
        raise SpecError(
            "every factor is frozen, so there is nothing to train; make one of them dense or relayed."
        )
