"""The frozen factor of a learned basis: directions learned once for a base model, named by their digest."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, final

from jaxtyping import Float
from torch import Tensor

from rankfold._bootstrap import basis_files
from rankfold.errors import SpecError
from rankfold.factors.base import FixedFactor, Side

SHOWN_DIGITS = 8
"""How many digits of a digest stand in messages."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class BasisLayer:
    """The directions of one layer, those that carry most first.

    Args:
        down: Directions of the layer's input, one a row.
        up: Directions of its output, one a column.
    """

    down: Float[Tensor, "rank in_features"]
    up: Float[Tensor, "out_features rank"]


@final
@dataclass(frozen=True, slots=True, eq=False)
class Basis:
    """A learned basis in memory: the two sides of adapters of one base model, layer by layer.

    Args:
        digest: The digest of its file, by which adapters refer to it.
        name: Its name, for people.
        layers: The directions by the name of the layer, in float32 on the CPU.
        tasks: Names of the tasks that its sources had learned, as far as they are known.
    """

    digest: str
    name: str
    layers: Mapping[str, BasisLayer]
    tasks: tuple[str, ...] = ()

    @property
    def rank(self) -> int:
        """The most directions of a layer."""
        return max(len(layer.down) for layer in self.layers.values())

    @property
    def title(self) -> str:
        """The basis as messages name it."""
        return f"basis '{self.name}' ({self.digest[:SHOWN_DIGITS]}…)"

    def side(self, name: str, side: Side) -> Tensor:
        """Return one side of a layer: V [rank, in_features] or U [out_features, rank].

        Args:
            name: The layer's name. A model inside another one has longer names, or shorter ones; the layer is
                found by the end that both have.
            side: Which side.

        Raises:
            SpecError: If the basis has no such layer, or several.
        """
        names = [name] if name in self.layers else [own for own in self.layers if ends_alike(own, name)]
        if len(names) != 1:
            count = f"several ({', '.join(sorted(names)[:2])}, …)" if names else "none"
            raise SpecError(
                f"{self.title} has {count} of the layer '{name}'; leave the layer out of target_modules, or "
                "learn a basis from adapters of this base model that have it."
            )
        layer = self.layers[names[0]]
        return layer.down if side == "down" else layer.up


def ends_alike(one: str, other: str) -> bool:
    """Whether one name of a layer is the end of the other, as in a model and a model around it."""
    return one.endswith(f".{other}") or other.endswith(f".{one}")


@final
@dataclass(frozen=True, slots=True)
class BasisSpec:
    """Description of a `BasisSide` factor.

    Args:
        digest: The digest of the basis.
        name: Its name, for messages.
        rank: The most directions of a layer; an adapter of a smaller rank uses the first ones.

    Raises:
        SpecError: If a field is none that a basis has.
    """

    digest: str
    name: str
    rank: int
    kind: Literal["basis"] = "basis"

    def __post_init__(self) -> None:
        """Check the fields."""
        if len(self.digest) != _DIGITS or set(self.digest) - set("0123456789abcdef"):
            raise SpecError(
                f"digest='{self.digest[:40]}' of a basis is none; give the {_DIGITS} digits of its file."
            )
        if self.rank < 1:
            raise SpecError(f"a basis of rank {self.rank} has no directions; give the rank of its file.")

    @classmethod
    def of(cls, reference: str) -> Self:
        """Return the description of a basis.

        Args:
            reference: As for `find_basis`.

        Raises:
            SpecError: If there is no such basis.
            AdapterFileError: If its file is damaged.
        """
        basis = find_basis(reference)
        return cls(basis.digest, basis.name, basis.rank)

    @property
    def starts_at_zero(self) -> bool:
        """Never: its directions have length one."""
        return False

    def build(self, rows: int, cols: int, experts: int | None = None) -> "BasisSide":
        """Return the factor, not yet taken from the basis.

        Raises:
            SpecError: If it is for several experts.
        """
        if experts is not None:
            raise SpecError(
                f"a basis has one matrix a layer, not those of {experts} experts; choose a method without "
                "one, or leave the experts out of target_parameters."
            )
        return BasisSide(rows, cols)

    def parameter_count(self, rows: int, cols: int) -> int:
        """Return how many parameters are trained, and stored."""
        return 0  # they are in the file of the basis


_DIGITS = 32


@final
class BasisSide(FixedFactor):
    """A frozen matrix of a basis' first directions.

    Reference: Brüel-Gabrielsson et al., Compress then Serve (ICML 2025): many LoRAs as small matrices between
        two that they share.
    Cost: nothing trained, nothing stored with the adapter; its memory is that of the basis.
    """

    origin = "a basis, which its layer has to be found in"


_BASES: dict[str, Basis] = {}


def add_basis(basis: Basis) -> Basis:
    """Let adapters of this process find a basis by its digest; return the one that they find."""
    return _BASES.setdefault(basis.digest, basis)


def is_known(digest: str) -> bool:
    """Whether adapters of this process find the basis of a digest without its file."""
    return digest in _BASES


def look_beside(digest: str, folder: Path) -> None:
    """Let a basis be found that lies beside an adapter in a folder, if one does.

    Raises:
        AdapterFileError: If its file is damaged.
    """
    if digest not in _BASES:
        basis_files().look_beside(digest, folder)


def find_basis(reference: str) -> Basis:
    """Return a basis that this process knows, or else that of a file.

    Args:
        reference: A digest; or a file, or the name of a basis in the user's folder.

    Raises:
        SpecError: If there is none, or several have the name.
        AdapterFileError: If its file is damaged.
    """
    if reference in _BASES:
        return _BASES[reference]
    return basis_files().find_basis(reference)
