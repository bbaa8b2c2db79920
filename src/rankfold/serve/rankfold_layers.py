"""The layers of an adapter of rankfold: built once for a kind, then filled from one file after another."""

import warnings
from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import partial
from typing import Literal, final

import torch
from torch import Tensor, nn

from rankfold.adapter.build import Builder
from rankfold.adapter.geometry import Geometry
from rankfold.adapter.module import Adapter
from rankfold.adapter.router import Router
from rankfold.errors import AdapterFileError, RankfoldWarning
from rankfold.export.layers import check_sizes
from rankfold.peft_plugin.config import RankfoldConfig
from rankfold.peft_plugin.layer import PREFIX
from rankfold.peft_plugin.state import check_fingerprint, check_layers
from rankfold.peft_plugin.targets import Target, find_targets, follow_renamings
from rankfold.serve.forms import (
    AdapterLayer,
    Field,
    LayerForm,
    Places,
    RouterForm,
    check_servable,
    fill_up,
    rank_axis,
    shape_text,
    stored_order,
)
from rankfold.serve.frame import Frames
from rankfold.store.adapter import SavedAdapter

_ROUTER = "router."

Carrier = Literal["down", "core", "up"]
"""The matrix that core and scaling are multiplied into."""


@final
class RankfoldLayers:
    """The layers of an adapter of rankfold, built once and filled from one file after another.

    Args:
        saved: The adapter.
        config: Its configuration.
        model: The base model.
        tensors: Its tensors, by the names of this model.
        dtype: The type to compute in.

    Raises:
        AdapterFileError: If it is damaged, or belongs to another model.
        SpecError: If it has something that a bank cannot serve.
    """

    def __init__(
        self,
        saved: SavedAdapter,
        config: RankfoldConfig,
        model: nn.Module,
        tensors: Mapping[str, Tensor],
        dtype: torch.dtype,
    ) -> None:
        config.keep_seed()
        follow_renamings(model, config)
        targets = list(find_targets(model, config).values())
        for target in targets:
            check_servable(saved, model, target.name, target.geometry)
        if config.expected_layers is not None:
            check_layers(config.expected_layers, targets)
        if config.expected_fingerprint is not None:
            check_fingerprint(config.expected_fingerprint, targets)
        self._dtype = dtype
        self._parameters: dict[str, nn.Parameter] = {}
        self._adapters: list[tuple[Target, Adapter]] = []
        with warnings.catch_warnings():
            # The warnings on ranks and relays were given when the adapter was made.
            warnings.simplefilter("ignore", RankfoldWarning)
            builder = Builder({target.path: target.site for target in targets}, name="default")
            check_sizes(builder, config)
            self._check(saved, builder, targets, tensors)
            for target in targets:
                built = builder.build(target.path, partial(_base_weight, target), name=target.name)
                for role, part in built.owned_parts.items():
                    part.to(dtype)
                    for key, parameter in part.named_parameters():
                        self._parameters[f"{target.name}.{PREFIX}{role}.{key}"] = parameter
                self._adapters.append((target, built.adapter.eval()))

    def _check(
        self, saved: SavedAdapter, builder: Builder, targets: Sequence[Target], tensors: Mapping[str, Tensor]
    ) -> None:
        """Check that the file has all tensors of the layers in their shapes, before any is made."""
        shapes: dict[str, torch.Size] = {}
        with torch.device("meta"):
            meta_builder = Builder(builder.sites, name="default")
            for target in targets:
                for role, part in meta_builder.build(target.path, name=target.name).owned_parts.items():
                    for key, parameter in part.named_parameters():
                        shapes[f"{target.name}.{PREFIX}{role}.{key}"] = parameter.shape
        own = {name: tensor.shape for name, tensor in tensors.items() if f".{PREFIX}" in name}
        faults = [name for name in shapes.keys() | own.keys() if shapes.get(name) != own.get(name)]
        if faults:
            name = min(faults)
            raise AdapterFileError(
                f"{saved.title} does not fit this base model: '{name}' has shape "
                f"{shape_text(own.get(name))} in its file, and the model asks for "
                f"{shape_text(shapes.get(name))}; name the model it was trained on."
            )

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Give every trained part the values of a file."""
        for name, parameter in self._parameters.items():
            parameter.copy_(tensors[name])

    def layers(self, places: Places, frames: Frames, fixed: dict[str, Tensor]) -> Iterator[AdapterLayer]:
        """Yield the layers with their forms.

        Args:
            places: Gets the places of the tensors.
            frames: Has the frozen matrices.
            fixed: Gets those of this adapter, by digest.
        """
        for target, adapter in self._adapters:
            carrier = _carrier(adapter)
            with torch.no_grad():
                matrices = self._matrices(adapter, carrier, target.geometry, {})
            own = [role for role in matrices if _is_own(role, adapter)]
            digests: dict[str, str] = {}
            for role in (role for role in ("down", "core", "up") if role in matrices and role not in own):
                digests[role], matrix = frames.intern(matrices[role])
                fixed[digests[role]] = matrix
            fields = self._fields(target, adapter, {role: matrices[role].shape for role in own}, places)
            router = None if adapter.router is None else _router_form(target, adapter, adapter.router)
            form = LayerForm(
                target.name, target.geometry, tuple(fields.items()), tuple(digests.items()), router
            )
            yield AdapterLayer(form, partial(self._matrices, adapter, carrier, target.geometry))

    def _fields(
        self, target: Target, adapter: Adapter, shapes: Mapping[str, Sequence[int]], places: Places
    ) -> dict[str, Field]:
        """Return the places of the tensors that an adapter has of its own on a layer, by role."""
        carrier, fields = _carrier(adapter), dict[str, Field]()
        is_plain = list(shapes) == ["down", "up"]
        for role, shape in shapes.items():
            if is_plain:
                shape = fill_up(shape, rank_axis(role, target.geometry))
            # A factor, or a router, that is not changed here is there once for the layers that share it.
            key: Hashable = (role, target.name)
            if role.startswith(_ROUTER):
                key = (role, id(adapter.router))
            elif role != carrier:
                key = (role, id(getattr(adapter, role)))
            fields[role] = places.place(key, shape)
        return fields

    def _matrices(
        self, adapter: Adapter, carrier: Carrier, geometry: Geometry, _tensors: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the matrices of a layer as slots have them, and the parameters of its router."""
        down, up = adapter.down().to(self._dtype), adapter.up().to(self._dtype)
        scale = adapter.scaling if adapter.scale is None else adapter.scaling * adapter.scale()
        core = None if adapter.core is None else adapter.core().to(self._dtype) * scale
        matrices = {"down": down, "up": up}
        match carrier:
            case "up" if core is not None:
                heads: Tensor = up.reshape(up.shape[0], -1, core.shape[0])
                matrices["up"] = (heads @ core).flatten(1)
            case "down" if core is not None:
                matrices["down"] = core @ down
            case "core":
                rank = down.shape[0] // adapter.down_heads
                matrices["core"] = torch.eye(rank, dtype=self._dtype) * scale if core is None else core
            case _:
                matrices[carrier] = matrices[carrier] * scale
        stored = {role: stored_order(role, matrix, geometry) for role, matrix in matrices.items()}
        if adapter.router is not None:
            stored |= {f"{_ROUTER}{key}": parameter for key, parameter in adapter.router.named_parameters()}
        return stored


def _router_form(target: Target, adapter: Adapter, router: Router) -> RouterForm:
    return RouterForm(
        router.spec,
        router.heads,
        router.in_features,
        adapter.down_heads,
        target.site.router_group(target.path),
        target.site.mlp and target.site.mlp.role,
    )


def _is_own(role: str, adapter: Adapter) -> bool:
    """Whether each adapter has a tensor of its own in a role, rather than all of them the same."""
    return role.startswith(_ROUTER) or role == _carrier(adapter) or not getattr(adapter, role).is_frozen


def _base_weight(target: Target) -> Tensor:
    return target.weight.detach()


def _carrier(adapter: Adapter) -> Carrier:
    """Return the matrix that takes core and scaling; a router may read the code as it comes from `down`."""
    if not adapter.up.is_frozen:
        return "up"
    return "core" if adapter.down.is_frozen or adapter.router is not None else "down"
