"""Adapters from memory onto a model, as PEFT would load them from directories."""

import warnings
from collections.abc import Mapping
from typing import Any, cast

import peft
from peft import PeftConfig, PeftModel
from torch import nn

from rankfold.errors import AdapterFileError, SpecError
from rankfold.store.saved import SavedAdapter, config_values


def load_into(model: nn.Module, adapters: Mapping[str, SavedAdapter]) -> PeftModel:
    """Put adapters on a model, in evaluation mode; the first one is active if the model had none.

    Args:
        model: A PEFT model, which gets them beside its own, or a base model.
        adapters: By the names that they get in the model.

    Raises:
        AdapterFileError: If one does not fit the model; the adapters before it are there.
        SpecError: If a name is taken, or none that a module can have.
    """
    loaded = model if isinstance(model, PeftModel) else None
    for name, saved in adapters.items():
        if "." in name or (loaded is not None and name in loaded.peft_config):
            raise SpecError(
                f"'{name}' cannot be the name of another adapter of this model; give one without '.'."
            )
        config = read_config(name, saved)
        try:
            loaded = _add(loaded or model, name, config)
            _fill(loaded, name, saved)
        except (RuntimeError, ValueError, TypeError, KeyError) as error:
            if isinstance(error, AdapterFileError):
                raise
            reason = " ".join(str(error).split())[:300].rstrip(".")
            raise AdapterFileError(
                f"adapter '{name}' does not fit this model ({reason}); use its base."
            ) from error
    if loaded is None:
        raise SpecError("no adapter is named; name one or more.")
    return loaded.eval()


def read_config(name: str, saved: SavedAdapter) -> PeftConfig:
    """Return the configuration of an adapter as PEFT reads it from a directory.

    Args:
        name: The adapter's name, for errors.
        saved: The adapter.

    Raises:
        AdapterFileError: If its method or one of its fields is unknown here.
    """
    values = {**config_values(saved.config), "inference_mode": True}
    try:
        with warnings.catch_warnings():
            # PEFT would go on without the fields that it does not know.
            warnings.filterwarnings("error", message="Unexpected keyword arguments", category=UserWarning)
            values = cast(Any, PeftConfig).check_kwargs(**values)
            return cast(Any, PeftConfig).from_peft_type(**values)
    except (KeyError, ValueError, TypeError, UserWarning) as error:
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise AdapterFileError(
            f"adapter '{name}' has a configuration that is unknown ({reason}); update rankfold and peft."
        ) from error


def _add(model: nn.Module, name: str, config: PeftConfig) -> PeftModel:
    if isinstance(model, PeftModel):
        model.add_adapter(name, config)
        return model
    kinds: Mapping[str, type[PeftModel]] = cast(Any, peft).MODEL_TYPE_TO_PEFT_MODEL_MAPPING
    return cast(Any, kinds.get(str(config.task_type), PeftModel))(model, config, adapter_name=name)


def _fill(model: PeftModel, name: str, saved: SavedAdapter) -> None:
    """Set the values, every one of them and nothing else."""
    expected = set(cast(Any, peft).get_peft_model_state_dict(model, adapter_name=name))
    for problem, keys in (
        ("lacks", expected - saved.tensors.keys()),
        ("has no place for", saved.tensors.keys() - expected),
    ):
        if keys:
            raise AdapterFileError(
                f"adapter '{name}' {problem} '{min(keys)}'; use the base model it was made for."
            )
    cast(Any, peft).set_peft_model_state_dict(model, dict(saved.tensors), adapter_name=name)
