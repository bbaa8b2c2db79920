"""Which layers an adapter goes to: found, measured and checked before anything in the model is changed."""

import copy
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any, final

from peft.tuners.tuners_utils import (
    BaseTunerLayer,
    _ExcludedModule,
    _get_in_out_features,
    _maybe_include_all_linear_layers,
)
from peft.utils.constants import DUMMY_TARGET_MODULES
from peft.utils.quantization_utils import (
    QuantizationBackend,
    get_quantization_kwargs,
    resolve_quantization_backend,
)
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

from rankfold.adapter.geometry import Conv2d, Embedding, Geometry, Linear
from rankfold.errors import SpecError, unknown_name
from rankfold.peft_plugin.config import RankfoldConfig

if TYPE_CHECKING:
    from rankfold.peft_plugin.model import RankfoldModel

# Where torch.compile puts the model that it wraps.
_COMPILED = "_orig_mod."

# What PEFT adds to `modules_to_save` by the type of task, whether the model has it or not.
_HEADS = ("classifier", "score", "qa_outputs")


@final
@dataclass(frozen=True, slots=True)
class Target:
    """A layer that is to be adapted.

    Args:
        name: Its full name in the model.
        path: Where it is, below the deepest module that holds all targets. Unlike its full name this does not
            depend on what the model is wrapped in, so frozen factors may be derived from it.
        base_layer: The layer itself, without adapters around it.
        geometry: Its kind and sizes.
        quantization_backend: How to read and write its weight, where it is quantised.
    """

    name: str
    path: str
    base_layer: nn.Module
    geometry: Geometry
    quantization_backend: QuantizationBackend | None


def find_targets(
    tuner: "RankfoldModel", model: nn.Module, config: RankfoldConfig, state_dict: Mapping[str, Tensor] | None
) -> dict[nn.Module, Target]:
    """Return the layers that a configuration, or the keys of a state dict, names.

    They are found by the module itself: the names that PEFT has for it differ where the model is compiled.

    Raises:
        SpecError: If a name, pattern or index matches no layer, or a layer is of a kind that cannot be
            adapted.
    """
    modules = _modules_outside_of_adapters(model)
    if state_dict is None:
        names, excluded = _split_by_targeting(tuner, model, config, modules)
        _check_target_modules(config, names, excluded, modules)
        _check_patterns(config, names)
        _check_modules_to_save(config, modules)
    else:
        marker = f".{tuner.prefix}"
        keyed = {key.rsplit(marker, 1)[0].removeprefix(_COMPILED) for key in state_dict}
        names = [name for name in modules if name.removeprefix(_COMPILED) in keyed]
    quantization = get_quantization_kwargs(model)
    parents = zip(*(name.split(".")[:-1] for name in names), strict=False)
    shared = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, parents))
    return {
        modules[name]: _target(name, ".".join(name.split(".")[shared:]), modules[name], quantization)
        for name in names
    }


def _modules_outside_of_adapters(model: nn.Module) -> dict[str, nn.Module]:
    """Return every module by name, adapted layers included, but not what is inside them."""
    modules: dict[str, nn.Module] = {}
    adapted: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if name and not name.startswith(adapted):
            modules[name] = module
        if isinstance(module, BaseTunerLayer):
            adapted += (f"{name}.",)
    return modules


def _split_by_targeting(
    tuner: "RankfoldModel", model: nn.Module, config: RankfoldConfig, modules: Iterable[str]
) -> tuple[list[str], list[str]]:
    """Return the names of the modules that are targeted, and of those that would be but are excluded."""
    # PEFT completes the configuration in place when it injects; here it must stay as it is.
    completed: Any = copy.deepcopy(config)
    completed = tuner._prepare_adapter_config(completed, tuner.get_model_config(model))
    completed = _maybe_include_all_linear_layers(completed, model)
    found: dict[str, Any] = {name: tuner._check_target_module_exists(completed, name) for name in modules}
    excluded = [name for name, answer in found.items() if isinstance(answer, _ExcludedModule)]
    return [name for name, answer in found.items() if answer], excluded


def _check_target_modules(
    config: RankfoldConfig,
    names: Sequence[str],
    excluded: Iterable[str],
    modules: Mapping[str, nn.Module],
) -> None:
    """Check that every name matches a layer, which may be excluded, and that some layer is left."""
    targets = config.target_modules
    for wanted in sorted(targets) if isinstance(targets, set) else ():
        if _is_among(wanted, names) or _is_among(wanted, excluded):
            continue
        if _is_among(wanted, modules):
            raise SpecError(f"target module '{wanted}' is in no block of layers_to_transform; leave it out.")
        raise unknown_name(
            "target module", wanted, _leaves(name for name in modules if _is_layer(modules[name]))
        )
    if targets and not names and targets != DUMMY_TARGET_MODULES:
        given = f"'{targets}'" if isinstance(targets, str) else sorted(targets)
        raise SpecError(f"target_modules={given} leaves no layer to adapt; correct it or exclude_modules.")


def _is_among(wanted: str, names: Iterable[str]) -> bool:
    return any(name == wanted or name.endswith(f".{wanted}") for name in names)


def _leaves(names: Iterable[str]) -> set[str]:
    return {name.rpartition(".")[2] for name in names}


def _is_layer(module: nn.Module) -> bool:
    """Return whether a module has a weight matrix, as the layers that can be adapted have."""
    return getattr(getattr(module, "weight", None), "ndim", 0) > 1


def _check_modules_to_save(config: RankfoldConfig, modules: Iterable[str]) -> None:
    """Check that every module to save is there; PEFT passes over those that are not."""
    for wanted in config.modules_to_save or ():
        if wanted not in _HEADS and not any(name.endswith(wanted) for name in modules):
            raise unknown_name("module to save", wanted, _leaves(modules))


def _check_patterns(config: RankfoldConfig, names: Iterable[str]) -> None:
    """Check that every pattern of ranks and alphas and every index of a block matches an adapted layer."""
    for option, patterns in (("rank_pattern", config.rank_pattern), ("alpha_pattern", config.alpha_pattern)):
        for pattern in patterns:
            if not any(re.match(rf"(.*\.)?({pattern})$", name) for name in names):
                raise SpecError(
                    f"{option} names '{pattern}', which matches no adapted layer; correct it or leave it out."
                )
    for index in _indices(config.layers_to_transform):
        if not any(str(index) in name.split(".") for name in names):
            raise SpecError(
                f"layers_to_transform names block {index}, which has no adapted layer; leave it out."
            )


def _indices(layers: Iterable[int] | int | None) -> Iterable[int]:
    if layers is None:
        return ()
    return (layers,) if isinstance(layers, int) else layers


def _target(name: str, path: str, module: nn.Module, quantization: dict[str, Any]) -> Target:
    base_layer = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    backend = resolve_quantization_backend(base_layer, **quantization)
    return Target(name, path, base_layer, _geometry(name, base_layer, backend), backend)


def _geometry(name: str, layer: nn.Module, backend: QuantizationBackend | None) -> Geometry:
    if isinstance(layer, NonDynamicallyQuantizableLinear):
        raise SpecError(
            f"'{name}' is read by torch's MultiheadAttention without being called, so an adapter on it would "
            "do nothing; exclude it by exclude_modules."
        )
    if isinstance(layer, nn.Embedding):
        return Embedding(layer.num_embeddings, layer.embedding_dim)
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
        in_features, out_features = sizes_of(layer)
        if in_features is not None and out_features is not None:
            return Linear(in_features, out_features, transposed=isinstance(layer, Conv1D))
    raise SpecError(
        f"Target module '{name}' is not supported: it is a {type(layer).__name__}; "
        "name Linear, Conv1D, Conv2d or Embedding layers in target_modules, or exclude it by exclude_modules."
    )


def sizes_of(layer: nn.Module) -> tuple[int | None, int | None]:
    """Return what PEFT calls a layer's `in_features` and `out_features`; a convolution's are its channels."""
    with warnings.catch_warnings():
        # PEFT warns of kinds it does not know; those that we take are checked by us.
        warnings.simplefilter("ignore", UserWarning)
        return _get_in_out_features(layer)


def _pair(value: tuple[int, ...]) -> tuple[int, int]:
    return value[0], value[1]
