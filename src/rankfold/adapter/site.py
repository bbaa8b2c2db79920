"""One layer that is to be adapted: its sizes, its spec and its position in an MLP, checked together."""

import math
import warnings
from dataclasses import dataclass, replace
from typing import final

from rankfold.adapter.gating import MlpRole
from rankfold.adapter.geometry import Embedding, Geometry, Linear, Matrices
from rankfold.adapter.router import RouterSpec
from rankfold.adapter.spec import AdapterSpec
from rankfold.errors import RankfoldWarning, SpecError
from rankfold.factors import BasisSpec, FactorSpec, RelaySpec, Side, SvdSpec, rank_cap


@final
@dataclass(frozen=True, slots=True)
class MlpPosition:
    """A layer's position in an MLP.

    Args:
        root: Path of the MLP, the same for all its layers.
        role: What the layer is in it.
        width: Features of the MLP's input.
    """

    root: str
    role: MlpRole
    width: int


@final
@dataclass(frozen=True, slots=True)
class Site:
    """One layer that is to be adapted.

    Args:
        geometry: Kind and sizes of the base layer.
        spec: What it gets, with the rank, the alpha and the number of heads that hold for this layer.
        mlp: Its position in an MLP, if it is in one.
        tower: Path of the tower that it is in, such as a vision encoder, where a model has several; layers
            share factors within one.
    """

    geometry: Geometry
    spec: AdapterSpec
    mlp: MlpPosition | None = None
    tower: str = ""

    @property
    def experts(self) -> int | None:
        """How many matrices the layer has, each with factors of its own; None for a plain layer."""
        return self.geometry.experts if isinstance(self.geometry, Matrices) else None

    @property
    def sides(self) -> dict[Side, tuple[FactorSpec, int, int]]:
        """Spec, rows and cols of the down and of the up factor, all heads included."""
        spec, geometry = self.spec, self.geometry
        return {
            "down": (spec.down, spec.down_heads * spec.rank, geometry.in_features),
            "up": (spec.up, geometry.out_features, spec.most_heads * spec.up_rank),
        }

    def router_group(self, path: str) -> str:
        """Return the name of the layers that share one router with the layer at `path`."""
        spec = self.spec.router
        root = self.mlp.root if spec is not None and spec.scope != "layer" and self.mlp is not None else path
        return f"{root}.router"

    def router_size(self, spec: RouterSpec) -> tuple[int, int]:
        """Return the heads of the layer's router, and the features that it reads."""
        heads = self.spec.most_heads
        if spec.reads == "code":
            return heads, self.spec.down_heads * self.spec.rank
        if spec.scope == "layer" or self.mlp is None:
            return heads, self.geometry.in_features
        return heads, self.mlp.width


def check_site(path: str, site: Site) -> Site:
    """Return the site with the spec that suits its type, after checking the rank."""
    sizes = site.geometry.in_features, site.geometry.out_features
    if isinstance(site.geometry, Matrices):
        _check_parameter(path, site)
    if site.spec.router is not None:
        _check_routed(path, site, site.spec.router)
    rank = max(site.spec.rank, site.spec.up_rank)
    if rank > min(sizes) and any(isinstance(side, SvdSpec) for side, _, _ in site.sides.values()):
        raise SpecError(
            f"r={rank} is more than the {min(sizes)} singular vectors of '{path}'; "
            f"give r at most {min(sizes)}, or another r for this layer by rank_pattern."
        )
    if rank > min(sizes):
        message = (
            f"r={rank} is more than the rank of '{path}' can be ({min(sizes)}); a smaller r learns as much."
        )
        warnings.warn(message, RankfoldWarning, stacklevel=2)
    return replace(site, spec=site.spec.with_zero_down()) if isinstance(site.geometry, Embedding) else site


def _check_parameter(path: str, site: Site) -> None:
    """Check that an adapter of a parameter needs neither the inputs of its matrices nor their values."""
    spec = site.spec
    remedy = "or leave it out of target_parameters"
    if spec.router is not None:
        raise SpecError(
            f"'{path}' is a parameter, and a router weighs heads by the input of a layer, which no adapter "
            f"sees there; give heads=1, {remedy}."
        )
    if spec.dropout:
        raise SpecError(
            f"dropout={spec.dropout} cannot act on '{path}': it is a parameter, whose input no adapter sees; "
            f"give dropout=0, {remedy}."
        )
    for factor in (spec.down, spec.up):
        if site.experts is not None and isinstance(factor, SvdSpec | BasisSpec):
            raise SpecError(
                f"the factor '{factor.kind}' is taken for one weight, and '{path}' holds those of "
                f"{site.experts} experts; choose a method without it, {remedy}."
            )


def _check_routed(path: str, site: Site, spec: RouterSpec) -> None:
    if not isinstance(site.geometry, Linear):
        raise SpecError(
            f"'{path}' is not linear, so no router can weigh heads on it; leave it out of target_modules, "
            "or give it one head."
        )
    if spec.scope != "layer" and site.mlp is None:
        raise SpecError(
            f"'{path}' is in no MLP, but its router has scope '{spec.scope}'; use scope 'layer' for it."
        )


def warn_of_relays(sites: set[Site]) -> None:
    """Warn, once a size, where relaying costs more than it saves or where its map caps the rank."""
    sides = {
        (role, *side)
        for site in sites
        for role, side in site.sides.items()
        if (site.spec.share_down if role == "down" else site.spec.share_up) != "entries"
    }
    for role, spec, rows, cols in sorted(sides, key=repr):
        if not isinstance(spec, RelaySpec):
            continue
        size = f"the {role} factor ({rows} x {cols})"
        if 2 * spec.k >= math.sqrt(rows * cols):
            count = spec.parameter_count(rows, cols)
            message = f"k={spec.k} saves nothing on {size}: it trains {count} parameters for {rows * cols}."
            warnings.warn(message, RankfoldWarning, stacklevel=3)
        if (cap := rank_cap(spec, rows, cols)) < min(rows, cols):
            message = (
                f"map='row_major' with k={spec.k} caps the rank of {size} at {cap}; map='strided' does not."
            )
            warnings.warn(message, RankfoldWarning, stacklevel=3)
