"""The tuner: puts adapters on a model's layers."""

import warnings
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from threading import Lock
from typing import Any, cast, final

import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, onload_layer
from peft.utils import AuxiliaryTrainingWrapper, PeftType
from peft.utils.constants import INCLUDE_LINEAR_LAYERS_SHORTHAND
from peft.utils.integrations import init_empty_weights
from torch import Tensor, nn

from rankfold.adapter.build import Builder
from rankfold.adapter.geometry import Matrices
from rankfold.errors import RankfoldWarning, SpecError, unknown_name
from rankfold.factors import Factor
from rankfold.peft_plugin.combine import check_sum, fill_factors, sum_config, weighted_factors
from rankfold.peft_plugin.config import RankfoldConfig, RankfoldPeftType
from rankfold.peft_plugin.diffusers_saving import add_lora_saver, remove_lora_saver
from rankfold.peft_plugin.fused_projections import allow_fusing, check_not_fused, refuse_fusing
from rankfold.peft_plugin.layer import PREFIX, RankfoldLayer, is_meta, walk
from rankfold.peft_plugin.layer_types import wrap
from rankfold.peft_plugin.learning_check import LearningCheck
from rankfold.peft_plugin.mixed_batches import BASE, compared_to_one_row
from rankfold.peft_plugin.parameter_targets import warn_of_share
from rankfold.peft_plugin.parameters import RankfoldParameter, RankfoldParameters
from rankfold.peft_plugin.passes import ForwardPasses, all_row_adapters, row_adapters, rows_with_adapters
from rankfold.peft_plugin.state import (
    check_fingerprint,
    check_finite,
    check_head_sizes,
    check_heads,
    check_layers,
    check_names,
    check_tensors,
    fingerprint,
    layout_of_targets,
    move_tensors,
    rename_tensors,
)
from rankfold.peft_plugin.structure import MLP_TARGETS, USUAL_TARGETS, usual_targets
from rankfold.peft_plugin.targets import (
    Target,
    find_targets,
    follow_renamings,
    modules_outside_of_adapters,
)


@final
class RankfoldModel(BaseTuner):
    """PEFT's tuner for rankfold adapters; made by `peft.get_peft_model`."""

    prefix = PREFIX
    tuner_layer_cls = RankfoldLayer
    target_module_mapping = cast("dict[str, list[str]]", USUAL_TARGETS)
    # What layers share is owned by one of them, so adapters may be injected without this tuner being kept.
    uses_shared_state = False

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        """Add an adapter to the model, after checking that all of it is possible.

        Raises:
            SpecError: If a target matches nothing or cannot be adapted, or a name is that of a part of the
                model.
            AdapterFileError: If the adapter was trained on another base model.
        """
        config = cast("RankfoldConfig", self.peft_config[adapter_name])
        present = {name for layer in _layers(model) for name in layer.rankfold_adapters}
        check_names(model, [adapter_name, *sorted(present - {adapter_name})])
        config.keep_seed()
        follow_renamings(model, config)
        if config.spec_for("").shares or config.target_parameters:
            # A layer that owns nothing of what it shares has no key there, and parameters PEFT refuses.
            state_dict = None
        self._targets = find_targets(model, config, state_dict)
        targets = list(self._targets.values())
        _check_free(self._targets)
        check_not_fused(model, {target.name: target.module for target in targets})
        if config.expected_layers is None:
            warn_of_share(model, config, modules_outside_of_adapters(model))
        _check_fits(model, config, targets)
        config.layers, config.base_fingerprint = layout_of_targets(targets), fingerprint(targets)
        config.towers = sorted({target.site.tower for target in targets} - {""}) or None
        if str(config.target_modules).lower() in (INCLUDE_LINEAR_LAYERS_SHORTHAND, MLP_TARGETS):
            # PEFT would also list the layers inside heads that other adapters wrapped, which no base has.
            config.target_modules = {target.name for target in targets if target.parameter is None}
        if config.target_modules is None:
            config.target_modules = usual_targets(model, config)
        if config.target_parameters:
            # In the order of the model, as PEFT nests its wrappers of one module.
            order = dict.fromkeys(target.parameter for target in targets)
            leaves = {name: name.rpartition(".")[2] for name in config.target_parameters}
            config.target_parameters.sort(key=lambda name: (*order, leaves[name]).index(leaves[name]))
        self._builder = Builder({target.path: target.site for target in targets}, name=adapter_name)
        try:
            with warnings.catch_warnings():
                # PEFT looks for matches among layers only; `find_targets` checks parameters too.
                if config.target_parameters:
                    warnings.filterwarnings("ignore", message=".* no modules were excluded")
                    warnings.filterwarnings("ignore", message=".*_pattern keys did not match")
                super().inject_adapter(
                    model, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage, state_dict
                )
            _replace_everywhere(model, {wrapper.base_layer: wrapper for wrapper in _wrappers(model)})
            self._hook_passes(model, adapter_name)
            add_lora_saver(model)
            refuse_fusing(model)
        finally:
            del self._targets, self._builder

    def _create_and_replace(
        self,
        peft_config: RankfoldConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
    ) -> None:
        planned_target = self._targets[target]
        if isinstance(target, RankfoldLayer):
            layer = target
        else:
            layer = wrap(target, planned_target.geometry, planned_target.quantization_backend)
        self._add_adapter(layer, planned_target, peft_config, adapter_name)
        if layer is not target:
            self._replace_module(parent, target_name, layer, target)
        self._bring_frozen_factors(layer)

    def _inject_parameters(
        self,
        peft_config: RankfoldConfig,
        model: nn.Module,
        adapter_name: str,
        low_cpu_mem_usage: bool,
    ) -> list[str]:
        """Add an adapter to the parameters that are targets, and return their names."""
        targets = [target for target in self._targets.values() if target.parameter is not None]
        for target in targets:
            path = target.name.rpartition(".")[0]
            module = model.get_submodule(path)
            if not isinstance(module, RankfoldParameters):
                wrapper = RankfoldParameters(module)
                parent, _, child_name = path.rpartition(".")
                setattr(model.get_submodule(parent), child_name, wrapper)
                module = wrapper
            assert isinstance(target.geometry, Matrices), "the geometry of parameters"
            layer = module.layer(str(target.parameter), target.geometry)
            with init_empty_weights() if low_cpu_mem_usage else nullcontext():
                self._add_adapter(layer, target, peft_config, adapter_name)
            self._bring_frozen_factors(layer)
        return [target.name for target in targets]

    def _replace_module(
        self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module
    ) -> None:
        """Put a module in the place of another; PEFT asks each for a weight, which not all have."""
        if isinstance(child, RankfoldParameters | AuxiliaryTrainingWrapper):
            setattr(parent, child_name, new_module)
        else:
            super()._replace_module(parent, child_name, new_module, child)

    def _add_adapter(
        self, layer: RankfoldLayer, planned_target: Target, peft_config: RankfoldConfig, adapter_name: str
    ) -> None:
        # On a model without weights the adapter needs none either, and drawing them would only take time.
        has_weights = not is_meta(planned_target.base_layer)
        with nullcontext() if has_weights else torch.device("meta"):
            built_adapter = self._builder.build(
                planned_target.path,
                layer.original_weight if has_weights else None,
                name=planned_target.name,
            )
        is_new = not layer.rankfold_adapters
        layer.update_layer(adapter_name, built_adapter, inference_mode=peft_config.inference_mode)
        layer.path = planned_target.name
        if is_new and adapter_name not in self.active_adapters:
            layer.requires_grad_(requires_grad=False)

    def _bring_frozen_factors(self, layer: RankfoldLayer) -> None:
        """Let frozen factors be in memory where the base layer is on a disk: they are in no file."""
        is_on_disk = "disk" in getattr(self.model, "hf_device_map", {}).values()
        if is_on_disk and is_meta(layer.get_base_layer()):
            for part in layer.modules():
                if isinstance(part, Factor) and part.is_frozen:
                    part.to("cpu")

    def _hook_passes(self, model: nn.Module, adapter_name: str) -> None:
        """Let the layers of an adapter know the forward passes of the model."""
        passes = next((layer.passes for layer in _layers(model) if layer.passes is not None), None)
        passes = passes or ForwardPasses()
        batches = self._builder.relay_batches()
        hooks = [
            hook
            for watcher in (passes, batches, LearningCheck(adapter_name))
            if watcher is not None
            for hook in (
                model.register_forward_pre_hook(watcher.begin),
                model.register_forward_hook(watcher.end, always_call=True),
            )
        ]
        # The layers keep them, because the tuner may be gone when the adapter is deleted.
        for layer in _layers(model):
            if adapter_name in layer.rankfold_adapters:
                layer.passes = passes
                layer.rankfold_hooks[adapter_name] = hooks

    def add_weighted_adapter(
        self,
        adapters: list[str],
        weights: list[float],
        adapter_name: str,
        combination_type: str = "cat",
        svd_rank: int | None = None,
    ) -> None:
        """Add a new adapter that is a weighted sum of others: a plain LoRA, whatever methods they are of.

        Args:
            adapters: Names of the adapters.
            weights: The weight of each; negative ones take away.
            adapter_name: Name of the new adapter, which is not activated.
            combination_type: `cat`, exactly, with the sum of their ranks; or `svd`, the nearest of a rank.
            svd_rank: The rank for `svd`; that of the largest adapter if None.

        Raises:
            SpecError: If the name is taken, an adapter is unknown or has a head, or an option is wrong.
            NotExactError: If the gates of an adapter depend on the input, or for another combination.
        """
        configs = cast("dict[str, RankfoldConfig]", self.peft_config)
        if adapter_name in configs:
            raise SpecError(
                f"'{adapter_name}' is an adapter of this model already; give another adapter_name."
            )
        check_names(self.model, {*configs, adapter_name})
        check_sum(configs, weights, adapters)
        layers = _named_layers(self.model)
        sums = dict(zip(adapters, weights, strict=True))
        factors = weighted_factors(layers, sums, combination_type, svd_rank)
        configs[adapter_name] = sum_config(factors, configs[adapters[0]])
        self.inject_adapter(self.model, adapter_name)
        fill_factors(layers, adapter_name, factors)

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Merge adapters into the base weights, all of them or none.

        Raises:
            NotExactError: If the gates of one depend on the input.
            SpecError: If a name is that of no adapter, a base weight cannot be written, or the adapters are
                rescaled for a while.
            ValueError: If `safe_merge` finds a value that is not finite.
        """
        if any(layer.passes is not None and layer.passes.rescaled_by for layer in _layers(self.model)):
            raise SpecError(
                "adapters cannot be merged within rescale_adapter_scale, which they would outlast; merge "
                "them outside of it, or use merge_and_unload."
            )
        if any(layer.disable_adapters for layer in _layers(self.model)):
            raise SpecError("the adapters are disabled; enable them before you merge one.")
        self._check_can_merge(adapter_names, safe_merge=safe_merge)
        super().merge_adapter(adapter_names, safe_merge)
        self._choose_heads(self._merged_adapters())
        _warn_of_drift({name: layer.merge_drift for name, layer in _named_layers(self.model).items()})

    def unmerge_adapter(self) -> None:
        """Take merged adapters back out of every layer; the active ones act again, with their heads."""
        super().unmerge_adapter()
        self._choose_heads(self.active_adapters)

    def disable_adapter_layers(self) -> None:
        """Disable all adapters, after taking merged ones back out."""
        if self._merged_adapters():
            self.unmerge_adapter()
        super().disable_adapter_layers()

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter.

        If no other is active, the first of the others by name is from then on, in every layer; PEFT chooses
        for each layer by itself.

        Raises:
            ValueError: If there is no adapter of this name, or it is merged.
        """
        merged_adapters = self._merged_adapters()
        if adapter_name in self.peft_config and adapter_name not in merged_adapters:
            others = sorted(self.peft_config.keys() - {adapter_name})
            active = [name for name in self.active_adapters if name != adapter_name] or others[:1]
            if active != self.active_adapters:
                for layer in _layers(self.model):
                    layer.set_adapter(active)
            for head in self._heads():
                own_names = merged_adapters or active
                head.delete_adapter(adapter_name, [name for name in own_names if name in head._adapters])
        super().delete_adapter(adapter_name)

    def _merged_adapters(self) -> list[str]:
        return next((layer.merged_adapters for layer in _layers(self.model)), [])

    def _heads(self) -> list[AuxiliaryTrainingWrapper]:
        """Return the modules that adapters have whole, such as a new classification head."""
        return [module for module in self.model.modules() if isinstance(module, AuxiliaryTrainingWrapper)]

    def _choose_heads(self, adapter_names: Collection[str]) -> None:
        """Let the model have the heads of some adapters, of which each head has at most one."""
        for head in self._heads():
            head._active_adapter = next((name for name in adapter_names if name in head._adapters), [])

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        layers, wrappers = _named_layers(self.model), _wrappers(self.model)
        if merge:
            self._check_can_merge(adapter_names, safe_merge=safe_merge)
            # PEFT would keep the head of the active adapter.
            self._choose_heads({*self._merged_adapters(), *(adapter_names or self.active_adapters)})
        elif self._merged_adapters():  # PEFT would give back the merged weights as those of the base
            self.unmerge_adapter()
        # PEFT declares that it returns nothing, but it returns the model.
        model = cast(
            "nn.Module", super()._unload_and_optionally_merge(merge, progressbar, safe_merge, adapter_names)
        )
        if merge:
            _warn_of_drift({name: layer.merge_drift for name, layer in layers.items()})
        _replace_everywhere(model, {wrapper: wrapper.base_layer for wrapper in wrappers})
        for layer in layers.values():
            for adapter_name in layer.rankfold_adapters:
                layer.remove_hooks(adapter_name)
        remove_lora_saver(model)
        allow_fusing(model)
        return model

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: Any,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        """Return the adapter's tensors by the names that its layers had when it was first saved."""
        tensors = super()._get_adapter_state_dict(
            model, config, adapter_name, state_dict, unwanted_adapter_names
        )
        return rename_tensors(tensors, config.saved_names)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: Any, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Refuse a file that lacks some of the adapter: PEFT would go on with random values in its place."""
        state_dict = rename_tensors(state_dict, {old: new for new, old in config.saved_names.items()})
        state_dict = move_tensors(model, adapter_name, state_dict)
        tensors = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        own_keys = check_tensors(model, adapter_name, tensors)
        check_finite(tensors)
        for _, module in walk(model):
            if isinstance(module, AuxiliaryTrainingWrapper):
                check_head_sizes(module)
        # A tensor that stays where the file was read into memory is not aligned as torch aligns its own, and
        # its products may differ in the last bit.
        tensors = {key: tensor.clone() if key in own_keys else tensor for key, tensor in tensors.items()}
        return tensors | _under_other_names(model, tensors)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Generator[None]:
        """Hand `adapter_names` to every layer for the time of one call.

        Raises:
            ValueError: If the model is in training mode, or a name is not one of an adapter.
        """
        adapter_names: list[str] | None = kwargs.get("adapter_names")
        if adapter_names is None:
            yield
            return
        if self.training:
            raise ValueError("Cannot pass `adapter_names` when the model is in training mode.")
        self._check_adapter_names(adapter_names)
        _check_rows(self.modules(), adapter_names)
        modules: list[nn.Module] = [
            module
            for module in self.modules()
            if isinstance(module, RankfoldLayer | AuxiliaryTrainingWrapper)
            and not isinstance(module, RankfoldParameter)
        ]
        for module in modules:
            _take_adapter_names(module)
        inputs = {key: value for key, value in kwargs.items() if key != "adapter_names"}
        with (
            self._comparison(adapter_names, args, inputs),
            rows_with_adapters(dict.fromkeys(modules, adapter_names)),
        ):
            yield

    @contextmanager
    def _comparison(
        self, adapter_names: list[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Generator[None]:
        """Compare the first batch of layers that are new to mixed batches with one row of it."""
        layers = [layer for layer in _layers(self) if not layer.is_compared_to_one_row]
        is_compiled = torch.compiler.is_compiling() or hasattr(self.model, "_orig_mod")
        if is_compiled or not layers or len(set(adapter_names)) <= 1:
            yield
            return
        for layer in layers:
            layer.is_compared_to_one_row = True
        with compared_to_one_row(self.model, args, kwargs, len(adapter_names)):
            yield

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the tuner or of its model; `generate` names the adapters of new rows."""
        value = super().__getattr__(name)
        return partial(self._generate, value) if name == "generate" else value

    def _generate(self, generate: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Generate with an adapter for each beam and each returned sequence of a row, which are rows too."""
        names = all_row_adapters()
        copies = _copies_of_rows(self.model, kwargs)
        if names is None or copies == 1:
            return generate(*args, **kwargs)
        # The encoder of an encoder-decoder model runs before the rows are repeated.
        model = cast(Any, self.model)
        in_encoder = set(model.get_encoder().modules()) if model.config.is_encoder_decoder else set()
        names_of_copies = {
            module: rows if module in in_encoder else [name for name in rows for _ in range(copies)]
            for module, rows in names.items()
        }
        with rows_with_adapters(names_of_copies):
            return generate(*args, **kwargs)

    def _check_can_merge(self, adapter_names: list[str] | None, *, safe_merge: bool) -> None:
        for name in adapter_names or ():
            if name not in self.peft_config:  # PEFT would pass over it
                raise unknown_name("adapter", name, self.peft_config)
        names = list(dict.fromkeys([*self._merged_adapters(), *(adapter_names or self.active_adapters)]))
        for path, head in self.model.named_modules():
            own_names = [name for name in names if name in getattr(head, "_adapters", ())]
            if isinstance(head, AuxiliaryTrainingWrapper) and len(own_names) > 1:
                raise SpecError(
                    f"each of {', '.join(own_names)} has a '{path.rpartition('.')[2]}' of its own, and a "
                    "merged model has one; merge one of these adapters."
                )
        for layer in _layers(self.model):
            with onload_layer(layer) if safe_merge else nullcontext():
                layer.check_can_merge(adapter_names, safe_merge=safe_merge)

    def _check_adapter_names(self, adapter_names: list[str]) -> None:
        loaded_names = {name for layer in _layers(self) for name in layer.rankfold_adapters}
        unknown = sorted(set(adapter_names) - loaded_names - {BASE})
        if unknown:
            raise ValueError(
                f"Trying to infer with non-existing adapter(s): {', '.join(unknown)}; "
                f"loaded are {', '.join(sorted(loaded_names))}, and '{BASE}' stands for none."
            )


def _copies_of_rows(model: nn.Module, options: Mapping[str, Any]) -> int:
    """Return how often generation repeats each row: for its beams, or for the sequences to return."""
    configs = (options.get("generation_config"), getattr(model, "generation_config", None))
    sources = [options, *(vars(config) for config in configs if config is not None)]
    values = [
        next((source[key] for source in sources if source.get(key) is not None), 1)
        for key in ("num_beams", "num_return_sequences")
    ]
    return max(values)


def _check_fits(model: nn.Module, config: RankfoldConfig, targets: Sequence[Target]) -> None:
    """Compare a model with the one that a saved adapter was trained on, as its configuration has it."""
    if config.expected_layers is not None:
        check_layers(config.expected_layers, targets)
    if config.expected_fingerprint is not None:
        check_fingerprint(config.expected_fingerprint, targets)
    if config.saved_tensors is not None:
        check_heads(model, config.modules_to_save or (), config.saved_tensors)


def _check_free(targets: Mapping[nn.Module | nn.Parameter, Target]) -> None:
    """Refuse layers inside which another method of PEFT has its adapter."""
    for module, target in targets.items():
        if isinstance(module, BaseTunerLayer) and not isinstance(module, RankfoldLayer):
            raise SpecError(
                f"'{target.name}' carries an adapter of another PEFT method; unload that one first."
            )


def _check_rows(modules: Iterable[nn.Module], adapter_names: Collection[str]) -> None:
    """Refuse rows with adapters of their own where one of them, or an active one, changes a parameter."""
    for layer in modules:
        if isinstance(layer, RankfoldParameter):
            names = {*adapter_names, *layer.active_adapters} & layer.rankfold_adapters.keys()
            if names:
                raise ValueError(
                    f"Cannot pass `adapter_names`: '{min(names)}' has `target_parameters`, and a parameter "
                    "is one for all rows of a batch; call the model for one adapter at a time."
                )


def _layers(model: nn.Module) -> list[RankfoldLayer]:
    return list(_named_layers(model).values())


def _named_layers(model: nn.Module) -> dict[str, RankfoldLayer]:
    return {name: module for name, module in walk(model) if isinstance(module, RankfoldLayer)}


def _under_other_names(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of layers that a model has under several names, under those but the first."""
    first_names: dict[nn.Module, str] = {}
    copies: dict[str, Tensor] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, RankfoldLayer) and first_names.setdefault(module, name) != name:
            start = f"{first_names[module]}."
            copies |= {
                f"{name}.{key.removeprefix(start)}": t for key, t in tensors.items() if key.startswith(start)
            }
    return copies


def _wrappers(model: nn.Module) -> list[RankfoldLayer | RankfoldParameters]:
    """Return the modules that stand in the place of others."""
    return [
        module
        for module in model.modules()
        if isinstance(module, RankfoldLayer | RankfoldParameters)
        and not isinstance(module, RankfoldParameter)
    ]


def _replace_everywhere(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> None:
    """Replace modules in every place where other modules hold them.

    PEFT replaces the first one that torch knows. A model may also call a layer by another name, or from a
    list or an attribute that torch does not know.
    """

    def replace(item: Any) -> Any:
        return replacements.get(item, item) if isinstance(item, nn.Module) else item

    holders = [
        module for _, module in walk(model) if not isinstance(module, RankfoldLayer | RankfoldParameters)
    ]
    for attributes in map(vars, holders):
        for name, value in list(attributes.items()):
            if type(value) is list:
                value[:] = map(replace, cast("list[Any]", value))
            elif type(value) is dict:
                value.update({key: replace(item) for key, item in cast("dict[Any, Any]", value).items()})
            elif type(value) is tuple:
                attributes[name] = tuple(map(replace, cast("tuple[Any, ...]", value)))
            else:
                attributes[name] = replace(value)


def _warn_of_drift(drifts: Mapping[str, float | None]) -> None:
    """Warn of the loss of merging into a base that is quantised or of less than 32 bits."""
    losses = {name: drift for name, drift in drifts.items() if drift is not None}
    if losses:
        worst = max(losses, key=losses.__getitem__)
        message = (
            f"merging into a base of low precision rounded away {losses[worst]:.2%} of the change of "
            f"'{worst}', the most of {len(losses)} layers; merge into it in float32, or keep the adapter "
            "apart."
        )
        warnings.warn(message, RankfoldWarning, stacklevel=3)


def _take_adapter_names(module: nn.Module) -> None:
    """Let a module that PEFT saves whole, such as a head, get the `adapter_names` of its thread's call."""
    # Once and for good: a hook that came and went with a call would also meet the calls of other threads.
    if isinstance(module, AuxiliaryTrainingWrapper):
        with _HOOKING:
            if _pass_adapter_names not in module._forward_pre_hooks.values():
                module.register_forward_pre_hook(_pass_adapter_names, with_kwargs=True)


_HOOKING = Lock()


def _pass_adapter_names(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    adapter_names = row_adapters(module)
    return None if adapter_names is None else (args, {**kwargs, "adapter_names": adapter_names})


def register() -> None:
    """Make rankfold's method known to PEFT. Doing so again changes nothing."""
    # PEFT's own `register_peft_method` takes names of its own enumeration only; the tables take any key that
    # has a value.
    key = cast("PeftType", RankfoldPeftType.RANKFOLD)
    PEFT_TYPE_TO_CONFIG_MAPPING[key] = RankfoldConfig
    PEFT_TYPE_TO_TUNER_MAPPING[key] = RankfoldModel
    PEFT_TYPE_TO_PREFIX_MAPPING[key] = RankfoldModel.prefix
