"""A base layer with its adapters, as PEFT wants it."""

import copy
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from inspect import signature
from typing import Any, Self

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, _get_in_out_features, check_adapters_to_merge
from peft.utils.quantization_utils import QuantizationBackend
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from rankfold.adapter.build import BuiltAdapter
from rankfold.adapter.gating import ExpertExitGating, ExpertGating
from rankfold.adapter.module import Adapter
from rankfold.errors import NotExactError, RankfoldWarning, SpecError
from rankfold.peft_plugin.effective_weight import effective_weight, is_in_forward
from rankfold.peft_plugin.mixed_batches import forward_mixed, note_input
from rankfold.peft_plugin.passes import ForwardPasses, row_adapters

PREFIX = "rankfold_"
"""The beginning of the names under which a layer registers the parts of its adapters."""

_BITS = 32
_SAME_CHANGE = 0.02  # merging into 16 bits rounds some of the change away
_MERGED = "rankfold_merged"  # in the metadata of a state_dict


class RankfoldLayer(nn.Module, BaseTunerLayer):
    """A base layer plus the active ones of its adapters: y = base(x) + sum of adapter(x).

    What an adapter trains is registered here by role, so that PEFT finds it under
    `<layer>.rankfold_<role>.<adapter>`. A shared factor is registered at one layer only; the adapters
    themselves, which know all their factors, are held without being registered.

    Args:
        base_layer: The layer that is adapted.
        quantization_backend: How to read and write its weight, where it is quantised.
    """

    adapter_layer_names = (
        "rankfold_down",
        "rankfold_core",
        "rankfold_up",
        "rankfold_scale",
        "rankfold_router",
        "rankfold_dropout",
    )
    other_param_names = ("rankfold_adapters", "rankfold_hooks")
    parameter_name = "weight"
    """The name, in the base layer, of the parameter that adapters are merged into."""
    feature_axes = 1
    """How many of the last axes of the input are never the batch."""

    def __init__(
        self, base_layer: nn.Module, quantization_backend: QuantizationBackend | None = None
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.quantization_backend = quantization_backend
        self.rankfold_down = nn.ModuleDict()
        self.rankfold_core = nn.ModuleDict()
        self.rankfold_up = nn.ModuleDict()
        self.rankfold_scale = nn.ModuleDict()
        self.rankfold_router = nn.ModuleDict()
        self.rankfold_dropout = nn.ModuleDict()
        self.rankfold_adapters: dict[str, Adapter] = {}
        self.rankfold_hooks: dict[str, list[RemovableHandle]] = {}
        self.merged_adapters: list[str] = []
        self.merge_drift: float | None = None
        # In a tuple, or it would be registered as a parameter of this layer.
        self._before_merge: tuple[nn.Parameter] | nn.Module | None = None
        self._disable_adapters = False
        # `peft.helpers.disable_input_dtype_casting` switches it.
        self.cast_input_dtype_enabled = True
        self.in_features, self.out_features = layer_sizes(base_layer)
        self.has_own_forward = quantization_backend is None and _has_own_forward(base_layer)
        self.path = ""
        self.passes: ForwardPasses | None = None
        self.is_used = False
        self.batch_axis: int | None = None
        self.is_compared_to_one_row = False
        self.weight_before_loading: Tensor | None = None
        self.register_load_state_dict_post_hook(_check_loaded_weight)

    @property
    def weight(self) -> Tensor:
        """The base weight; during a forward pass the weight that the layer acts with.

        PEFT's own layers always return the base weight, so that whoever reads it instead of calling the layer
        passes over their adapters.
        """
        base_weight = BaseTunerLayer.weight.__get__(self)
        if self.quantization_backend is not None or base_weight.is_meta or not is_in_forward():
            return base_weight
        rows = None if self.disable_adapters else row_adapters(self)
        names = self._acting_names() if rows is None else list(dict.fromkeys(rows))
        names = [name for name in names if name in self.rankfold_adapters]
        if not names:
            return base_weight
        adapters = [self.rankfold_adapters[name] for name in names]
        is_mixed = rows is not None and len(set(rows)) > 1
        check = partial(self._prepare_weight, names, is_mixed=is_mixed)
        return effective_weight(base_weight, adapters, check)

    def _acting_names(self) -> list[str]:
        """Return the names of the adapters that change the output of a pass now."""
        if self.disable_adapters or self.merged:
            return []
        return [
            name
            for name in self.active_adapters
            if name in self.rankfold_adapters and not self.rankfold_adapters[name].is_idle
        ]

    def _prepare_weight(self, names: Sequence[str], *, is_mixed: bool) -> None:
        """Check that some adapters are one change of the weight, whose values are about to be used.

        Raises:
            NotExactError: If the gates of one depend on the input, or rows have different adapters.
        """
        self._enter_pass()
        reader = f"the weight of '{self.path}' is read without calling the layer"
        if self.has_own_forward:
            name = type(self.get_base_layer()).__name__
            reader = f"'{self.path}' is a {name}, which reads its weight in a way of its own"
        if is_mixed:
            raise NotExactError(
                f"{reader}, so its rows cannot have different adapters; call the model for each."
            )
        for name in names:
            adapter = self.rankfold_adapters[name]
            if adapter.router is not None:
                raise NotExactError(
                    f"{reader}, and no weight equals the adapter '{name}', whose gates depend on the input; "
                    "leave the layer out with exclude_modules, or take a method without a router."
                )
            if adapter.drops:
                message = f"{reader}, so the dropout of its adapter has no effect."
                warnings.warn(message, RankfoldWarning, stacklevel=2)

    def _enter_pass(self) -> None:
        """Note that the layer is used, after checking that no other thread changed its adapters meanwhile."""
        if torch.compiler.is_compiling():
            return
        if self.passes is not None:
            self.passes.check_unchanged()
        self.is_used = True

    def update_layer(self, adapter_name: str, built_adapter: BuiltAdapter, *, inference_mode: bool) -> None:
        """Add an adapter, on the device and in the dtype of the base layer."""
        for role, part in built_adapter.owned_parts.items():
            getattr(self, f"rankfold_{role}")[adapter_name] = part
        self.rankfold_adapters[adapter_name] = built_adapter.adapter
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        """Move an adapter as PEFT does, unless the base layer has no weights now: they may be on a disk."""
        if device is not None or not is_meta(self.get_base_layer()):
            super()._move_adapter_to_device_of_base_layer(adapter_name, device)

    def forward(self, x: Tensor, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any) -> Tensor:
        """Return the base layer's output plus the adapters' changes.

        Args:
            x: The base layer's input.
            *args: Passed to the base layer.
            adapter_names: For each row its adapter, or `__base__`; None for the active adapters on every row.
            **kwargs: Passed to the base layer.
        """
        self._enter_pass()
        note_input(self, x)
        if self.disable_adapters and self.merged:
            self.unmerge()
        if self.has_own_forward:
            return self._forward_with_weight(x, *args, **kwargs)
        if adapter_names is None:
            adapter_names = row_adapters(self)
        if adapter_names is not None and not self.disable_adapters:
            return forward_mixed(self, x, adapter_names, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return self.base_layer(x, *args, **kwargs)
        active = self._acting_names()
        output = self.fused_forward(active, x) if not (args or kwargs) else None
        if output is not None:
            return output
        base_input = self._join(active, x)
        result = self.base_layer(base_input, *args, **kwargs)
        # A quantised layer may return a view that must not be the operand of autograd.
        result_sum = (
            result
            if self.quantization_backend is None
            else self.quantization_backend.maybe_clone_base_result(result)
        )
        for name in active:
            result_sum = result_sum + self.change(name, x if self.joins(name) else base_input)
        return result_sum.to(result.dtype)

    def _forward_with_weight(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the output of the base layer with the changed weight in the place of its own.

        Raises:
            SpecError: If the weight is not at hand until the layer is called.
        """
        weight = self.weight
        if weight.is_meta and hasattr(self.base_layer, "_hf_hook"):
            raise SpecError(
                f"'{self.path}', a {type(self.base_layer).__name__}, has its weight on no device until it is "
                "called, so no adapter can change it; leave the layer out with exclude_modules."
            )
        return functional_call(self.base_layer, {self.parameter_name: weight}, args, kwargs)

    def fused_forward(self, active: Sequence[str], x: Tensor) -> Tensor | None:
        """Return base output and changes in one, where that is possible and faster; None where it is not."""
        return None

    def change(self, name: str, x: Tensor) -> Tensor:
        """Return the change of the base layer's output by an adapter, for the input x."""
        adapter = self.rankfold_adapters[name]
        return adapter(self._cast_input_dtype(x, adapter.dtype))

    def joins(self, name: str) -> bool:
        """Whether an adapter joins here the experts that it parted where the MLP began."""
        return isinstance(self.rankfold_adapters[name].gating, ExpertExitGating)

    def _join(self, active: Sequence[str], x: Tensor) -> Tensor:
        """Return the input of the base layer, with experts joined."""
        gatings = [self.rankfold_adapters[name].gating for name in active]
        experts = [gating for gating in gatings if isinstance(gating, ExpertGating)]
        if len(experts) > 1:
            raise SpecError(
                f"the adapters {', '.join(active)} are active together, but the experts of two of them would "
                "read each other's hidden states; activate one of them."
            )
        return experts[0].join(x) if experts and isinstance(experts[0], ExpertExitGating) else x

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add adapters to the base weight, keeping the weight as it was for `unmerge`.

        Until then the layer acts with the merged adapters alone, also where it has none of them, so that a
        model of which some layers have one adapter and some another is the base plus the merged ones.

        The merged weight is this layer's own: another module that reads the same weight keeps the base's.
        Where the base is quantised or of less than 32 bits, `merge_drift` is the relative error.

        Args:
            safe_merge: Refuse a merged weight that is not finite, leaving the base as it is.
            adapter_names: Which adapters; the active ones if None.

        Raises:
            ValueError: If `safe_merge` finds a value that is not finite.
            SpecError: If the base layer is quantised in a way that cannot be written.
            NotExactError: If the gates of an adapter depend on the input.
        """
        self.check_can_merge(adapter_names, safe_merge=safe_merge)
        with self._change():
            self._merge(check_adapters_to_merge(self, adapter_names))

    def _merge(self, names: Sequence[str]) -> None:
        for name in names:
            self.merged_adapters.append(name)
            if name not in self.rankfold_adapters:
                continue
            weight, delta = self.get_base_weight(), self.get_delta_weight(name)
            if self._before_merge is None:
                self._keep_base()
            self.set_base_weight(_sum(weight, delta))
            if self.quantization_backend is not None or torch.finfo(weight.dtype).bits < _BITS:
                drift = _drift(self.get_base_weight(), weight, delta.to(weight.device))
                self.merge_drift = max(self.merge_drift or 0.0, drift)

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Activate adapters as PEFT does.

        Raises:
            ThreadError: If another thread runs the model.
        """
        with self._change():
            super().set_adapter(adapter_names, inference_mode)

    def enable_adapters(self, enabled: bool) -> None:
        """Enable or disable the adapters as PEFT does.

        Raises:
            ThreadError: If another thread runs the model.
        """
        with self._change():
            super().enable_adapters(enabled)

    @contextmanager
    def _change(self) -> Generator[None]:
        """Check that no other thread runs the model while its adapters change, and note the change."""
        if self.passes is not None:
            self.passes.check_can_change()
        yield
        if self.passes is not None:
            self.passes.note_change((tuple(self.active_adapters), self.disable_adapters, self.merged))

    def _keep_base(self) -> None:
        """Keep the base for `unmerge`, and let this layer have a weight of its own to merge into."""
        base = self.get_base_layer()
        if self.quantization_backend is not None:
            self._before_merge = copy.deepcopy(base)
            return
        weight = base.get_parameter(self.parameter_name)
        self._before_merge = (weight,)
        own_weight = nn.Parameter(weight.data, requires_grad=weight.requires_grad)
        setattr(base, self.parameter_name, own_weight)

    def check_can_merge(self, adapter_names: list[str] | None = None, *, safe_merge: bool = False) -> None:
        """Check that these adapters, the active ones if None, can be added to the base weight.

        Raises:
            NotExactError: If the gates of one depend on the input.
            SpecError: If the base weight cannot be written: it is quantised so, or computed at every pass.
            ValueError: If `safe_merge` finds a value of the merged weight that is not finite.
        """
        names = [name for name in adapter_names or self.active_adapters if name in self.rankfold_adapters]
        for name in names:
            self.rankfold_adapters[name].check_is_a_weight(name)
        if not names:
            return
        backend = self.quantization_backend
        if backend is not None and not backend.supports_merge:
            raise SpecError(
                f"a base quantised by {backend.backend_name} cannot be merged into; load it in float."
            )
        if backend is None and self.parameter_name not in dict(
            self.get_base_layer().named_parameters(recurse=False)
        ):
            raise SpecError(
                f"the weight of a {type(self.get_base_layer()).__name__} is computed at every pass, as by "
                "weight norm or pruning, so nothing can be merged into it; remove that from the base model."
            )
        if safe_merge:
            self._check_is_finite(names)

    def _check_is_finite(self, names: Sequence[str]) -> None:
        weight = self.get_base_weight()
        for name in names:
            if name not in self.merged_adapters:
                weight = _sum(weight, self.get_delta_weight(name))
            if not torch.isfinite(weight).all():
                raise ValueError(
                    f"NaNs detected in the merged weights. The adapter {name} seems to be broken"
                )

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.merged and hasattr(destination, "_metadata"):
            destination._metadata[prefix[:-1]][_MERGED] = list(self.merged_adapters)

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        """Refuse a base weight with merged adapters, on which they would act a second time.

        Raises:
            SpecError: If the weights were saved with other adapters merged than are merged here.
        """
        saved_as = local_metadata.get(_MERGED, [])
        weight = state_dict.get(f"{prefix}base_layer.{self.parameter_name}")
        if weight is not None and "version" in local_metadata and saved_as != self.merged_adapters:
            here = ", ".join(self.merged_adapters) or "none"
            raise SpecError(
                f"the base weight of '{self.path}' was saved with merged adapters: "
                f"{', '.join(saved_as) or 'none'}; here {here} are merged; call unmerge_adapter before you "
                "save it and before you load it."
            )
        # Files of safetensors say nothing on merging; the values do, once the adapters are loaded too.
        own_weight = dict(self.get_base_layer().named_parameters(recurse=False)).get(self.parameter_name)
        if weight is not None and own_weight is not None and _is_other(weight, own_weight):
            self.weight_before_loading = own_weight.detach().clone()
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def original_weight(self) -> Tensor:
        """Return the base weight without merged adapters, dequantised."""
        before = self._before_merge
        if isinstance(before, nn.Module) and self.quantization_backend is not None:
            return self.quantization_backend.get_base_weight(before)
        return before[0].data if isinstance(before, tuple) else self.get_base_weight()

    def unmerge(self) -> None:
        """Restore the base layer as it was before the first merge, in its present dtype, where it is now."""
        with self._change():
            self._restore_base()

    def _restore_base(self) -> None:
        self.merged_adapters.clear()
        self.merge_drift = None
        before, self._before_merge = self._before_merge, None
        if isinstance(before, nn.Module):
            self.base_layer = before
        elif before is not None:
            base, (weight,) = self.get_base_layer(), before
            # The parameter itself comes back, so that tied weights are tied again, in whatever order.
            weight.data = weight.data.to(base.get_parameter(self.parameter_name))
            setattr(base, self.parameter_name, weight)

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter, and the hooks on the model that serve it."""
        with self._change():
            self.remove_hooks(adapter_name)
            super().delete_adapter(adapter_name)

    def remove_hooks(self, adapter_name: str) -> None:
        """Remove the hooks on the model that serve an adapter."""
        for hook in self.rankfold_hooks.pop(adapter_name, []):
            hook.remove()

    def get_delta_weight(self, adapter: str) -> Tensor:
        """Return an adapter's change of the base weight, in its shape."""
        with torch.no_grad():
            return self.rankfold_adapters[adapter].delta_weight()

    def set_scale(self, adapter: str, scale: float) -> None:
        """Set the strength of an adapter, as a multiple of its own scaling."""
        if adapter in self.rankfold_adapters:
            self.rankfold_adapters[adapter].strength = scale

    def scale_layer(self, scale: float) -> None:
        """Multiply the strength of the active adapters."""
        for name in self.active_adapters:
            if name in self.rankfold_adapters:
                self.rankfold_adapters[name].strength *= scale

    def unscale_layer(self, scale: float | None = None) -> None:
        """Divide the strength of the active adapters, or set it back to 1 if `scale` is None."""
        for name in self.active_adapters:
            if name in self.rankfold_adapters:
                adapter = self.rankfold_adapters[name]
                adapter.strength = 1.0 if scale is None else adapter.strength / scale

    def _replicate_for_data_parallel(self) -> Self:
        """Refuse nn.DataParallel, whose copies of this layer would go on with this one's adapters."""
        raise SpecError(
            "nn.DataParallel cannot copy a layer with adapters to another GPU; start one process for each "
            "GPU with torchrun, or show the program one GPU by CUDA_VISIBLE_DEVICES."
        )

    def __repr__(self) -> str:
        """Return PEFT's form of a layer's representation."""
        return "rankfold." + super().__repr__()


_FORWARDS = {layer.forward for layer in (nn.Linear, nn.Embedding, nn.Conv2d, Conv1D)}


def _has_own_forward(base_layer: nn.Module) -> bool:
    """Whether a layer's output is not that of its type: it offsets positions, pads, or scales its weight.

    Then a change of the output would not be that of a change of the weight. A factor on what an embedding
    looks up is known by its name.
    """
    layer_type = type(base_layer)
    if isinstance(base_layer, nn.Embedding) and hasattr(base_layer, "embed_scale"):
        return len(signature(layer_type.forward).parameters) > 2  # noqa: PLR2004 (the layer and the tokens)
    if issubclass(layer_type, nn.Conv2d) and layer_type._conv_forward is not nn.Conv2d._conv_forward:
        return True
    return layer_type.forward not in _FORWARDS


def _is_other(weight: Tensor, own_weight: Tensor) -> bool:
    """Whether a weight has other values than a layer's own, as far as these are at hand."""
    is_comparable = type(weight) in (Tensor, nn.Parameter) and type(own_weight) is nn.Parameter
    if not is_comparable or weight.is_meta or own_weight.is_meta or weight.shape != own_weight.shape:
        return False
    return not torch.equal(weight.to(own_weight), own_weight)


def _check_loaded_weight(layer: "RankfoldLayer", _keys: Any) -> None:
    """Refuse a loaded base weight that is the former one plus an adapter: a hook after loading.

    Raises:
        SpecError: If it is.
    """
    before, layer.weight_before_loading = layer.weight_before_loading, None
    if before is None or layer.merged:
        return
    change = layer.get_base_weight().float() - before.float()
    for name in layer.rankfold_adapters:
        try:
            delta = layer.get_delta_weight(name).float()
        except NotExactError:  # no weight has ever had it merged
            continue
        if delta.is_meta:
            continue
        delta = delta.to(change.device)
        if delta.any() and (change - delta).norm() <= _SAME_CHANGE * delta.norm():
            raise SpecError(
                f"the loaded base weight of '{layer.path}' has the adapter '{name}' merged into it, which "
                "would act twice; call unmerge_adapter before you save the model."
            )


def _sum(weight: Tensor, delta: Tensor) -> Tensor:
    """Return a weight with a change, in the dtype of the weight and where it is."""
    exact = torch.promote_types(weight.dtype, delta.dtype)
    return (weight.to(exact) + delta.to(weight.device)).to(weight.dtype)


def _drift(merged_weight: Tensor, weight: Tensor, delta: Tensor) -> float:
    """Return how far a merged weight is from the sum that it stands for, relative to the change."""
    error = merged_weight.float() - (weight.float() + delta.float())
    size = delta.float().norm()
    return 0.0 if size == 0 else (error.norm() / size).item()


def layer_sizes(layer: nn.Module) -> tuple[int | None, int | None]:
    """Return a layer's `in_features` and `out_features` by PEFT; a convolution's are its channels."""
    with warnings.catch_warnings():
        # PEFT warns of types of layers it does not know; `geometry_of` checks those that we take.
        warnings.simplefilter("ignore", UserWarning)
        return _get_in_out_features(layer)


def walk(model: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield every module by name, as `named_modules` does, but none of the parts of adapters of rankfold.

    A model with a thousand adapters has hundreds of times as many modules as its base; all that an adapter
    has to know when it is added is in the others.

    Args:
        model: The model.
        name: Its own name.
    """
    yield from _walk(model, name, set())


def _walk(module: nn.Module, name: str, seen: set[nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    if module in seen:
        return
    seen.add(module)
    yield name, module
    is_adapted = isinstance(module, RankfoldLayer)
    for key, child in module.named_children():
        if not (is_adapted and key.startswith(PREFIX)):
            yield from _walk(child, f"{name}.{key}" if name else key, seen)


def is_meta(module: nn.Module) -> bool:
    """Whether a module has no weights, or none at hand."""
    return any(parameter.is_meta for parameter in module.parameters())
