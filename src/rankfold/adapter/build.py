"""From a spec to adapters: where configuration stops and modules begin."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import final

from torch import nn

from rankfold.adapter.geometry import Embedding, Geometry
from rankfold.adapter.module import Adapter, LearnedScale
from rankfold.adapter.spec import AdapterSpec
from rankfold.errors import RankfoldWarning, SpecError
from rankfold.factors import (
    CoreSpec,
    Factor,
    FactorSpec,
    Pool,
    Relay,
    RelayBatches,
    RelaySpec,
    Share,
    rank_cap,
)


@final
@dataclass(frozen=True, slots=True)
class Site:
    """One layer that is to be adapted.

    Args:
        geometry: Kind and sizes of the base layer.
        spec: What it gets, with the rank and the alpha that hold for this layer.
    """

    geometry: Geometry
    spec: AdapterSpec


@final
@dataclass(frozen=True, slots=True)
class BuiltAdapter:
    """An adapter together with the parts that its layer has to register.

    Args:
        adapter: The adapter.
        owned: By role (`down`, `core`, `up`, `scale`, `dropout`), what belongs to this layer; a shared factor
            belongs to one layer only.
    """

    adapter: Adapter
    owned: dict[str, nn.Module]


@final
class Builder:
    """Builds the adapters of one name on one model, one layer at a time, and keeps what they share.

    Args:
        sites: The layers to be adapted, by their path below the deepest module that holds them all. Frozen
            factors are derived from these paths, so they must not depend on what the model is wrapped in.
        name: The adapter's name. It takes part in the initial values of trained factors, so that two adapters
            of one spec differ, but not in frozen factors, so that an adapter may be loaded under another
            name.

    Raises:
        SpecError: If a rank is larger than a layer.
    """

    def __init__(self, sites: Mapping[str, Site], *, name: str) -> None:
        self.sites = {path: _checked(path, site) for path, site in sites.items()}
        self.name = name
        self._relays: list[Relay] = []
        self._pools = _pools(self.sites)
        _warn_of_relays(set(self.sites.values()))

    def build(self, path: str) -> BuiltAdapter:
        """Return the adapter of one layer.

        Raises:
            KeyError: If `path` is not among the sites.
        """
        site = self.sites[path]
        spec, owned = site.spec, dict[str, nn.Module]()
        views: dict[str, Factor] = {}
        for role, (factor, rows, cols) in _sides(site).items():
            create = partial(self._create, factor, spec.seed, role)
            views[role], own = self._pools[role].take(path, rows, cols, create)
            if own is not None:
                owned[role] = own
        core = None
        if spec.core is not None:
            core = owned["core"] = self._create(spec.core, spec.seed, "core", path, spec.up_rank, spec.rank)
        scale = None
        if spec.scaling == "learned":
            scale = owned["scale"] = LearnedScale()
        dropout = owned["dropout"] = nn.Dropout(spec.dropout) if spec.dropout else nn.Identity()
        adapter = Adapter(
            views["down"],
            views["up"],
            geometry=site.geometry,
            core=core,
            scaling=spec.multiplier,
            scale=scale,
            **{f"{spec.dropout_position}_dropout": dropout},
        )
        return BuiltAdapter(adapter, owned)

    def trained_numbers(self) -> int:
        """Return how many numbers the adapters of all sites train, without building them."""
        groups: dict[str, int] = {}
        for path, site in self.sites.items():
            for role, (factor, rows, cols) in _sides(site).items():
                group, *size = self._pools[role].group(path, rows, cols)
                groups.setdefault(f"{group}.{role}", factor.numbers(*size))
            spec = site.spec
            groups[f"{path}.core"] = 0 if spec.core is None else spec.core.numbers(spec.up_rank, spec.rank)
            groups[f"{path}.scale"] = 1 if spec.scaling == "learned" else 0
        return sum(groups.values())

    def relay_batches(self) -> RelayBatches | None:
        """Return the batches of all relayed factors built so far, or None if there are none."""
        return RelayBatches(self._relays) if self._relays else None

    def _create(
        self, spec: FactorSpec | CoreSpec, seed: int, role: str, group: str, rows: int, cols: int
    ) -> Factor:
        factor = spec.build(rows, cols)
        name = f"{group}.{role}"
        factor.reset(seed=seed, name=name if factor.is_frozen else f"{self.name}/{name}")
        if isinstance(factor, Relay):
            self._relays.append(factor)
        return factor


def _sides(site: Site) -> dict[str, tuple[FactorSpec, int, int]]:
    """Return spec, rows and cols of the down and of the up factor."""
    spec, geometry = site.spec, site.geometry
    return {
        "down": (spec.down, spec.rank, geometry.in_features),
        "up": (spec.up, geometry.out_features, spec.up_rank),
    }


def _pools(sites: Mapping[str, Site]) -> dict[str, Pool]:
    """Return the pool of each side, with the size of every layer announced."""
    pools: dict[str, Pool] = {}
    for site in sites.values():
        shares: dict[str, Share] = {"down": site.spec.share_down, "up": site.spec.share_up}
        for role, (_, rows, cols) in _sides(site).items():
            pools.setdefault(role, Pool(shares[role])).reserve(rows, cols)
    return pools


def _checked(path: str, site: Site) -> Site:
    """Return the site with the spec that suits its kind, after checking the rank."""
    sizes = site.geometry.in_features, site.geometry.out_features
    rank = max(site.spec.rank, site.spec.up_rank)
    if rank > max(sizes):
        raise SpecError(
            f"r={rank} is larger than the layer '{path}' ({sizes[0]} in, {sizes[1]} out); "
            f"give r at most {min(sizes)}, or another r for this layer by rank_pattern."
        )
    if rank > min(sizes):
        message = (
            f"r={rank} is more than the rank of '{path}' can be ({min(sizes)}); a smaller r learns as much."
        )
        warnings.warn(message, RankfoldWarning, stacklevel=2)
    return replace(site, spec=site.spec.with_zero_down()) if isinstance(site.geometry, Embedding) else site


def _warn_of_relays(sites: set[Site]) -> None:
    """Warn, once a size, where relaying costs more than it saves or where its map caps the rank."""
    sides = {(role, *side) for site in sites for role, side in _sides(site).items()}
    for role, spec, rows, cols in sorted(sides, key=repr):
        if not isinstance(spec, RelaySpec):
            continue
        size = f"the {role} factor ({rows} x {cols})"
        if 2 * spec.k >= math.sqrt(rows * cols):
            numbers = spec.numbers(rows, cols)
            message = f"k={spec.k} saves nothing on {size}: it trains {numbers} numbers for {rows * cols}."
            warnings.warn(message, RankfoldWarning, stacklevel=3)
        if (cap := rank_cap(spec, rows, cols)) < min(rows, cols):
            message = (
                f"map='row_major' with k={spec.k} caps the rank of {size} at {cap}; map='strided' does not."
            )
            warnings.warn(message, RankfoldWarning, stacklevel=3)
