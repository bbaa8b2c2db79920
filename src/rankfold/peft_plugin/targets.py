"""Target layers of an adapter: found, measured and checked before anything in the model is changed."""

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast, final

from peft.tuners.tuners_utils import (
    BaseTunerLayer,
    _check_lora_target_modules_mamba,
    _ExcludedModule,
    _maybe_include_all_linear_layers,
    check_target_module_exists,
)
from peft.utils import INCLUDE_LINEAR_LAYERS_SHORTHAND
from peft.utils.constants import DUMMY_TARGET_MODULES
from peft.utils.quantization_utils import (
    QuantizationBackend,
    get_quantization_kwargs,
    resolve_quantization_backend,
)
from torch import Tensor, nn

from rankfold.adapter.build import Builder
from rankfold.adapter.geometry import Geometry, Matrices
from rankfold.adapter.layout import block_of, common_depth, layers_in, layout_of, tower_of
from rankfold.adapter.site import MlpPosition, Site
from rankfold.adapter.spec import AdapterSpec
from rankfold.errors import SpecError, unknown_name
from rankfold.peft_plugin.config import RankfoldConfig
from rankfold.peft_plugin.layer import PREFIX, walk
from rankfold.peft_plugin.layer_types import geometry_of
from rankfold.peft_plugin.parameter_targets import (
    check_apart,
    matrices_in,
    owner_of,
    split_parameters,
    unknown_layer,
)
from rankfold.peft_plugin.parameters import RankfoldParameters, parameter_geometry
from rankfold.peft_plugin.patterns import check_time
from rankfold.peft_plugin.structure import MLP_TARGETS, mlp_positions, tower_paths, usual_targets

# Where torch.compile puts the model that it wraps.
COMPILED_PREFIX = "_orig_mod."

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
        module: What the model has there: the layer, or what adapters made of it.
        base_layer: The layer itself, without adapters around it.
        site: Its type, sizes and spec.
        quantization_backend: How to read and write its weight, where it is quantised.
        parameter: Of a parameter that is adapted itself, its name in the base layer.
    """

    name: str
    path: str
    module: nn.Module
    base_layer: nn.Module
    site: Site
    quantization_backend: QuantizationBackend | None
    parameter: str | None = None

    @property
    def weight(self) -> Tensor:
        """The base weight as the base layer has it; where it is computed at every pass, no parameter."""
        return cast("Tensor", getattr(self.base_layer, self.parameter or "weight"))

    @property
    def geometry(self) -> Geometry:
        """The layer's type and sizes."""
        return self.site.geometry


def rename_layer(name: str, model: nn.Module) -> str:
    """Return the present name of a layer, or of a tensor, that had another one in an older transformers."""
    renamings: Mapping[str, str] = getattr(model, "_checkpoint_conversion_mapping", None) or {}
    for pattern, replacement in renamings.items():
        new_name, count = re.subn(pattern, replacement, name)
        if count:  # as PEFT does with the tensors of a file, the first one holds
            return new_name
    return name


def follow_renamings(model: nn.Module, config: RankfoldConfig) -> None:
    """Let the configuration of a saved adapter have the layers' present names, and remember the old ones.

    Frozen factors are derived from the names that the layers had when the adapter was trained, and patterns
    are matched with them. What is saved again has the old names, with which it can be loaded anywhere.
    """
    if config.expected_layers is None or config.saved_names:
        return
    geometries = layers_in(config.expected_layers)
    names = {name: rename_layer(name, model) for name in geometries}
    present = {name for name, _ in (*model.named_modules(), *model.named_parameters())}
    if all(name in present for name in geometries) or not all(name in present for name in names.values()):
        return
    config.saved_fields = {name: getattr(config, name) for name in _FIELDS_WITH_NAMES}
    config.saved_names = {new: old for old, new in names.items()}
    config.expected_layers = layout_of({names[name]: geometry for name, geometry in geometries.items()})
    specs = {names[name]: config.spec_for(name) for name in geometries}
    if config.rank_pattern:
        config.rank_pattern = {f"^{re.escape(name)}": spec.rank for name, spec in specs.items()}
    if config.alpha_pattern:
        config.alpha_pattern = {f"^{re.escape(name)}": spec.alpha for name, spec in specs.items()}
    parameters = [name for name in geometries if isinstance(geometries[name], Matrices)]
    config.target_modules = {names[name] for name in geometries.keys() - set(parameters)}
    config.target_parameters = [names[name] for name in parameters] or config.target_parameters
    config.exclude_modules = config.layers_to_transform = config.layers_pattern = None
    if config.saved_tensors is not None:
        prefix = "base_model.model."
        config.saved_tensors = frozenset(
            prefix + rename_layer(key.removeprefix(prefix), model) for key in config.saved_tensors
        )


_FIELDS_WITH_NAMES = (
    *("target_modules", "target_parameters", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("rank_pattern", "alpha_pattern", "layers"),
)


def find_targets(
    model: nn.Module, config: RankfoldConfig, state_dict: Mapping[str, Tensor] | None = None
) -> dict[nn.Module | nn.Parameter, Target]:
    """Return the layers and parameters that a configuration, or the keys of a state dict, names.

    They are found by the module itself: the names that PEFT has for it differ where the model is compiled.
    Parameters are found by the parameter itself.

    Raises:
        SpecError: If a name, pattern or index matches no layer, or a layer is of a type that cannot be
            adapted.
    """
    modules = modules_outside_of_adapters(model)
    check_time(config.expressions(), [*modules, *matrices_in(modules)])
    if state_dict is None:
        names, excluded_names = _split_by_targeting(model, config, modules)
        parameters, excluded_parameters = split_parameters(config, modules)
        _check_target_modules(config, names, [*excluded_names, *excluded_parameters], model, modules)
        check_apart(parameters, names)
        _check_patterns(config, [*names, *parameters])
        _check_modules_to_save(config, modules)
    else:
        parameters: list[str] = []
        marker = f".{PREFIX}"
        saved_layers = {key.rsplit(marker, 1)[0].removeprefix(COMPILED_PREFIX) for key in state_dict}
        names = [name for name in modules if name.removeprefix(COMPILED_PREFIX) in saved_layers]
    _check_are_called(names, model)
    positions = mlp_positions(modules)
    _check_mlps(config, names, positions)
    depth = common_depth([config.saved_names.get(name, name) for name in (*names, *parameters)])
    finder = _TargetFinder(
        config,
        positions,
        depth,
        _stacks(modules),
        _towers(model, config, [*names, *parameters], depth),
        get_quantization_kwargs(model),
    )
    targets: dict[nn.Module | nn.Parameter, Target] = {
        modules[name]: finder.target(name, modules[name]) for name in names
    }
    for name in parameters:
        path, _, leaf = name.rpartition(".")
        owner = owner_of(modules[path])
        targets[owner.get_parameter(leaf)] = finder.parameter_target(name, modules[path], owner)
    return targets


def plan_adapters(model: nn.Module, config: RankfoldConfig) -> Builder:
    """Return the builder of the adapters that a configuration would add; nothing is built or changed.

    Args:
        model: The base model, which may be on the meta device.
        config: The configuration, which stays as it is.

    Raises:
        SpecError: If a target matches nothing or cannot be adapted, or a rank is larger than a layer.
    """
    targets = find_targets(model, config)
    return Builder({target.path: target.site for target in targets.values()}, name="default")


@final
@dataclass(frozen=True, slots=True)
class _TargetFinder:
    """Context that the targets of one adapter share."""

    config: RankfoldConfig
    positions: Mapping[str, MlpPosition]
    depth: int
    stacks: Mapping[tuple[str, ...], int]
    towers: Sequence[str]
    quantization: dict[str, Any]

    def target(self, name: str, module: nn.Module) -> Target:
        base_layer = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        backend = resolve_quantization_backend(base_layer, **self.quantization)
        position = self.positions.get(name)
        spec = self._spec(name, is_in_mlp=position is not None)
        mlp = None if position is None else replace(position, root=self._path(position.root))
        path = self._path(name)
        site = Site(geometry_of(name, base_layer, backend), spec, mlp, tower_of(path, self.towers))
        return Target(name, path, module, base_layer, site, backend)

    def parameter_target(self, name: str, module: nn.Module, owner: nn.Module) -> Target:
        leaf = name.rpartition(".")[2]
        geometry = parameter_geometry(name, owner, owner.get_parameter(leaf))
        if isinstance(module, RankfoldParameters) and leaf in module.target_parameters:
            module = module.target_parameters[leaf]
        path, spec = self._path(name), self._spec(name, is_in_mlp=False)
        site = Site(geometry, spec, tower=tower_of(path, self.towers))
        return Target(name, path, module, owner, site, None, leaf)

    def _spec(self, name: str, *, is_in_mlp: bool) -> AdapterSpec:
        *stack, index = block_of(name) or (None,)
        return self.config.spec_for(name).at(
            block=None if index is None else int(index),
            blocks=self.stacks.get(tuple(stack), 1),
            is_in_mlp=is_in_mlp,
        )

    def _path(self, name: str) -> str:
        """Return a name below the deepest module that holds all targets, as it was when they were saved."""
        saved_names = self.config.saved_names
        below = next((layer for layer in saved_names if f"{layer}.".startswith(f"{name}.")), None)
        if below is not None:
            name = saved_names[below].removesuffix(below.removeprefix(name))
        return ".".join(name.split(".")[self.depth :])


def _towers(model: nn.Module, config: RankfoldConfig, names: Iterable[str], depth: int) -> list[str]:
    """Return the paths of the towers that share no factor with each other; none if a single one is adapted.

    A saved adapter has them in its configuration. Earlier ones have none, since layers of all towers shared.
    """
    if config.expected_layers is not None or config.saved_tensors is not None:
        return config.towers or []
    towers = tower_paths(model)
    adapted = {tower_of(name, towers) for name in names}
    return sorted(".".join(tower.split(".")[depth:]) for tower in adapted) if len(adapted) > 1 else []


def _check_are_called(names: Iterable[str], model: nn.Module) -> None:
    """Check that a forward pass calls the layers: Mamba's fused kernels read some weights by themselves.

    PEFT checks this for LoRA's own configuration only.
    """
    from peft import LoraConfig  # PEFT may be in the middle of its own import when this file is imported

    for name in names:
        try:
            _check_lora_target_modules_mamba(LoraConfig(), model, name.rpartition(".")[2])
        except ValueError as error:
            raise SpecError(
                f"'{name}' is read by the fused kernels of Mamba without being called, so an adapter on it "
                "would do nothing there; leave it out of target_modules, or exclude it by exclude_modules."
            ) from error


def modules_outside_of_adapters(model: nn.Module) -> dict[str, nn.Module]:
    """Return every module by name, adapted layers included, but not the modules inside them."""
    modules: dict[str, nn.Module] = {}
    adapted_prefixes: tuple[str, ...] = ()
    for name, module in walk(model):
        if name and not name.startswith(adapted_prefixes):
            modules[name] = module
        if isinstance(module, BaseTunerLayer):
            adapted_prefixes += (f"{name}.",)
    return modules


def _split_by_targeting(
    model: nn.Module, config: RankfoldConfig, modules: Mapping[str, nn.Module]
) -> tuple[list[str], list[str]]:
    """Return the names of the modules that are targeted, and of those that would be but are excluded."""
    # PEFT completes the configuration in place when it injects; here it must stay as it is.
    own_config: Any = copy.deepcopy(config)
    if own_config.target_modules is None:
        own_config.target_modules = usual_targets(model, config)
    is_shorthand = str(own_config.target_modules).lower() == INCLUDE_LINEAR_LAYERS_SHORTHAND
    own_config = _maybe_include_all_linear_layers(own_config, model)
    if is_shorthand:
        # PEFT leaves out the head of a sequence classifier alone; those of other tasks are trained whole too.
        heads = (*(config.modules_to_save or ()), *(_HEADS if config.task_type else ()))
        own_config.target_modules -= _parts_of(heads, modules)
    if own_config.target_modules == MLP_TARGETS:
        own_config.target_modules = set(mlp_positions(modules))
    matches: dict[str, Any] = {name: check_target_module_exists(own_config, name) for name in modules}
    excluded_names = [name for name, answer in matches.items() if isinstance(answer, _ExcludedModule)]
    return [name for name, answer in matches.items() if answer], excluded_names


def _parts_of(modules_to_save: Iterable[str], modules: Iterable[str]) -> set[str]:
    """Return the names of the modules that `modules_to_save` names, and of those inside them."""
    endings = tuple(f".{name}." for name in modules_to_save)
    return {name for name in modules if any(ending in f".{name}." for ending in endings)}


def _check_target_modules(
    config: RankfoldConfig,
    names: Sequence[str],
    excluded_names: Iterable[str],
    model: nn.Module,
    modules: Mapping[str, nn.Module],
) -> None:
    """Check that every name matches a layer, which may be excluded, and that some layer is left."""
    targets, leaves_out = config.target_modules, config.exclude_modules
    for exclusion in sorted(leaves_out) if isinstance(leaves_out, set) else ():
        if not (_is_among(exclusion, modules) or _is_among(exclusion, excluded_names)):
            raise unknown_name("module to exclude", exclusion, _leaves(modules))
    for target_name in sorted(targets) if isinstance(targets, set) else ():
        if _is_among(target_name, names) or _is_among(target_name, excluded_names):
            continue
        if _is_among(target_name, modules):
            raise SpecError(
                f"target module '{target_name}' is in no block of layers_to_transform; leave it out."
            )
        if error := unknown_layer(target_name, targets or (), model, modules):
            raise error
        raise unknown_name(
            "target module", target_name, _leaves(name for name in modules if _is_layer(modules[name]))
        )
    if targets and not (names or config.target_parameters) and targets != DUMMY_TARGET_MODULES:
        choice = f"'{targets}'" if isinstance(targets, str) else sorted(targets)
        raise SpecError(f"target_modules={choice} leaves no layer to adapt; correct it or exclude_modules.")


def _is_among(target_name: str, names: Iterable[str]) -> bool:
    return any(name == target_name or name.endswith(f".{target_name}") for name in names)


def _leaves(names: Iterable[str]) -> set[str]:
    return {name.rpartition(".")[2] for name in names}


def _is_layer(module: nn.Module) -> bool:
    """Return whether a module has a weight matrix, as the layers that can be adapted have."""
    return getattr(getattr(module, "weight", None), "ndim", 0) > 1


def _check_modules_to_save(config: RankfoldConfig, modules: Iterable[str]) -> None:
    """Check that every module to save is there; PEFT passes over those that are not."""
    for target_name in config.modules_to_save or ():
        if target_name not in _HEADS and not any(name.endswith(target_name) for name in modules):
            raise unknown_name("module to save", target_name, _leaves(modules))


def _check_patterns(config: RankfoldConfig, names: Iterable[str]) -> None:
    """Check that every pattern of ranks and alphas and every index of a block matches an adapted layer."""
    for option, patterns in (("rank_pattern", config.rank_pattern), ("alpha_pattern", config.alpha_pattern)):
        for pattern in patterns:
            if not any(_matches(pattern, name) for name in names):
                raise SpecError(
                    f"{option} names '{pattern}', which matches no adapted layer; correct it or leave it out."
                )
        first_matches = {
            next((pattern for pattern in patterns if _matches(pattern, name)), None) for name in names
        }
        if hidden_pattern := next((pattern for pattern in patterns if pattern not in first_matches), None):
            raise SpecError(
                f"{option} names '{hidden_pattern}' after a pattern that matches the same layers, and the "
                "first one holds; put it first."
            )
    for index in _indices(config.layers_to_transform):
        if not any(str(index) in name.split(".") for name in names):
            raise SpecError(
                f"layers_to_transform names block {index}, which has no adapted layer; leave it out."
            )


def _matches(pattern: str, name: str) -> bool:
    return re.match(rf"(.*\.)?({pattern})$", name) is not None


def _indices(layers: Iterable[int] | int | None) -> Iterable[int]:
    if layers is None:
        return ()
    return (layers,) if isinstance(layers, int) else layers


def _check_mlps(config: RankfoldConfig, names: Sequence[str], positions: Mapping[str, MlpPosition]) -> None:
    """Check that heads for MLPs find one, and all of its layers if one router decides for them together."""
    roots = {positions[name].root for name in names if name in positions}
    if config.heads_in == "mlp" and not roots:
        raise SpecError(
            "heads_in='mlp' found no MLP whose layers are among target_modules; name all linear layers of "
            "the MLPs, or give heads_in='all' and a router of scope 'layer' if the architecture is not known."
        )
    if config.router is None or config.router.scope == "layer":
        return
    missing = sorted(
        name for name, position in positions.items() if position.root in roots and name not in names
    )
    if missing:
        raise SpecError(
            f"a router of scope '{config.router.scope}' decides for whole MLPs, but '{missing[0]}' is not "
            "adapted; add it to target_modules."
        )


def _stacks(names: Iterable[str]) -> dict[tuple[str, ...], int]:
    """Return how many blocks each stack of a model has."""
    stacks: dict[tuple[str, ...], int] = {}
    for *stack, index in filter(None, map(block_of, names)):
        stacks[tuple(stack)] = max(stacks.get(tuple(stack), 0), int(index) + 1)
    return stacks
