"""From a spec to adapters: where configuration stops and modules begin."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import final

import torch
from torch import Tensor, nn

from rankfold.adapter.gating import (
    CodeGating,
    ExpertEntryGating,
    ExpertExitGating,
    Gating,
    InputGating,
    MlpEntryGating,
    MlpExitGating,
    MlpPass,
    MlpRole,
)
from rankfold.adapter.module import Adapter, Dropout, LearnedScale
from rankfold.adapter.router import RouterSpec
from rankfold.adapter.site import Site, check_site, warn_of_relays
from rankfold.errors import SpecError
from rankfold.factors import (
    BasisSpec,
    CoreSpec,
    Decomposition,
    Factor,
    FactorSpec,
    FixedFactor,
    Pool,
    Relay,
    RelayBatches,
    Share,
    Side,
    Svd,
    find_basis,
)

PartSpec = FactorSpec | CoreSpec | RouterSpec
"""Description of one part of an adapter that may have parameters."""


@final
@dataclass(frozen=True, slots=True)
class Part:
    """One factor or router of an adapter, before it is built.

    Args:
        spec: Its description.
        rows: Its rows; of a router its heads.
        cols: Its columns; of a router the features that it reads.
        copies: How many matrices of these sizes it holds, one for each expert.
    """

    spec: PartSpec
    rows: int
    cols: int
    copies: int = 1

    @property
    def parameter_count(self) -> int:
        """How many parameters it trains."""
        return self.copies * self.spec.parameter_count(self.rows, self.cols)


@final
@dataclass(frozen=True, slots=True)
class BuiltAdapter:
    """An adapter together with the parts that its layer has to register.

    Args:
        adapter: The adapter.
        owned_parts: By role (`down`, `core`, `up`, `scale`, `router`, `dropout`), the modules that belong to
            this layer; a shared factor belongs to one layer only.
    """

    adapter: Adapter
    owned_parts: dict[str, nn.Module]


@final
class Builder:
    """Builds the adapters of one name on one model, one layer at a time, and keeps their shared factors.

    Args:
        sites: The layers to be adapted, by their path below the deepest module that holds them all. Frozen
            factors are derived from these paths, so they must not depend on what the model is wrapped in.
        name: The adapter's name. It takes part in the initial values of trained factors, so that two adapters
            of one spec differ, but not in frozen factors, so that an adapter may be loaded under another
            name.

    Raises:
        SpecError: If a layer has fewer singular vectors than a rank asks for, or cannot have several heads.
    """

    def __init__(self, sites: Mapping[str, Site], *, name: str) -> None:
        self.sites = {path: check_site(path, site) for path, site in sites.items()}
        self.name = name
        self._relays: list[Relay] = []
        self._passes: dict[str, MlpPass] = {}
        self._pools = _pools(self.sites)
        warn_of_relays(set(self.sites.values()))

    def build(
        self, path: str, base_weight: Callable[[], Tensor] | None = None, *, name: str | None = None
    ) -> BuiltAdapter:
        """Return the adapter of one layer.

        Args:
            path: The layer's path.
            base_weight: Returns the base layer's weight, in its shape, for factors that are taken from it;
                None where the base has no values.
            name: The layer's whole name, by which a basis has it; the path if None.

        Raises:
            KeyError: If `path` is not among the sites.
            SpecError: If a factor wants more of the base weight or of a basis than there is, or there is no
                such basis.
        """
        site = self.sites[path]
        spec, owned_parts = site.spec, dict[str, nn.Module]()
        views: dict[Side, Factor] = {}
        for role, (factor, rows, cols) in site.sides.items():
            create = partial(self._create, factor, spec.seed, role)
            views[role], new_factor = self._pools[site.tower, role].take(
                path, rows, cols, create, site.experts
            )
            if new_factor is not None:
                owned_parts[role] = new_factor
        core = None
        if spec.core is not None:
            core = owned_parts["core"] = self._create(
                spec.core, spec.seed, "core", path, spec.up_rank, spec.rank, site.experts
            )
        scale = None
        if spec.scaling == "learned":
            scale = owned_parts["scale"] = LearnedScale(site.experts)
        if base_weight is not None:
            _take_from_weight(views, site, base_weight)
        _take_from_bases(views, site, name or path)
        gating = self._gating(path, owned_parts)
        dropout = Dropout(spec.dropout) if spec.dropout else nn.Identity()
        if spec.dropout or not owned_parts:  # a layer has a part of each of its adapters
            owned_parts["dropout"] = dropout
        adapter = Adapter(
            views["down"],
            views["up"],
            geometry=site.geometry,
            core=core,
            scaling=spec.multiplier,
            scale=scale,
            gating=gating,
            down_heads=spec.down_heads,
            **{f"{spec.dropout_position}_dropout": dropout},
        )
        return BuiltAdapter(adapter, owned_parts)

    def parameter_count(self) -> int:
        """Return how many parameters the adapters of all sites train, without building them."""
        scales = sum(site.experts or 1 for site in self.sites.values() if site.spec.scaling == "learned")
        return scales + sum(part.parameter_count for part in self.parts().values())

    def tensor_sizes(self) -> list[tuple[str, int]]:
        """Return the role and the numbers of each trained tensor, without building them."""
        sizes = [
            ("scale", site.experts or 1) for site in self.sites.values() if site.spec.scaling == "learned"
        ]
        for name, part in self.parts().items():
            role = "router" if isinstance(part.spec, RouterSpec) else name.rpartition(".")[2]
            sizes += [(role, part.copies * size) for size in _tensor_sizes(part.spec, part.rows, part.cols)]
        return sizes

    def parts(self) -> dict[str, Part]:
        """Return the spec and the sizes of every factor and router, by its name; a shared one is there once.

        The sizes of a router are its heads and the features that it reads.
        """
        parts: dict[str, Part] = {}
        for path, site in self.sites.items():
            for role, (factor, rows, cols) in site.sides.items():
                pool = self._pools[site.tower, role]
                group, *size = pool.group(path, rows, cols)
                copies = pool.stack_size(site.experts) or 1
                parts.setdefault(f"{group}.{role}", Part(factor, size[0], size[1], copies))
            spec = site.spec
            if spec.core is not None:
                parts[f"{path}.core"] = Part(spec.core, spec.up_rank, spec.rank, site.experts or 1)
            if spec.router is not None:
                parts[site.router_group(path)] = Part(spec.router, *site.router_size(spec.router))
        return parts

    def relay_batches(self) -> RelayBatches | None:
        """Return the batches of all relayed factors built so far, or None if there are none."""
        return RelayBatches(self._relays) if self._relays else None

    def _gating(self, path: str, owned_parts: dict[str, nn.Module]) -> Gating | None:
        """Return the gating of one layer with several heads; a router that is new goes into `owned_parts`."""
        site = self.sites[path]
        spec = site.spec.router
        if spec is None:
            return None
        group = site.router_group(path)
        if group not in self._passes:
            owned_parts["router"] = router = spec.build(*site.router_size(spec))
            router.reset(seed=site.spec.seed, name=f"{self.name}/{group}")
            self._passes[group] = MlpPass(router)
        return gating_of(self._passes[group], spec, site.mlp and site.mlp.role)

    def _create(
        self,
        spec: FactorSpec | CoreSpec,
        seed: int,
        role: str,
        group: str,
        rows: int,
        cols: int,
        experts: int | None,
    ) -> Factor:
        factor = spec.build(rows, cols, experts)
        name = f"{group}.{role}"
        factor.reset(seed=seed, name=name if factor.is_frozen else f"{self.name}/{name}")
        if isinstance(factor, Relay) and experts is None:  # those of experts are one batch by themselves
            self._relays.append(factor)
        return factor


@cache
def _tensor_sizes(spec: PartSpec, rows: int, cols: int) -> tuple[int, ...]:
    """Return the numbers of each trained tensor of a part; only its structure is built."""
    with torch.device("meta"):
        return tuple(parameter.numel() for parameter in spec.build(rows, cols).parameters())


def gating_of(mlp: MlpPass, spec: RouterSpec, role: MlpRole | None) -> Gating:
    """Return the gating for a router's scope and a layer's role in its MLP, if it is in one."""
    match spec.scope, role:
        case "layer", _:
            return CodeGating(mlp.router) if spec.reads == "code" else InputGating(mlp.router)
        case "mlp", "entry":
            return MlpEntryGating(mlp)
        case "mlp", _:
            return MlpExitGating(mlp)
        case "experts", "entry":
            return ExpertEntryGating(mlp, spec.top_k or mlp.router.heads)
        case _:
            return ExpertExitGating(mlp, spec.top_k or mlp.router.heads)


def _take_from_weight(views: Mapping[Side, Factor], site: Site, base_weight: Callable[[], Tensor]) -> None:
    """Give the factors that are parts of the base weight their values."""
    sides: dict[Side, Svd] = {role: view for role, view in views.items() if isinstance(view, Svd)}
    if sides:
        weight = site.geometry.as_matrix(base_weight())
        decomposition = Decomposition(weight, max(site.spec.rank, site.spec.up_rank))
        for role, factor in sides.items():
            factor.take(decomposition.side(role, factor.split))


def _take_from_bases(views: Mapping[Side, Factor], site: Site, name: str) -> None:
    """Give the factors that are sides of a learned basis their values."""
    for role, (spec, _, _) in site.sides.items():
        view = views[role]
        if isinstance(spec, BasisSpec) and isinstance(view, FixedFactor):
            basis, size = find_basis(spec.digest), site.geometry
            values = basis.side(name, role)
            if values.shape[role == "down"] != (size.in_features if role == "down" else size.out_features):
                raise SpecError(
                    f"{basis.title} has the {role} side of '{name}' as {values.shape[0]} x "
                    f"{values.shape[1]}, and the layer has {size.in_features} in, {size.out_features} out; "
                    "take a basis of this base model."
                )
            view.take(values)


def _pools(sites: Mapping[str, Site]) -> dict[tuple[str, Side], Pool]:
    """Return the pool of each tower and side, with the size of every layer announced."""
    pools: dict[tuple[str, Side], Pool] = {}
    for path, site in sites.items():
        shares: dict[Side, Share] = {"down": site.spec.share_down, "up": site.spec.share_up}
        for role, (_, rows, cols) in site.sides.items():
            pools.setdefault((site.tower, role), Pool(shares[role], site.tower)).reserve(path, rows, cols)
    return pools
