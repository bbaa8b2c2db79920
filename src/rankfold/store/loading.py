"""Put saved adapters onto a model, as PEFT would load them from their folders."""

import inspect
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import peft
from peft import PeftConfig, PeftModel
from torch import Tensor, nn

from rankfold.adapter.module import hosts_in
from rankfold.errors import AdapterFileError, RankfoldWarning, SpecError
from rankfold.peft_plugin.combine import changing
from rankfold.peft_plugin.config import RankfoldConfig, difference_for_hotswap
from rankfold.peft_plugin.layer import PREFIX, RankfoldLayer
from rankfold.peft_plugin.state import are_of_one_base, check_finite, check_shapes, expected_shapes
from rankfold.peft_plugin.targets import rename_layer
from rankfold.progress import quiet_libraries
from rankfold.store.adapter import SavedAdapter
from rankfold.store.saved import open_adapter

_MOST_LETTERS = 300
_PREFIX = "base_model.model."


def load_adapter(base: nn.Module, adapter: SavedAdapter | str | Path, *, strict: bool = True) -> PeftModel:
    """Put one adapter on a base model, in evaluation mode.

    Args:
        base: The model it was trained on, with a head of the same size.
        adapter: As for `open_adapter`.
        strict: Refuse fields of its configuration that are unknown here; without it they are left out with a
            warning.

    Raises:
        AdapterFileError: If there is no adapter, it is damaged, or it does not fit the base.
    """
    return load_into(base, {"default": open_adapter(adapter)}, strict=strict)


def load_into(model: nn.Module, adapters: Mapping[str, SavedAdapter], *, strict: bool = True) -> PeftModel:
    """Put adapters on a model, in evaluation mode; the first one is active if the model had none.

    Args:
        model: A PEFT model, which gets them beside its own, or a base model.
        adapters: By the names that they get in the model.
        strict: As for `load_adapter`.

    Raises:
        AdapterFileError: If one does not fit the model; the adapters before it are there.
        SpecError: If a name is taken, or none that a module can have.
    """
    if not adapters:
        raise SpecError("no adapter is named; name one or more.")
    target = model
    for name, adapter in adapters.items():
        if "." in name or (isinstance(target, PeftModel) and name in target.peft_config):
            raise SpecError(
                f"'{name}' cannot be the name of another adapter of this model; give one without '.'."
            )
        check_finite(adapter.tensors, adapter.title)
        config = peft_config(adapter, strict=strict)
        config.inference_mode = True
        # PEFT would ask the hub for it, and its name may be one that only rankfold knows.
        config.base_model_name_or_path = _base_of(target) or config.base_model_name_or_path
        try:
            with quiet_libraries():
                # It would look for a vocabulary that was resized, which the tensors show.
                warnings.filterwarnings("ignore", message="Could not find a config file in")
                # The warnings on ranks and relays were given when the adapter was made.
                warnings.filterwarnings("ignore", category=RankfoldWarning)
                if isinstance(config, RankfoldConfig):
                    # Before anything is built: the configuration may ask for more than memory holds.
                    base = target.get_base_model() if isinstance(target, PeftModel) else target
                    adapter = _with_present_names(adapter, base)
                    check_shapes(expected_shapes(base, config), adapter.tensors)
                    config.saved_tensors = frozenset(adapter.tensors)
                target = _add(target, name, config)
                _fill(target, name, adapter)
        except (RuntimeError, ValueError, TypeError, KeyError) as error:
            if isinstance(error, AdapterFileError):
                raise
            raise _misfit(adapter, _first_reason(error)) from error
    return cast("PeftModel", target).eval()


def hotswap_adapter(
    model: PeftModel, adapter: SavedAdapter | str | Path, adapter_name: str = "default"
) -> None:
    """Give an adapter of a model the values of a saved one in place, so that compiled code goes on as it is.

    Args:
        model: The model.
        adapter: As for `open_adapter`; of the same layers and options as the one in the model.
        adapter_name: The adapter in the model.

    Raises:
        AdapterFileError: If there is no adapter, or it is of other layers or options.
        SpecError: If the model has no adapter of rankfold with this name, or it is merged.
        ThreadError: If another thread runs the model, or changes its adapters.
    """
    saved = open_adapter(adapter)
    check_finite(saved.tensors, saved.title)
    old, new = model.peft_config.get(adapter_name), peft_config(saved)
    if not (isinstance(old, RankfoldConfig) and isinstance(new, RankfoldConfig)):
        raise SpecError(
            f"'{adapter_name}' and {saved.title} are not both of rankfold; use PEFT's own hotswap_adapter "
            "for two of LoRA."
        )
    hosts = [host for _, host in hosts_in(model) if adapter_name in host.rankfold_adapters]
    if any(adapter_name in cast(Any, host).merged_adapters for host in hosts):
        raise SpecError(f"'{adapter_name}' is merged into the base weights; unmerge it first.")
    for option in difference_for_hotswap(old, new):
        raise _misfit(saved, f"its {option} is another than that of '{adapter_name}'")
    if not are_of_one_base(old.base_fingerprint, new.base_fingerprint):
        raise _misfit(saved, "it was trained on other base weights")
    passes = {host.passes for host in hosts if isinstance(host, RankfoldLayer) and host.passes is not None}
    with changing(passes):
        _fill(model, adapter_name, saved)


def peft_config(adapter: SavedAdapter, *, strict: bool = True) -> PeftConfig:
    """Return the configuration of a saved adapter as PEFT's object.

    Args:
        adapter: The adapter.
        strict: Refuse unknown fields; without it they are left out with a warning.

    Raises:
        AdapterFileError: If its method is unknown, a field is unknown, or a value is wrong.
    """
    methods: Mapping[str, type[PeftConfig]] = cast(Any, peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING)
    if adapter.method not in methods:
        raise AdapterFileError(
            f"{adapter.title} has a configuration of the unknown method '{adapter.method}'; "
            "update rankfold and peft."
        )
    try:
        with warnings.catch_warnings():
            # PEFT's own check of fields would be this warning.
            warnings.filterwarnings("ignore", message="Unexpected keyword arguments", category=UserWarning)
            values = cast(Any, PeftConfig).check_kwargs(**adapter.config_values)
            values = _known_fields(adapter, values, methods[adapter.method], strict=strict)
            return cast(Any, PeftConfig).from_peft_type(**values)
    except AdapterFileError:
        raise
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:_MOST_LETTERS].rstrip(".")
        raise AdapterFileError(
            f"{adapter.title} has a configuration that is damaged ({reason}); save the adapter again."
        ) from error


def _known_fields(
    adapter: SavedAdapter, values: Mapping[str, Any], method: type[PeftConfig], *, strict: bool
) -> dict[str, Any]:
    """Return the fields that a method's configuration has."""
    known = inspect.signature(cast(Any, method).__init__).parameters
    if unknown := sorted(values.keys() - known):
        message = (
            f"{adapter.title} has a configuration with the unknown fields {', '.join(map(repr, unknown))}"
        )
        if strict:
            raise AdapterFileError(
                f"{message}; update rankfold and peft, or leave them out with strict=False."
            )
        warnings.warn(f"{message}, which are left out.", RankfoldWarning, stacklevel=4)
    return {name: value for name, value in values.items() if name in known}


def _add(model: nn.Module, name: str, config: PeftConfig) -> PeftModel:
    if isinstance(model, PeftModel):
        model.add_adapter(name, config)
        return model
    classes: Mapping[str, type[PeftModel]] = cast(Any, peft).MODEL_TYPE_TO_PEFT_MODEL_MAPPING
    return cast(Any, classes.get(str(config.task_type), PeftModel))(model, config, adapter_name=name)


def _base_of(model: nn.Module) -> str | None:
    """Return the folder or hub id that a model was loaded from, if it knows."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return getattr(base, "name_or_path", None)


def _fill(model: PeftModel, name: str, adapter: SavedAdapter) -> None:
    """Set the values, every one of them and nothing else."""
    learned = _state(model, name)
    # PEFT's LoRA, and rankfold 0.1.0, save the frozen embedding with an adapter on it.
    expected = {**_state(model, name, with_embedding=True), **learned}
    for problem, keys in (
        ("lacks", learned.keys() - adapter.tensors.keys()),
        ("has no place for", adapter.tensors.keys() - expected.keys()),
    ):
        if keys:
            others = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise _misfit(adapter, f"it {problem} '{min(keys).removeprefix(_PREFIX)}'{others}")
    for key, tensor in adapter.tensors.items():
        if tensor.is_floating_point() != expected[key].is_floating_point():
            dtypes = [str(dtype).removeprefix("torch.") for dtype in (tensor.dtype, expected[key].dtype)]
            raise AdapterFileError(
                f"{adapter.title} is damaged: it holds '{key}' as {dtypes[0]}, and the model computes "
                f"with {dtypes[1]}; copy the adapter again."
            )
    cast(Any, peft).set_peft_model_state_dict(model, dict(adapter.tensors), adapter_name=name)


def _with_present_names(adapter: SavedAdapter, model: nn.Module) -> SavedAdapter:
    """Return an adapter whose modules that are saved whole have the names that they have in this model."""
    names: dict[str, str] = {key: key for key in adapter.tensors if f".{PREFIX}" in key}
    for key in adapter.tensors.keys() - names.keys():
        prefix = _PREFIX if key.startswith(_PREFIX) else ""
        names[key] = prefix + rename_layer(key.removeprefix(prefix), model)
    return replace(adapter, tensors={names[key]: tensor for key, tensor in adapter.tensors.items()})


def _state(model: PeftModel, name: str, *, with_embedding: bool = False) -> Mapping[str, Tensor]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*embedding", category=UserWarning)
        return cast(Any, peft).get_peft_model_state_dict(
            model, adapter_name=name, save_embedding_layers=with_embedding or "auto"
        )


def _first_reason(error: Exception) -> str:
    """Return the message of an error; of a list of tensors that do not fit, the first one."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].endswith(":"):
        return lines[1].rstrip(".")
    return " ".join(lines)[:_MOST_LETTERS].rstrip(".")


def _misfit(adapter: SavedAdapter, reason: str) -> AdapterFileError:
    return AdapterFileError(
        f"{adapter.title} does not fit this base model ({reason}); name the model it was trained on."
    )
