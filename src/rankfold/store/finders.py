"""Where the frozen tensors of PEFT's methods may have come from: recipes to try, none of them believed."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, final

import torch
from pydantic import Field
from torch import Tensor

from rankfold.store.draws import FLOATS, BasisDraw, Drawn, NormalDraw, SparseDraw, UniformDraw
from rankfold.store.peft_config import SavedConfig
from rankfold.store.places import BalancedPlaces, OffDiagonalPlaces, RandomMask
from rankfold.store.tensors import bytes_of
from rankfold.store.weights_file import WeightsFile

Recipe = Annotated[
    UniformDraw | BasisDraw | SparseDraw | NormalDraw | BalancedPlaces | OffDiagonalPlaces | RandomMask,
    Field(discriminator="kind"),
]
"""How some tensors are made again. The union is closed: a file that names another kind is refused."""

_MOST_SHAPES = 8
_PROBE = 64


@final
@dataclass(frozen=True, slots=True, eq=False)
class Search:
    """What a finder looks at.

    Args:
        file: The adapter's weights.
        config: What its configuration says.
        firsts: The places of the tensors that are not copies of an earlier one.
    """

    file: WeightsFile
    config: SavedConfig
    firsts: frozenset[int]

    def places(self, role: str) -> list[int]:
        """Return the places of all tensors with this part in their name, in the order of the file."""
        return [place for place, entry in enumerate(self.file.entries) if role in entry.name.split(".")]

    def tensors(self, role: str) -> dict[str, Tensor]:
        """Return all tensors with this part in their name."""
        return {self.file.entries[place].name: self.file.tensor(place) for place in self.places(role)}

    def places_of(self, names: list[str]) -> tuple[int, ...]:
        """Return the places of tensors.

        Raises:
            KeyError: If there is no tensor of a name.
        """
        known = {entry.name: place for place, entry in enumerate(self.file.entries)}
        return tuple(known[name] for name in names)


def _projections(down: str, up: str) -> Callable[[Search], Iterator[Recipe]]:
    """VeRA and PVeRA draw both projections from one generator, down first."""

    def find(search: Search) -> Iterator[Recipe]:
        for place, skip, seed in _one_after_another(search, down, up):
            for fused in (True, False):
                yield UniformDraw((place,), seed, skip, fused)

    return find


def _one_after_another(search: Search, *roles: str) -> Iterator[tuple[int, int, int]]:
    """Return the first tensor of each role, how many numbers were drawn before it, and the seed."""
    seed, skip = search.config.projection_prng_key, 0
    for role in roles:
        places = search.places(role)
        if seed is None or not places:
            return
        yield places[0], skip, seed
        skip += search.file.entries[places[0]].numbers


def _bases(search: Search) -> Iterator[Recipe]:
    """RandLoRA draws both bases from one generator, the smaller first, and divides by what it measures."""
    smaller = 0
    for place, skip, seed in _one_after_another(search, "randlora_A", "randlora_B"):
        entry = search.file.entries[place]
        smaller = smaller or entry.shape[-1]
        if search.config.sparse or search.config.very_sparse:
            share = math.sqrt(smaller) if search.config.very_sparse else 3.0
            sparse = SparseDraw((place,), seed, skip, share.hex(), "")
            yield replace(sparse, spread=_spread(sparse.unscaled(entry)))
            continue
        # PEFT draws in bfloat16 where the GPU can, or there is none, and else in float16.
        drawn: tuple[Drawn, ...] = ("bfloat16", "float16")
        for basis in (
            BasisDraw((place,), seed, skip, fused, d, "") for d in drawn for fused in (True, False)
        ):
            yield replace(basis, spread=_spread(basis.unscaled(entry)))


def _spread(numbers: Tensor) -> str:
    return float(numbers.std()).hex()


def _seed_of_each(search: Search) -> Iterator[Recipe]:
    """TinyLoRA counts its layers in the order of the model, which the file does not tell: it tries all."""
    first, places = search.config.projection_seed, search.places("tinylora_P")
    if first is None or not places:
        return
    seeds = tuple(range(first, first + len(places)))
    shapes = {search.file.entries[place].shape: search.file.entries[place] for place in places}
    # Layers differ in shape where one has fewer rows than the rank.
    draws = [
        (seed, draw)
        for entry in list(shapes.values())[:_MOST_SHAPES]
        for seed, draw in zip(seeds, NormalDraw((), seeds).make([entry] * len(seeds)), strict=True)
    ]
    wanted = {place: search.file.tensor(place) for place in places}
    for through in FLOATS.values():
        known = {bytes_of(draw.to(through).to(wanted[places[0]].dtype)): seed for seed, draw in draws}
        found = {place: known[key] for place, t in wanted.items() if (key := bytes_of(t)) in known}
        if found:
            yield NormalDraw(tuple(found), tuple(found.values()))


def _balanced(search: Search) -> Iterator[Recipe]:
    """UniLoRA deals indices to the two factors of each layer, and derives a scale for each."""
    vector, seed = search.places("unilora_theta_d"), search.config.proj_seed
    first, second = (search.tensors(f"unilora_indices_{factor}") for factor in "AB")
    if not vector or seed is None or not first:
        return
    length = search.file.entries[vector[0]].numbers
    dealt = BalancedPlaces((), seed, length).deal(sum(t.numel() for t in (*first.values(), *second.values())))
    names: list[str] = []
    for name in _in_order_of_dealing(dealt, first, second):
        names += [name, _second_factor(name)]
    scales = [name.replace("unilora_indices", "unilora_scales") for name in names]
    yield BalancedPlaces(search.places_of([*names, *scales]), seed, length)


def _in_order_of_dealing(dealt: Tensor, first: dict[str, Tensor], second: dict[str, Tensor]) -> list[str]:
    """Return the names of first factors in the order of the model, which shows in what they were dealt.

    Raises:
        LookupError: If the indices are not those of the seed.
    """
    beginnings = {name: tensor.reshape(-1)[:_PROBE] for name, tensor in first.items()}
    order: list[str] = []
    begin = 0
    while beginnings:
        name = next(
            (name for name, v in beginnings.items() if torch.equal(v, dealt[begin : begin + len(v)])), None
        )
        if name is None:
            raise LookupError("no layer has the next indices")
        del beginnings[name]
        order.append(name)
        begin += first[name].numel() + second[_second_factor(name)].numel()
    return order


def _second_factor(name: str) -> str:
    return name.replace("unilora_indices_A", "unilora_indices_B")


def _off_diagonal(search: Search) -> Iterator[Recipe]:
    """FRoD goes through its kinds of layers by name."""
    squares = search.tensors("frod_V")
    places = [place for place in search.places("frod_s_indices") if search.file.entries[place].numbers]
    names = [search.file.entries[place].name.replace("frod_s_indices", "frod_V") for place in places]
    if search.config.projection_prng_key is not None and places:
        sides = tuple(len(squares[name]) for name in names)
        yield OffDiagonalPlaces(tuple(places), search.config.projection_prng_key, sides)


def _masks(search: Search) -> Iterator[Recipe]:
    """SHiRA trains r (rows + columns) weights of a layer; how many are rows, the file does not tell."""
    seed, rank = search.config.random_seed, search.config.r
    if seed is None or not isinstance(rank, int) or rank < 1:
        return
    for place in sorted(search.firsts.intersection(search.places("shira_indices")))[:_MOST_SHAPES]:
        taken = search.file.tensor(place)
        rows, columns = (int(side) + 1 for side in taken.amax(dim=1))
        both = taken.shape[1] // rank
        for candidate in range(rows, min(both - columns, rows + _MOST_SHAPES) + 1):
            yield RandomMask((place,), seed, candidate, both - candidate)


FINDERS: Mapping[str, Callable[[Search], Iterator[Recipe]]] = {
    "VERA": _projections("vera_A", "vera_B"),
    "PVERA": _projections("pvera_A", "pvera_B"),
    "RANDLORA": _bases,
    "TINYLORA": _seed_of_each,
    "UNILORA": _balanced,
    "FROD": _off_diagonal,
    "SHIRA": _masks,
}
"""By the name that PEFT gives a method."""
