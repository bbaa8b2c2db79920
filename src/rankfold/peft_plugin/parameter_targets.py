"""Parameters as targets: found by name, and the share of a model's weights that no layer makes reachable."""

import copy
import warnings
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from peft.tuners.tuners_utils import _ExcludedModule, check_target_module_exists
from torch import nn

from rankfold.errors import RankfoldWarning, SpecError, unknown_name
from rankfold.peft_plugin.config import RankfoldConfig
from rankfold.peft_plugin.layer import RankfoldLayer
from rankfold.peft_plugin.parameters import RankfoldParameters, own_matrices

NOTABLE_SHARE = 0.1
"""The share of a model's numbers outside of layers from which on an adapter without them gives a warning."""

_WORTH_NAMING = 0.01


def owner_of(module: nn.Module) -> nn.Module:
    """Return the module that has the parameters: the wrapped module, or the module itself."""
    return module.base_layer if isinstance(module, RankfoldParameters) else module


def split_parameters(config: RankfoldConfig, modules: Mapping[str, nn.Module]) -> tuple[list[str], list[str]]:
    """Return the full names of the parameters that are targeted, and of those that would be but are excluded.

    A name of `target_parameters` stands for the parameter of that name, and for all whose names end with it
    after a dot, as in PEFT's LoRA; exclude_modules and layers_to_transform hold for them too.

    Args:
        config: The configuration.
        modules: The model's modules by name, without those inside adapters.

    Raises:
        SpecError: If a name matches nothing, or the weight of a layer that is adapted itself.
    """
    patterns = config.target_parameters or ()
    if not patterns:
        return [], []
    own_config: Any = copy.copy(config)
    own_config.target_modules = set(patterns)
    matches: dict[str, Any] = {}
    for path, module in modules.items():
        owner = module.get_base_layer() if isinstance(module, RankfoldLayer) else owner_of(module)
        for leaf, _ in owner.named_parameters(recurse=False):
            name = f"{path}.{leaf}"
            if _is_named(name, patterns):
                matches[name] = check_target_module_exists(own_config, name)
    names = [name for name, answer in matches.items() if answer]
    excluded_names = [name for name, answer in matches.items() if isinstance(answer, _ExcludedModule)]
    for pattern in patterns:
        if not any(_is_named(name, [pattern]) for name in [*names, *excluded_names]):
            raise _unknown_parameter(pattern, modules, matches)
    _check_owners(names, modules)
    return names, excluded_names


def _is_named(name: str, patterns: Iterable[str]) -> bool:
    return any(name == pattern or name.endswith(f".{pattern}") for pattern in patterns)


def _unknown_parameter(pattern: str, modules: Mapping[str, nn.Module], matches: Collection[str]) -> SpecError:
    if any(_is_named(name, [pattern]) for name in matches):
        return SpecError(f"target parameter '{pattern}' is in no block of layers_to_transform; leave it out.")
    if any(_is_named(path, [pattern]) for path in modules):
        return SpecError(f"'{pattern}' is a module, not a parameter; name it in target_modules.")
    return unknown_name("target parameter", pattern, map(short_name, matrices_in(modules)))


def _check_owners(names: Iterable[str], modules: Mapping[str, nn.Module]) -> None:
    for name in names:
        path = name.rpartition(".")[0]
        if isinstance(modules[path], RankfoldLayer):
            raise SpecError(
                f"'{path}' carries an adapter as a layer, so its '{name.rpartition('.')[2]}' cannot have "
                "another one as a parameter; leave one of them out of target_modules and target_parameters."
            )


def check_apart(parameters: Iterable[str], layers: Iterable[str]) -> None:
    """Check that no adapted layer is, or is inside, a module whose parameters are adapted.

    Raises:
        SpecError: If one is.
    """
    owners = {name.rpartition(".")[0] for name in parameters}
    for layer in layers:
        parts = layer.split(".")
        owner = next((path for n in range(len(parts)) if (path := ".".join(parts[: n + 1])) in owners), None)
        if owner is not None:
            raise SpecError(
                f"'{layer}' is named by target_modules, and a parameter of '{owner}' by target_parameters; "
                "adapt the layers or the parameters of one module, not both."
            )


def matrices_in(modules: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Return the parameters that hold matrices without being a layer's weight, by full name."""
    return {
        f"{path}.{leaf}": parameter
        for path, module in modules.items()
        if not isinstance(module, RankfoldLayer)
        for leaf, parameter in own_matrices(owner_of(module)).items()
    }


def short_name(name: str) -> str:
    """Return the last two parts of a parameter's name, which stand for it in every block."""
    return ".".join(name.split(".")[-2:])


def unknown_layer(
    target_name: str, target_names: Collection[str], model: nn.Module, modules: Mapping[str, nn.Module]
) -> SpecError | None:
    """Return the error for a name of a layer in a model whose experts are parameters; None for another model.

    Args:
        target_name: The name, which matches no layer.
        target_names: All names that were given; the remedy has all those of parameters.
        model: The model.
        modules: Its modules by name, without those inside adapters.
    """
    matrices = {short_name(name): None for name in matrices_in(modules)}
    names = [name for name in matrices if _is_named(name, target_names)]
    if any(_is_named(name, [target_name]) for name in names):
        return SpecError(
            f"'{target_name}' is a parameter, not a layer; name it in target_parameters={names}."
        )
    share, names = left_out(model, modules)
    if share < NOTABLE_SHARE:
        return None
    return SpecError(
        f"unknown target module '{target_name}': {share:.0%} of this model's numbers are in parameters, such "
        f"as those of its experts; name them in target_parameters={names}, and layers in target_modules."
    )


def left_out(model: nn.Module, modules: Mapping[str, nn.Module]) -> tuple[float, list[str]]:
    """Return the share of a model's numbers in parameters that are no layers, and their short names.

    Small ones, such as a router's, are left out of both.
    """
    total = sum(parameter.numel() for parameter in model.parameters()) or 1
    sizes: dict[str, int] = {}
    for name, parameter in matrices_in(modules).items():
        sizes[short_name(name)] = sizes.get(short_name(name), 0) + parameter.numel()
    larger = {name: size for name, size in sizes.items() if size >= _WORTH_NAMING * total}
    return sum(larger.values()) / total, list(larger)


def warn_of_share(model: nn.Module, config: RankfoldConfig, modules: Mapping[str, nn.Module]) -> None:
    """Warn where a configuration says nothing of parameters, and a notable share of the weights are such."""
    if config.target_parameters is not None:
        return
    share, names = left_out(model, modules)
    if share >= NOTABLE_SHARE:
        message = (
            f"{share:.0%} of the model's numbers are in parameters that are no layers, so target_modules "
            f"leaves them out, such as the experts of an MoE; add target_parameters={names} to adapt them "
            "too, or target_parameters=[] to leave them out."
        )
        warnings.warn(message, RankfoldWarning, stacklevel=2)
