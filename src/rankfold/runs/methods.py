"""Methods as values: rankfold's presets, every method of PEFT itself, and baselines without an adapter."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from enum import Enum
from functools import partial
from typing import Any, cast, final

from peft import LNTuningConfig, PeftConfig, PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from pydantic import JsonValue
from torch.nn import Parameter

from rankfold import presets
from rankfold.errors import RankfoldError, SpecError, unknown_name
from rankfold.factors import DenseSpec, SeededSpec
from rankfold.peft_plugin.config import RankfoldConfig, config
from rankfold.peft_plugin.count import count_parameters
from rankfold.peft_plugin.structure import MLP_TARGETS
from rankfold.runs.record import ParametersInfo
from rankfold.runs.request import FULL_NAME, HEAD_ONLY_NAME, PEFT_PREFIX, RunRequest

logger = logging.getLogger("rankfold.runs")

PEFT_LORA = f"{PEFT_PREFIX}lora"
"""PEFT's own LoRA, what other methods are held against."""

_LISTS = ("target_modules", "exclude_modules", "modules_to_save")
_PARAMETERS = "target_parameters"
# PEFT trains and saves these by itself for these types of task.
_HEADS = {"classifier", "score"}
_TYPES_WITH_HEADS = ("SEQ_CLS", "TOKEN_CLS")


@final
@dataclass(frozen=True, slots=True)
class Method:
    """A method of fine-tuning, by its name.

    Args:
        name: The name in suites, records and on the command line.
        build: Returns PEFT's configuration; its keywords are the method's options and PEFT's own.
        draws_factors: Whether it draws factors from an option `seed`.
        target_word: A text that is more than a module's name to it as `target_modules`.
        trains_adapter: Whether the adapter is trained; if not, it has no options either.
    """

    name: str
    build: Callable[..., PeftConfig]
    draws_factors: bool = False
    target_word: str | None = None
    trains_adapter: bool = True

    @property
    def learning_rate(self) -> float:
        """The recommended learning rate for AdamW, with the method's default options."""
        return presets.recommend(self.name).learning_rate

    def config(
        self,
        options: Mapping[str, JsonValue],
        task_type: str | None,
        *,
        seed: int,
        fresh_modules: Sequence[str] = (),
    ) -> PeftConfig:
        """Return the configuration of the adapter.

        Args:
            options: The method's options, and PEFT's own.
            task_type: PEFT's name for the kind of task, such as "SEQ_CLS"; None if it has none.
            seed: Given to methods that draw factors from a seed, unless the options have one.
            fresh_modules: Modules that the base's files do not hold; they are trained and saved with the
                adapter.

        Raises:
            SpecError: If an option is unknown, or a value is not possible.
        """
        if options and not self.trains_adapter:
            raise SpecError(f"'{self.name}' has no option '{next(iter(options))}'; leave its options out.")
        values: dict[str, Any] = {"task_type": task_type, **options}
        for name in _LISTS:
            value = values.get(name)
            is_own_word = value == self.target_word and name == "target_modules"
            # PEFT reads a text as a regular expression for the whole path, which a bare name never matches.
            if isinstance(value, str) and value.isidentifier() and not is_own_word:
                values[name] = [value]
        if isinstance(values.get(_PARAMETERS), str):
            values[_PARAMETERS] = [values[_PARAMETERS]]  # never a regular expression
        self._add_heads(values, task_type, fresh_modules)
        if self.draws_factors:
            values.setdefault("seed", seed)
        targets = presets.recommend(self.name, options=options).targets
        if targets is not None and _PARAMETERS not in options:
            values.setdefault("target_modules", targets)
        return self.build(**values)

    def _add_heads(self, values: dict[str, Any], task_type: str | None, fresh_modules: Sequence[str]) -> None:
        """Add new modules to those that are saved whole, unless PEFT does, and keep adapters off a head."""
        saved_heads = _HEADS if task_type in _TYPES_WITH_HEADS else set[str]()
        unsaved_modules = [name for name in fresh_modules if not saved_heads & set(name.split("."))]
        if unsaved_modules:
            values["modules_to_save"] = [*(values.get("modules_to_save") or ()), *unsaved_modules]
        new_heads = sorted(saved_heads & {part for name in fresh_modules for part in name.split(".")})
        new_heads = new_heads or unsaved_modules
        # Only of heads on whole texts does PEFT know that "all-linear" does not mean them.
        takes_all_linear = self.target_word or not self.trains_adapter or self.name == FULL_NAME
        if task_type != "SEQ_CLS" and new_heads and takes_all_linear:
            values.setdefault("exclude_modules", new_heads)


def find_method(name: str) -> Method:
    """Return a method: a preset by its name, one of PEFT's as `peft:` and its name, `head_only` or `full`.

    Raises:
        SpecError: If there is none of this name, with the nearest one.
    """
    if name in BASELINES:
        return BASELINES[name]
    if name.startswith(PEFT_PREFIX):
        methods = peft_methods()
        if name not in methods:
            raise unknown_name("method", name, methods)
        return methods[name]
    preset = presets.find(name)
    return Method(name, partial(config, name), "seed" in preset.options, target_word=MLP_TARGETS)


def peft_methods() -> dict[str, Method]:
    """Return every method of PEFT itself by the name it has here."""
    return {
        name: Method(name, partial(_peft_config, name, config_class))
        for name, config_class in _peft_classes().items()
    }


def recipe_of(request: RunRequest) -> presets.Recipe:
    """Return the recommended values of a request's method, for its options."""
    return presets.recommend(request.method, options=request.options)


def check_rate(request: RunRequest, recipe: presets.Recipe) -> None:
    """Log a warning if the learning rate is far outside the range in which the method was seen to learn.

    Args:
        request: The run; rates of other optimisers than AdamW are not judged.
        recipe: That of its method; nothing is known of methods that are not listed.
    """
    if request.learning_rate is None or "adamw" not in request.optimizer or recipe is presets.OTHER_RECIPE:
        return
    message = recipe.doubt(request.method, request.learning_rate)
    if message is not None:
        logger.warning("%s", message)


def peft_options(name: str) -> dict[str, tuple[object, str]]:
    """Return the own options of a method of PEFT, each with its default and help text.

    Args:
        name: Such as "peft:lora".

    Raises:
        SpecError: If PEFT has none of this name, with the nearest one.
    """
    classes = _peft_classes()
    if name not in classes:
        raise unknown_name("method", name, classes)
    of_every_method = {option.name for option in _options(PeftConfig)}
    return {
        option.name: (_default(option), " ".join(str(option.metadata.get("help", "")).split()))
        for option in _options(classes[name])
        if option.name not in of_every_method
    }


def _peft_classes() -> dict[str, type[PeftConfig]]:
    table = cast("Mapping[Enum, type[PeftConfig]]", PEFT_TYPE_TO_CONFIG_MAPPING)
    return {
        f"{PEFT_PREFIX}{str(kind.value).lower()}": config_class
        for kind, config_class in table.items()
        if config_class is not RankfoldConfig
    }


def _options(config_class: type[PeftConfig]) -> list[Field[Any]]:
    return [option for option in fields(cast(Any, config_class)) if option.init]


def _default(option: Field[Any]) -> object:
    return None if option.default is MISSING else option.default


def _peft_config(method: str, config_class: type[PeftConfig], /, **options: Any) -> PeftConfig:
    option_names = {option.name for option in _options(config_class)}
    for name in options:
        if name not in option_names:
            raise unknown_name(f"option of method '{method}'", name, option_names)
    try:
        return config_class(**options)
    except RankfoldError:
        raise
    except (TypeError, ValueError) as error:
        raise SpecError(
            f"method '{method}' refuses its options: {str(error).rstrip('.')}; change them."
        ) from error


def _head_only_config(**options: Any) -> PeftConfig:
    # PEFT wants an adapter: one number a layer, which stays at zero.
    sides = SeededSpec("islam")
    return RankfoldConfig(
        r=1, down=sides, core=DenseSpec("zeros"), up=sides, target_modules="all-linear", **options
    )


HEAD_ONLY = Method(HEAD_ONLY_NAME, _head_only_config, trains_adapter=False)
"""A baseline: nothing but a new head is trained, on the features that the base model has."""

FULL = Method(FULL_NAME, partial(_peft_config, FULL_NAME, LNTuningConfig))
"""A ceiling: the weight and bias of every linear layer are trained and saved whole.

PEFT's LN tuning trains a copy of any layer in its place, whatever its name says.
"""

BASELINES = {method.name: method for method in (HEAD_ONLY, FULL)}


def head_parameters(model: PeftModel) -> list[Parameter]:
    """Return the parameters of modules that are saved whole beside the adapter."""
    return [parameter for name, parameter in model.named_parameters() if ".modules_to_save." in name]


def freeze_rest(model: PeftModel, method: Method, *, freeze_head: bool = False) -> None:
    """Leave as they are the parts that are not trained.

    Args:
        model: It has the method's adapter.
        method: Says whether the adapter is trained.
        freeze_head: Keep the head at its random initial values.

    Raises:
        SpecError: If that leaves nothing to train.
    """
    head = head_parameters(model)
    if not method.trains_adapter:
        if not head:
            raise SpecError(
                f"the model has no new head, which is all that '{method.name}' trains; leave it out."
            )
        if freeze_head:
            raise SpecError(f"'{method.name}' trains the head, and freeze_head leaves it; give one of them.")
        model.requires_grad_(requires_grad=False)
    for parameter in head:
        parameter.requires_grad = not freeze_head


def parameters_of_run(model: PeftModel) -> ParametersInfo:
    """Return the parameter counts of adapter and head; a head that is frozen is stored all the same."""
    count = count_parameters(model)
    return ParametersInfo(count.stored, count.active, count.active, count.heads)
