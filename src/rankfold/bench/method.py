"""Methods as PEFT configurations: rankfold's presets by name, and every method of PEFT itself."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from enum import Enum
from typing import Any, cast

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from pydantic import JsonValue

import rankfold
from rankfold import presets
from rankfold.errors import RankfoldError, SpecError, unknown_name
from rankfold.factors import DenseSpec, SeededSpec
from rankfold.peft_plugin.mlps import MLP_TARGETS
from rankfold.train.models import Kind

PEFT_PREFIX = "peft:"

_LISTS = ("target_modules", "exclude_modules", "modules_to_save")
_RATE_OF_OTHERS = "lora"
PEFT_LORA = f"{PEFT_PREFIX}{_RATE_OF_OTHERS}"
"""PEFT's own LoRA, what other methods are held against."""

HEAD_ONLY = "head_only"
"""A baseline and no method: nothing but a new head is trained, on the features that the base model has."""
_HEAD_RATE = 1e-2

_TASK_TYPES = {Kind.CLASSIFICATION: "SEQ_CLS", Kind.REGRESSION: "SEQ_CLS", Kind.INSTRUCTION: "CAUSAL_LM"}
# PEFT trains and saves these by itself for sequence classification.
_HEADS = {"classifier", "score"}


def method_config(
    method: str, options: Mapping[str, JsonValue], kind: Kind, *, seed: int, fresh_modules: Sequence[str] = ()
) -> PeftConfig:
    """Return the configuration of a method.

    Args:
        method: A preset's name, or `peft:` and the name of one of PEFT's methods.
        options: The method's options, and PEFT's own.
        kind: What is learned; gives PEFT's task type.
        seed: Given to methods that draw factors from a seed, unless the options have one.
        fresh_modules: Modules that the base's files do not hold; they are trained and saved with the adapter.

    Raises:
        SpecError: If the method or an option is unknown, or a value is not possible.
    """
    given: dict[str, Any] = {"task_type": task_type(kind), **options}
    for name in _LISTS:
        value = given.get(name)
        is_our_word = value == MLP_TARGETS and name == "target_modules" and not method.startswith(PEFT_PREFIX)
        # PEFT reads a text as a regular expression for the whole path, which a bare name never matches.
        if isinstance(value, str) and value.isidentifier() and not is_our_word:
            given[name] = [value]
    others = [name for name in fresh_modules if not _HEADS & set(name.split("."))]
    if others:
        given["modules_to_save"] = [
            *(given.get("modules_to_save") or ()),
            *others,
        ]
    if method.startswith(PEFT_PREFIX):
        return _peft_config(method, given)
    if method == HEAD_ONLY:
        if options:
            raise SpecError(f"'{HEAD_ONLY}' has no option '{next(iter(options))}'; leave its options out.")
        # PEFT wants an adapter: one number a layer, which stays at zero.
        sides = SeededSpec("islam")
        return rankfold.RankfoldConfig(
            r=1, down=sides, core=DenseSpec("zeros"), up=sides, target_modules="all-linear", **given
        )
    if "seed" in presets.find(method).options:
        given.setdefault("seed", seed)
    return rankfold.config(method, **given)


def task_type(kind: Kind) -> str:
    """Return what PEFT calls a kind of task."""
    return _TASK_TYPES[kind]


def recommended_learning_rate(method: str) -> float:
    """Return the learning rate of a preset; for a method of PEFT, that of `lora`."""
    if method == HEAD_ONLY:
        return _HEAD_RATE
    return presets.find(_RATE_OF_OTHERS if method.startswith(PEFT_PREFIX) else method).learning_rate


def _peft_config(method: str, options: Mapping[str, Any]) -> PeftConfig:
    classes = peft_methods()
    if method not in classes:
        raise unknown_name("method", method, classes)
    known = {each.name for each in fields(cast(Any, classes[method])) if each.init}
    for name in options:
        if name not in known:
            raise unknown_name(f"option of method '{method}'", name, known)
    try:
        return classes[method](**options)
    except RankfoldError:
        raise
    except (TypeError, ValueError) as error:
        raise SpecError(
            f"method '{method}' refuses its options: {str(error).rstrip('.')}; change them."
        ) from error


def peft_methods() -> dict[str, type[PeftConfig]]:
    """Return the configuration class of every method of PEFT itself, by the name it has here."""
    table = cast("Mapping[Enum, type[PeftConfig]]", PEFT_TYPE_TO_CONFIG_MAPPING)
    return {
        f"{PEFT_PREFIX}{str(kind.value).lower()}": config
        for kind, config in table.items()
        if config is not rankfold.RankfoldConfig
    }
