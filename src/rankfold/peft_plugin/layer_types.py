"""The types of layers that carry adapters, one for each geometry.

The names matter: where a model carries adapters already, PEFT takes a layer for a linear one, as "all-linear"
asks for, if the name of its class says so.
"""

from collections.abc import Sequence
from typing import TypeGuard, final

import torch
from peft.utils.quantization_utils import QuantizationBackend
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from transformers.pytorch_utils import Conv1D

from rankfold.adapter.gating import ExpertGating
from rankfold.adapter.geometry import Conv2d, Embedding, Geometry, Linear
from rankfold.errors import SpecError
from rankfold.factors.base import is_transformed
from rankfold.peft_plugin.layer import RankfoldLayer, layer_sizes
from rankfold.peft_plugin.parameters import own_matrices


@final
class RankfoldLinear(RankfoldLayer):
    """A linear layer with its adapters."""

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Whether PEFT can convert an adapter to LoRA: not if its gates depend on the input.

        Of a name that the layer does not have, such as PEFT's default for a model of other names, it is
        asked of all adapters.
        """
        adapters = self.rankfold_adapters
        candidates = [adapters[adapter_name]] if adapter_name in adapters else adapters.values()
        return all(adapter.router is None for adapter in candidates)

    def fused_forward(self, active: Sequence[str], x: Tensor) -> Tensor | None:
        """Take the fast way for one adapter without dropout of its output on a plain layer.

        Not under autocast, and not in a transform of `torch.func`.
        """
        base = self.base_layer
        if torch.compiler.is_compiling():  # the compiler fuses better than we do
            return None
        if len(active) != 1 or not _is_plain(base) or _autocasts(x.device.type) or is_transformed():
            return None
        adapter = self.rankfold_adapters[active[0]]
        is_parted = isinstance(adapter.gating, ExpertGating)
        if is_parted or adapter.drops_output or not x.dtype == base.weight.dtype == adapter.dtype:
            return None
        return adapter.with_base(x, base.weight, base.bias)


@final
class RankfoldConv2d(RankfoldLayer):
    """A convolution with its adapters; its input x is [batch, channels, height, width]."""

    feature_axes = 3


@final
class RankfoldEmbedding(RankfoldLayer):
    """An embedding with its adapters."""

    feature_axes = 0

    def change(self, name: str, x: Tensor) -> Tensor:
        """Return the change of the output by an adapter, for tokens x [*batch]."""
        change = self.rankfold_adapters[name](x)
        # Some embeddings multiply what they look up, and so must the adapter, or merging would change the
        # output.
        scale = self._get_embed_scale()
        return change if scale is None else change * scale.to(change.dtype)


_LAYER_TYPES: dict[type[Geometry], type[RankfoldLayer]] = {
    Linear: RankfoldLinear,
    Conv2d: RankfoldConv2d,
    Embedding: RankfoldEmbedding,
}


def wrap(base_layer: nn.Module, geometry: Geometry, backend: QuantizationBackend | None) -> RankfoldLayer:
    """Return the layer of the right type around a base layer, still without adapters."""
    return _LAYER_TYPES[type(geometry)](base_layer, backend)


def _autocasts(device: str) -> bool:
    # Asked of a device that has no autocast, such as meta, torch raises.
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _is_plain(base: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a layer need not be called: frozen, with a forward of its class, and no hook waits for it."""
    return (
        type(base) is nn.Linear
        and type(base.weight) is nn.Parameter
        and not any(parameter.requires_grad for parameter in base.parameters())
        # Accelerate and others who patch a layer put their forward on the instance.
        and "forward" not in base.__dict__
        and not (base._forward_pre_hooks or base._forward_hooks)
        and not (base._backward_pre_hooks or base._backward_hooks)
        and not _has_any_global_hook()
    )


def geometry_of(name: str, layer: nn.Module, backend: QuantizationBackend | None) -> Geometry:
    """Return the type and the sizes of a base layer.

    Raises:
        SpecError: If it is of a type that cannot be adapted.
    """
    if isinstance(layer, nn.Embedding):
        return Embedding(layer.num_embeddings, layer.embedding_dim, layer.padding_idx)
    if isinstance(layer, nn.Conv2d):
        return Conv2d(
            layer.in_channels,
            layer.out_channels,
            _pair(layer.kernel_size),
            _pair(layer.stride),
            layer.padding if isinstance(layer.padding, str) else _pair(layer.padding),
            _pair(layer.dilation),
            layer.groups,
            layer.padding_mode,
            tuple(layer._reversed_padding_repeated_twice),
        )
    if isinstance(layer, nn.Linear | Conv1D) or (backend is not None and backend.layer_type == "linear"):
        in_features, out_features = layer_sizes(layer)
        if in_features is not None and out_features is not None:
            return Linear(in_features, out_features, transposed=isinstance(layer, Conv1D))
    if matrices := own_matrices(layer):
        names = [f"{name.rpartition('.')[2]}.{leaf}" for leaf in matrices]
        raise SpecError(
            f"Target module '{name}' is not supported: it is a {type(layer).__name__}; name its parameters "
            f"in target_parameters={names} in place of it, or exclude it by exclude_modules."
        )
    raise SpecError(
        f"Target module '{name}' is not supported: it is a {type(layer).__name__}; "
        "name Linear, Conv1D, Conv2d or Embedding layers in target_modules, or exclude it by exclude_modules."
    )


def _pair(value: tuple[int, ...]) -> tuple[int, int]:
    return value[0], value[1]
