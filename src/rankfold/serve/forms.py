"""Forms: what the adapters of a frame have on each layer, and in what order their numbers lie."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast, final

import torch
from torch import Tensor, nn

from rankfold.adapter.gating import MlpRole
from rankfold.adapter.geometry import Conv2d, Embedding, Geometry, Matrices
from rankfold.adapter.router import RouterSpec
from rankfold.errors import SpecError
from rankfold.store.adapter import SavedAdapter

_READ_FUSED = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)

BUCKETS = (4, 8, 16, 32, 64)
"""Ranks that plain adapters are filled up to with zeros, so that those of near ranks share a frame."""


def _bucket(rank: int) -> int:
    """Return the rank that an adapter of a rank is filled up to."""
    largest = BUCKETS[-1]
    return next((size for size in BUCKETS if size >= rank), -(-rank // largest) * largest)


@final
@dataclass(frozen=True, slots=True)
class Field:
    """Place of one tensor among the numbers of an adapter.

    Args:
        start: Where it begins.
        shape: Its shape.
    """

    start: int
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many numbers it has."""
        return torch.Size(self.shape).numel()


@final
@dataclass(frozen=True, slots=True)
class RouterForm:
    """The router of a layer in a frame.

    Args:
        spec: Its description.
        heads: How many heads it weighs.
        in_features: How many features it reads.
        down_heads: How many down factors the layer has.
        mlp: Path of the MLP that it decides for; the layer's own if it decides for that alone.
        role: The layer's role in that MLP, if it is in one.
    """

    spec: RouterSpec
    heads: int
    in_features: int
    down_heads: int
    mlp: str
    role: MlpRole | None


@final
@dataclass(frozen=True, slots=True)
class LayerForm:
    """The form of one layer's adapters in a frame.

    Of a convolution the matrices are as the adapter has them. Otherwise `up` and `core` are transposed, of an
    embedding `down` too, so that each product reads memory in order.

    Args:
        name: The layer's name in the model.
        geometry: Its type and sizes.
        fields: The tensors that each adapter has of its own, by role: `down`, `core`, `up`, `router.weight`…
        fixed: Digests of the frozen matrices that all of them share, by role.
        router: The router, if the layer has several heads.
    """

    name: str
    geometry: Geometry
    fields: tuple[tuple[str, Field], ...]
    fixed: tuple[tuple[str, str], ...] = ()
    router: RouterForm | None = None


@final
@dataclass(frozen=True, slots=True)
class HeadForm:
    """The form of a module that each adapter brings whole, such as a classification head.

    Args:
        name: The module's name in the model.
        fields: Its tensors, by their names in the module.
    """

    name: str
    fields: tuple[tuple[str, Field], ...]


Forms = tuple[LayerForm, ...] | tuple[HeadForm, ...]


@final
@dataclass(frozen=True, slots=True, eq=False)
class AdapterLayer:
    """One layer of an adapter: its form, and how its matrices follow from the file.

    Args:
        form: The form.
        matrices: Returns the tensors of the form's fields from those of the file, by role. Each may have
            fewer rows or columns than its field, where the others are zero.
    """

    form: LayerForm | HeadForm
    matrices: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


@final
class Places:
    """Places of tensors among the numbers of an adapter; one that layers share has one place."""

    def __init__(self) -> None:
        self.total = 0
        self._places: dict[Hashable, Field] = {}

    def place(self, key: Hashable, shape: Sequence[int]) -> Field:
        """Return the place of a tensor: a new one unless one of its key and shape has it."""
        place = self._places.get((key, *shape))
        if place is None:
            place = self._places[key, *shape] = Field(self.total, tuple(shape))
            self.total += place.count
        return place


def modules_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of a model by name."""
    return dict(cast("Iterator[tuple[str, nn.Module]]", model.named_modules()))


def stored_order(role: str, matrix: Tensor, geometry: Geometry) -> Tensor:
    """Return a matrix in the order in which its products read it (`LayerForm`)."""
    if isinstance(geometry, Conv2d):
        return matrix
    return matrix.mT if role in ("up", "core") or isinstance(geometry, Embedding) else matrix


def rank_axis(role: str, geometry: Geometry) -> int:
    """Return the axis of a stored side that is as long as the rank."""
    if isinstance(geometry, Conv2d):
        return int(role == "up")
    return int(role == "down" and isinstance(geometry, Embedding))


def fill_up(shape: Sequence[int], axis: int) -> list[int]:
    """Return the shape of a stored side with its rank filled up, so that near ranks share a frame."""
    return [_bucket(length) if index == axis else length for index, length in enumerate(shape)]


def shape_text(shape: Sequence[int] | None) -> str:
    """Return a shape as messages show it."""
    return "none" if shape is None else "x".join(map(str, shape))


def check_servable(saved: SavedAdapter, model: nn.Module, name: str, geometry: Geometry) -> None:
    """Check that a layer can have an adapter of its own for each row.

    Raises:
        SpecError: If it cannot.
    """
    reason = None
    parent = model.get_submodule(name.rpartition(".")[0])
    find_input = getattr(model, "get_input_embeddings", None)
    if isinstance(geometry, Matrices):
        reason = "it is a parameter, and one for all rows of a batch"
    elif "experts" in name.split("."):
        reason = "it runs for some tokens only, whose rows it does not know"
    elif isinstance(parent, _READ_FUSED):
        reason = f"a {type(parent).__name__} reads its weight without calling it"
    elif (
        isinstance(geometry, Embedding)
        and find_input is not None
        and model.get_submodule(name) is not find_input()
    ):
        reason = "it is an embedding of something other than the input's tokens"
    if reason is not None:
        raise SpecError(
            f"{saved.title} has an adapter on '{name}', which a bank cannot serve: {reason}; load the "
            "adapter alone (rankfold.load), or train it without this layer."
        )
