"""AdapterSpec: the description of an adapter, as a frozen value without tensors."""

import math
from dataclasses import dataclass, field, replace
from typing import Literal, Self, final, get_args

from rankfold.adapter.router import RouterSpec
from rankfold.errors import SpecError, unknown_name
from rankfold.factors import (
    SHARES,
    BasisSpec,
    CoreSpec,
    DenseSpec,
    DiagonalSpec,
    FactorSpec,
    SeededSpec,
    Share,
    SvdSpec,
)
from rankfold.limits import MOST_HEADS, MOST_RANK, check_magnitude, check_most

Scaling = Literal["alpha_over_r", "alpha_over_sqrt_r", "none", "learned"]
"""The multiplier: alpha / r (LoRA), alpha / sqrt(r) (rsLoRA), 1, or one trained number a layer (TLoRA)."""

SCALINGS: tuple[Scaling, ...] = get_args(Scaling)

WITHOUT_ALPHA: tuple[Scaling, ...] = ("none", "learned")
"""The scalings that read no alpha."""

DropoutPosition = Literal["input", "output"]
"""Where dropout acts: on what enters the adapter (LoRA), or on what leaves it (TLoRA)."""

DROPOUT_POSITIONS: tuple[DropoutPosition, ...] = get_args(DropoutPosition)


FROZEN = (SeededSpec, SvdSpec, BasisSpec)
"""The factors that are not trained."""

HeadsIn = Literal["all", "mlp"]
"""Which layers have several heads: `all` of them, or those of MLPs only, the others being plain."""

HEADS_IN: tuple[HeadsIn, ...] = get_args(HeadsIn)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSpec:
    r"""Description of an adapter: $\Delta y = s \sum_e g_e(x) \, U_e C V_e \, dropout(x)$ over its heads e.

    Args:
        rank: Rows of the down factor V.
        rank_up: Columns of the up factor U, if they differ from `rank`; this takes a core.
        alpha: Numerator of the scaling.
        scaling: How the multiplier s comes from `alpha` and `rank`.
        dropout: Probability of dropout.
        dropout_position: What is dropped.
        down: The factor V, rank x in_features; a dense one, as of LoRA, if left out.
        core: The factor C, rank_up x rank, if any.
        up: The factor U, out_features x rank_up; a dense one that starts at zero if left out.
        share_down: Which layers use one V.
        share_up: Which layers use one U.
        heads: Number of U side by side; several numbers are those of as many equal parts of the model's
            blocks, from the first block on (MoLA).
        heads_in: Which layers have them.
        down_per_head: Whether each head has a V of its own.
        router: What weighs the heads.
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
    heads: int | tuple[int, ...] = 1
    heads_in: HeadsIn = "all"
    down_per_head: bool = False
    router: RouterSpec | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every field, then their combination."""
        _check_ranges(self)
        _check_names(self)
        _check_that_it_can_learn(self)
        _check_heads(self)
        _check_layer_factors(self)

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
    def most_heads(self) -> int:
        """The number of heads; of several numbers the largest."""
        return self.heads if isinstance(self.heads, int) else max(self.heads)

    @property
    def down_heads(self) -> int:
        """How many V there are, one above the other."""
        return self.most_heads if self.down_per_head else 1

    def at(self, *, block: int | None, blocks: int, is_in_mlp: bool) -> Self:
        """Return the spec of one layer of a model, with one number of heads.

        Args:
            block: Index of the layer's block; None outside of blocks, where the first number of heads holds.
            blocks: Number of blocks.
            is_in_mlp: Whether the layer belongs to an MLP.
        """
        if self.router is None:
            return self
        numbers = (self.heads,) if isinstance(self.heads, int) else self.heads
        heads = numbers[0 if block is None else block * len(numbers) // blocks]
        if heads == 1 or (self.heads_in == "mlp" and not is_in_mlp):
            return replace(self, heads=1, down_per_head=False, router=None, heads_in="all")
        return replace(self, heads=heads)

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
        return replace(self, **changes)  # pyright: ignore[reportArgumentType] (each role keeps its type)

    @property
    def shares(self) -> bool:
        """Whether layers have a factor in common."""
        return self.share_down != "none" or self.share_up != "none"

    def with_zero_down(self) -> Self:
        """Return the adapter with its zero moved from the up to the down factor, as for an embedding.

        There a token reads one column of V; a random V would start with entries of size 1/sqrt(vocabulary),
        too small for U to learn from. Adapters that start otherwise, whose down factor is frozen, or that
        share a factor with layers of other types are returned as they are.
        """
        if _zero_factors(self) != ["up"] or isinstance(self.down, FROZEN) or self.shares:
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
        check_most(name, value, MOST_RANK)
    if not 0 <= spec.dropout < 1:
        raise SpecError(f"dropout={spec.dropout} is not a probability below 1; give one from 0 up to 1.")
    if not (math.isfinite(spec.alpha) and spec.alpha != 0):
        raise SpecError(
            f"alpha={spec.alpha} makes an adapter that changes nothing; give a number that is not 0."
        )
    check_magnitude("alpha", spec.alpha)
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
    if spec.heads_in not in HEADS_IN:
        raise unknown_name("layers to have several heads", spec.heads_in, HEADS_IN)
    for share in (spec.share_down, spec.share_up):
        if share not in SHARES:
            raise unknown_name("share scope", share, SHARES)
    if spec.share_up == "in_features":
        raise SpecError(
            "share_up='in_features' has no meaning: an up factor faces outputs; "
            "use 'module_type', 'slice' or 'entries'."
        )


def _check_that_it_can_learn(spec: AdapterSpec) -> None:
    zero = _zero_factors(spec)
    if len(zero) > 1:
        raise SpecError(
            f"{' and '.join(zero)} start at zero, so neither would get a gradient; let one start otherwise."
        )
    factors = [factor for factor in (spec.down, spec.core, spec.up) if factor is not None]
    if all(isinstance(factor, FROZEN) for factor in factors):
        raise SpecError(
            "every factor is frozen, so there is nothing to train; make one of them dense or relayed."
        )


def _check_heads(spec: AdapterSpec) -> None:
    numbers = _numbers_of_heads(spec)
    if not numbers or min(numbers) < 1:
        raise SpecError(f"heads={spec.heads} leaves layers without any; give at least 1.")
    check_most("heads", spec.most_heads, MOST_HEADS)
    if spec.most_heads == 1:
        if spec.router is not None:
            raise SpecError(
                "a router has nothing to choose from with one head; give more heads, or no router."
            )
        if spec.down_per_head or spec.heads_in != "all":
            raise SpecError("down_per_head and heads_in are about several heads; give heads more than 1.")
        return
    if spec.router is None:
        raise SpecError(f"heads={spec.heads} without a router is one head of a larger rank; give a router.")
    top_k = spec.router.top_k
    if top_k is not None and top_k > min(number for number in numbers if number > 1):
        raise SpecError(f"top_k={top_k} is more than the heads there are ({spec.heads}); give fewer.")
    if spec.router.scope != "layer" and spec.heads_in != "mlp":
        raise SpecError(
            f"a router of scope '{spec.router.scope}' serves MLPs only; give heads_in='mlp', "
            "so that other layers have one head."
        )


def _numbers_of_heads(spec: AdapterSpec) -> tuple[int, ...]:
    numbers = (spec.heads,) if isinstance(spec.heads, int) else spec.heads
    if not all(isinstance(number, int) for number in numbers):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise SpecError(f"heads={spec.heads!r} are no whole numbers; give one, or several as a list.")
    return numbers


def _check_layer_factors(spec: AdapterSpec) -> None:
    """Check the factors that are taken from elsewhere for one layer each."""
    sides = (
        ("down", spec.down, spec.share_down, spec.rank),
        ("up", spec.up, spec.share_up, spec.up_rank),
    )
    for role, factor, share, rank in sides:
        if isinstance(factor, SvdSpec | BasisSpec) and (share != "none" or spec.most_heads > 1):
            raise SpecError(
                f"the {factor.kind} factor at the {role} side belongs to one layer and one head; "
                f"give share_{role}='none' and heads=1."
            )
        if isinstance(factor, BasisSpec) and rank > factor.rank:
            raise SpecError(
                f"rank {rank} is more than the {factor.rank} directions of basis '{factor.name}'; give r at "
                f"most {factor.rank}, or learn a basis of a larger rank."
            )
