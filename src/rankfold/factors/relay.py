"""The relayed factor: the first entries of a square, low-rank product, laid out as a thin matrix."""

import math
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Literal, Protocol, final, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rankfold.errors import SpecError, unknown_name
from rankfold.factors.base import (
    Factor,
    Initial,
    is_lasting,
    is_transformed,
    stack_experts,
    standard_deviation,
)
from rankfold.limits import MOST_RANK, check_magnitude, check_most
from rankfold.seeding import random_matrix, random_order
from rankfold.shapes import FlatIndex

RelayMap = Literal["row_major", "strided", "permuted"]
"""Which entry of the square becomes which entry of the factor: `row_major` as in the paper's Figure 2;
`strided` reads at equal distances that visit every entry once; `permuted` follows a fixed random order. Only
the last two keep the rank."""

RELAY_MAPS: tuple[RelayMap, ...] = get_args(RelayMap)


@final
@dataclass(frozen=True, slots=True)
class RelaySpec:
    """Description of a `Relay` factor.

    Args:
        k: Inner width of the square product.
        map: Which entry of the square goes where.
        initial: Variance of the factor's entries at the start; with `zeros` the left matrix of the product is
            zero.
        std: Standard deviation of the entries of both small matrices, in place of the one that `initial`
            implies.

    Raises:
        SpecError: If `k` is less than one, `std` is not positive, or `map` or `initial` is unknown.
    """

    k: int = 8
    map: RelayMap = "strided"
    initial: Initial = "kaiming"
    std: float | None = None
    kind: Literal["relay"] = "relay"

    def __post_init__(self) -> None:
        """Check every field."""
        if self.k < 1:
            raise SpecError(f"k={self.k} leaves a relayed factor without entries; give k at least 1.")
        check_most("k", self.k, MOST_RANK)
        if self.map not in RELAY_MAPS:
            raise unknown_name("relay map", self.map, RELAY_MAPS)
        if self.std is not None and not (self.std > 0 and math.isfinite(self.std)):
            raise SpecError(
                f"std={self.std} must be positive and finite; leave it out for the variance of 'initial'."
            )
        if self.std is not None:
            check_magnitude("std", self.std)
        standard_deviation(self.initial, 1, 1)

    @property
    def starts_at_zero(self) -> bool:
        """Whether the matrix is zero at the start."""
        return self.initial == "zeros"

    def build(self, rows: int, cols: int, experts: int | None = None) -> "Relay":
        """Return the factor, not yet reset."""
        return Relay(
            rows, cols, k=self.k, order=self.map, initial=self.initial, std=self.std, experts=experts
        )

    def parameter_count(self, rows: int, cols: int) -> int:
        """Return how many parameters are trained, and stored."""
        return 2 * self.k * square_side(rows * cols)


class Materialiser(Protocol):
    """Something that computes the matrices of many relayed factors at once."""

    def matrix(self, relay: "Relay") -> Tensor:
        """Return the matrix of one of them."""
        ...


@final
class Relay(Factor):
    r"""A thin matrix read from a square product of two small ones.

    With side $d = \lceil\sqrt{rows \cdot cols}\rceil$, entry i of the matrix, counted row by row, is the
    entry of `left @ right` (d x k times k x d) that the map assigns to i.

    Reference: Relayed LoRA, section 3 and Figure 2; `tests/reference/relay.py`.
    Cost: 2 k d trained and stored; 2 k d^2 operations to build.

    Args:
        rows: Outputs of the factor.
        cols: Inputs of the factor.
        k: Inner width of the square product.
        order: Which entry of the square goes where.
        initial: Variance of the factor's entries at the start.
        std: Standard deviation of the small matrices' entries, in place of the one that `initial` implies.
        experts: How many matrices there are, if there are several; each has a square of its own.
    """

    def __init__(
        self,
        rows: int,
        cols: int,
        *,
        k: int = 8,
        order: RelayMap = "strided",
        initial: Initial = "kaiming",
        std: float | None = None,
        experts: int | None = None,
    ) -> None:
        super().__init__(rows, cols, experts)
        self.k = k
        self.order: RelayMap = order
        self.initial: Initial = initial
        self.std = std
        self.side = square_side(rows * cols)
        self.left = nn.Parameter(torch.zeros(*self.stack, self.side, k))
        self.right = nn.Parameter(torch.zeros(*self.stack, k, self.side))
        self.materialiser: Materialiser | None = None

    def forward(self) -> Float[Tensor, "*experts {self.rows} {self.cols}"]:
        """Return the matrix, from its batch if a forward pass of the model is under way."""
        if self.materialiser is not None and not (torch.compiler.is_compiling() or is_transformed()):
            return self.materialiser.matrix(self)
        return read_square(self.left @ self.right, self)

    @torch.no_grad()
    def reset(self, *, seed: int, name: str) -> None:
        """Draw both matrices so that their product has the variance of `initial`; `zeros` zeroes the left."""
        if self.left.is_meta:
            return
        variance_like: Initial = "kaiming" if self.initial == "zeros" else self.initial
        # An entry of the product is a sum of k products, so its variance is k times the fourth power of the
        # small std.
        std = self.std or (standard_deviation(variance_like, self.rows, self.cols) ** 2 / self.k) ** 0.25
        left_std = 0.0 if self.initial == "zeros" else std
        draw_left = partial(random_matrix, self.side, self.k, seed=seed, std=left_std)
        draw_right = partial(random_matrix, self.k, self.side, seed=seed, std=std)
        self.left.copy_(stack_experts(lambda part: draw_left(name=f"{part}.left"), name, self.experts))
        self.right.copy_(stack_experts(lambda part: draw_right(name=f"{part}.right"), name, self.experts))

    def extra_repr(self) -> str:
        """Return size, inner width and map for `repr`."""
        return f"{super().extra_repr()}, k={self.k}, map={self.order}"


def square_side(entries: int) -> int:
    """Return the side of the smallest square with at least so many entries."""
    return math.isqrt(entries - 1) + 1


def read_square(square: Tensor, relay: Relay) -> Tensor:
    """Return the entries of the square [*experts, side, side] that make up the factor."""
    positions = positions_in_square(relay.order, relay.rows * relay.cols, square.device)
    return square.flatten(-2)[..., positions].reshape(*relay.stack, relay.rows, relay.cols)


def positions_in_square(order: RelayMap, entries: int, device: torch.device) -> FlatIndex:
    """Return the position of each entry in the flat square."""
    if torch.compiler.is_compiling():
        return _positions(order, entries, device)
    # A tensor made now tells whether a cached one can be used in this mode.
    make = _cached_positions if is_lasting(torch.empty(0, device=device)) else _lasting_positions
    return make(order, entries, device)


def _lasting_positions(order: RelayMap, entries: int, device: torch.device) -> FlatIndex:
    # The first call may be in inference mode, but training after it needs an ordinary tensor.
    with torch.inference_mode(mode=False):
        return _positions(order, entries, device)


def _positions(order: RelayMap, entries: int, device: torch.device) -> FlatIndex:
    side = square_side(entries)
    size = side * side
    match order:
        case "row_major":
            return torch.arange(entries, device=device)
        case "strided":
            step = next(step for step in range(side + 1, 2 * size + 2) if math.gcd(step, size) == 1)
            return (torch.arange(entries, device=device) * step) % size
        case "permuted":
            return _permuted_positions(entries, size, device)


# An operator, since torch.compile cannot trace how the order is drawn; a copy, which it may overwrite.
@torch.library.custom_op("rankfold::permuted", mutates_args=())
def _permuted_positions(entries: int, size: int, device: torch.device) -> Tensor:
    return _first_of_order(entries, size, device).clone()


@lru_cache(maxsize=256)
def _first_of_order(entries: int, size: int, device: torch.device) -> FlatIndex:
    # One fixed order a size: it is part of the file format, not of the seed.
    return random_order(size, seed=0, name=f"relay.{size}")[:entries].to(device)


@_permuted_positions.register_fake  # pyright: ignore[reportUnknownMemberType] (untyped in torch)
def _(entries: int, size: int, device: torch.device) -> Tensor:
    return torch.empty(entries, dtype=torch.int64, device=device)


_cached_positions = lru_cache(maxsize=256)(_lasting_positions)


def rank_cap(spec: RelaySpec, rows: int, cols: int) -> int:
    """Return the largest rank that the map allows the factor, which may be less than min(rows, cols).

    Row by row, rows of the factor that begin at one column of the square are cut from it alike, and each
    piece has rank k at most. Where cols divides the side, this is k side / cols in all; where the side
    divides cols, k cols / side.
    """
    full = min(rows, cols)
    if spec.map != "row_major":
        return full
    side = square_side(rows * cols)
    period = side // math.gcd(side, cols)  # the beginnings repeat after so many rows

    def rank_of_rows_like(row: int) -> int:
        first_piece = min(cols, side - row * cols % side)
        whole_pieces, last_piece = divmod(cols - first_piece, side)
        pieces = min(spec.k, first_piece) + whole_pieces * min(spec.k, side) + min(spec.k, last_piece)
        return min(pieces, len(range(row, rows, period)))

    return min(full, sum(rank_of_rows_like(row) for row in range(min(rows, period))))
