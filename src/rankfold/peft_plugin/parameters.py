"""Parameters with adapters: weights that are no layer's own, such as the experts of an MoE in one tensor.

No adapter sees the inputs of such a parameter, so it changes the parameter itself: while the module that has
it runs, the module reads W + U C V, for every expert its own.
"""

import threading
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast, final

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import ParametrizationList
from transformers.pytorch_utils import Conv1D

from rankfold.adapter.geometry import Matrices
from rankfold.errors import SpecError
from rankfold.peft_plugin.effective_weight import is_in_forward
from rankfold.peft_plugin.layer import RankfoldLayer

_LAYERS = (nn.Linear, nn.Embedding, _ConvNd, nn.RNNBase, Conv1D, ParametrizationList)
_MATRIX_AXES = (2, 3)


@final
class RankfoldParameter(RankfoldLayer):
    """One parameter with its adapters; a call returns it with the changes of the active ones.

    Args:
        owner: The module that has the parameter.
        name: The parameter's name in it.
        geometry: Its sizes.
    """

    def __init__(self, owner: nn.Module, name: str, geometry: Matrices) -> None:
        super().__init__(owner)
        self.has_own_forward = False
        # The wrapper around both has it registered already; a second time, its weights would be saved twice.
        self._owner = (owner,)
        del self._modules["base_layer"]
        self.parameter_name = name
        self.in_features, self.out_features = geometry.in_features, geometry.out_features

    def forward(self) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride] (it has no input)
        """Return the parameter with the changes of the active adapters, in its dtype."""
        self._enter_pass()
        self.unmerge_if_disabled()
        parameter: Tensor = self.parameter
        for name in self._acting_names():
            parameter = self.rankfold_adapters[name].add_to(parameter)
        return parameter

    def unmerge_if_disabled(self) -> None:
        """Take merged adapters back out where they are disabled."""
        if self.disable_adapters and self.merged:
            self.unmerge()

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter itself."""
        return self.get_base_layer().get_parameter(self.parameter_name)

    @property
    def acts(self) -> bool:
        """Whether an adapter changes the parameter now."""
        return bool(self._acting_names())

    def get_base_layer(self) -> nn.Module:
        """Return the module that has the parameter."""
        return self._owner[0]

    def get_base_weight(self) -> Tensor:
        """Return the parameter's values."""
        return self.parameter.data

    def set_base_weight(self, weight_data: Tensor) -> None:
        """Set the parameter's values."""
        self.parameter.data = weight_data

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        weight = self.parameter
        if device is None and weight.is_meta:
            return
        for attribute in self.adapter_layer_names:
            parts: nn.ModuleDict = getattr(self, attribute)
            if adapter_name in parts and not any(part.is_meta for part in parts[adapter_name].parameters()):
                parts[adapter_name].to(device or weight.device, dtype=weight.dtype)

    def __repr__(self) -> str:
        """Return the representation with the parameter's name."""
        return (
            super()
            .__repr__()
            .replace("RankfoldParameter(", f"RankfoldParameter('{self.parameter_name}', ", 1)
        )


@final
class RankfoldParameters(nn.Module, BaseTunerLayer):
    """A module of which some parameters have adapters: whoever reads them gets them changed.

    Args:
        base_layer: The module.
    """

    adapter_layer_names = ()
    other_param_names = ()

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.target_parameters = nn.ModuleDict()
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self._lock = _Lock()

    @property
    def layers(self) -> dict[str, RankfoldParameter]:
        """The layers of the parameters, by the parameters' names."""
        return cast("dict[str, RankfoldParameter]", self.target_parameters._modules)

    def layer(self, name: str, geometry: Matrices) -> RankfoldParameter:
        """Return the layer of a parameter, new where it has none."""
        if name not in self.target_parameters:
            layer = RankfoldParameter(self.base_layer, name, geometry)
            self.target_parameters[name] = layer.train(self.training)
        return self.layers[name]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the module's output with the changed parameters."""
        for layer in self.layers.values():
            layer.unmerge_if_disabled()
        if not any(layer.acts for layer in self.layers.values()):
            return self.base_layer(*args, **kwargs)
        with self._lock.context():
            changed = {name: layer() for name, layer in self.layers.items() if layer.acts}
            return functional_call(self.base_layer, changed, args, kwargs)

    @property
    def weight(self) -> Tensor:
        """The module's weight, changed if it has adapters."""
        return self.__getattr__("weight")

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the wrapped module; during a forward pass, the adapted parameter."""
        modules: dict[str, Any] = self.__dict__.get("_modules", {})
        if name in modules or "base_layer" not in modules:
            return super().__getattr__(name)
        if name not in modules["target_parameters"] or not is_in_forward():
            return getattr(modules["base_layer"], name)
        with self._lock.context():
            return self.layers[name]()

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Do nothing: the layers of the parameters merge by themselves."""

    def unmerge(self) -> None:
        """Do nothing: the layers of the parameters unmerge by themselves."""

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """Return the module without adapters, which are merged into it or not."""
        for layer in self.layers.values():
            if merge:
                layer.merge(safe_merge=safe_merge, adapter_names=adapter_names)
        return self.base_layer


def parameter_geometry(name: str, owner: nn.Module, parameter: nn.Parameter) -> Matrices:
    """Return the sizes of a parameter, read as PEFT's LoRA reads it.

    Args:
        name: Its full name, for the error.
        owner: The module that has it, which knows whether its matrices are transposed.
        parameter: The parameter.

    Raises:
        SpecError: If it holds no matrices, is quantised, or is read past the module's own attribute.
    """
    if isinstance(owner, nn.RNNBase):
        raise SpecError(
            f"'{name}' is read by torch's {type(owner).__name__} from a list of its own, so an adapter on it "
            "would do nothing; leave it out of target_parameters."
        )
    if not parameter.is_floating_point() or parameter.element_size() < 2:  # noqa: PLR2004 (bytes of a half)
        dtype = str(parameter.dtype).removeprefix("torch.")
        raise SpecError(
            f"'{name}' is quantised ({dtype}), and an adapter is added to its values; load the model in bf16 "
            "or fp32, or leave it out of target_parameters."
        )
    match tuple(parameter.shape):
        case (rows, cols):
            return Matrices(in_features=cols, out_features=rows)
        case (experts, rows, cols):
            transposed = bool(getattr(owner, "is_transposed", False))
            inputs, outputs = (rows, cols) if transposed else (cols, rows)
            return Matrices(inputs, outputs, experts, transposed)
        case shape:
            raise SpecError(
                f"'{name}' has the shape {shape}, and an adapter changes one matrix, or one for each expert; "
                "leave it out of target_parameters."
            )


@final
class _Lock:
    """A lock while parameters are replaced; a copy or a pickle has one of its own.

    Another thread that calls the module meanwhile would read the changed parameters, or see them taken back
    in the middle of its pass.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def context(self) -> AbstractContextManager[object]:
        """Return a context that one thread is in at a time; the compiler knows no locks."""
        return nullcontext() if torch.compiler.is_compiling() else self._lock

    def __reduce__(self) -> tuple[type["_Lock"], tuple[()]]:
        return _Lock, ()


def own_matrices(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of a module, by name, that hold matrices and are no weight of a layer by itself.

    Those with a first axis of 1 are left out: they are positions and tokens, not weights.
    """
    if isinstance(module, _LAYERS):
        return {}
    return {
        name: parameter
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim in _MATRIX_AXES and parameter.shape[0] > 1 and parameter.is_floating_point()
    }
