"""Preset: a published method as a value, with typed options."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, cast, final, get_args, get_origin, get_type_hints

import numpy as np

from rankfold.adapter.balance import BalanceKind, BalanceSpec
from rankfold.adapter.router import RouterSpec
from rankfold.adapter.spec import AdapterSpec
from rankfold.errors import SpecError, unknown_name

# Options that several methods have, with their help.
Rank = Annotated[int, "rank of the adapter"]
Alpha = Annotated[float, "numerator of the scaling"]
Dropout = Annotated[float, "probability of dropout"]
Heads = Annotated[int, "number of heads"]
Seed = Annotated[int, "seed of frozen factors and of initial values"]
Reading = Literal["recommended", "paper"]


def balance(kind: BalanceKind, coefficient: float, delta: float | None = None) -> BalanceSpec | None:
    """Return an auxiliary loss, or None where the coefficient is zero, which costs nothing.

    Raises:
        SpecError: If a delta is given for a loss that is not there.
    """
    if coefficient:
        return BalanceSpec(kind=kind, coefficient=coefficient, **({} if delta is None else {"delta": delta}))
    if delta is not None:
        raise SpecError(f"delta={delta:g} is of the balance loss, which is off; give balance_loss too.")
    return None


# The names of types in messages.
_WORDS: Mapping[type, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    tuple: "a list",
    NoneType: "none",
}


@final
@dataclass(frozen=True, slots=True)
class Option:
    """One option of a preset.

    Args:
        name: Its name.
        types: The types a value may have.
        default: Its default.
        choices: The values it may have, if they are few.
        help: What it means, in a few words.
    """

    name: str
    types: tuple[type, ...]
    default: Any
    choices: tuple[Any, ...] | None
    help: str

    @property
    def type(self) -> "type":
        """The main type of a value."""
        return self.types[0]

    def convert(self, value: Any, preset: str) -> Any:
        """Return a value in the option's type.

        Raises:
            SpecError: If the value has another type, or is none of the choices.
        """
        if isinstance(value, np.generic):
            value = cast("Any", value.item())  # as of a sweep over an array
        if self.choices is not None and not (value is None and NoneType in self.types):
            if value not in self.choices:
                raise unknown_name(
                    f"value of '{self.name}' for method '{preset}'", str(value), map(str, self.choices)
                )
            return value
        if tuple in self.types and isinstance(value, list):
            return tuple(cast("list[Any]", value))
        if float in self.types and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if not isinstance(value, self.types) or (isinstance(value, bool) and bool not in self.types):
            type_names = " or ".join(_WORDS.get(part, part.__name__) for part in self.types)
            raise SpecError(f"{self.name}={value!r} of method '{preset}' cannot be read; give {type_names}.")
        return value


@final
@dataclass(frozen=True, slots=True)
class Preset:
    """A published method: where it comes from, and the spec it stands for.

    Args:
        name: The name in configurations and on the command line.
        title: The name in prose.
        paper: Authors, year and where to find it.
        summary: What is special about it, in one sentence.
        learning_rate: A learning rate for AdamW that is a good start; that of its recipe, if it has one.
        build: Returns the spec; its keyword parameters are the options, annotated with their meaning.
        targets: The layers that the method is made for, as PEFT's `target_modules`; the model's usual ones if
            None.
        router_type: The type of the spec's router, where it is not `RouterSpec` itself; by it files are read.
        compositions: Options that make something unpublished of it, which `rankfold fit` tries.
        former_defaults: Defaults of version 0.1.0 that have changed since, for the runs of that version.
    """

    name: str
    title: str
    paper: str
    summary: str
    learning_rate: float
    build: Callable[..., AdapterSpec]
    targets: str | None = None
    router_type: type[RouterSpec] = RouterSpec
    compositions: tuple[Mapping[str, Any], ...] = ()
    former_defaults: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def options(self) -> Mapping[str, Option]:
        """The options, by name."""
        hints = get_type_hints(self.build, include_extras=True)
        parameters = inspect.signature(self.build).parameters.values()
        return {
            parameter.name: _option(parameter.name, hints[parameter.name], parameter.default)
            for parameter in parameters
        }

    def spec(self, **options: Any) -> AdapterSpec:
        """Return the adapter's spec.

        Raises:
            SpecError: If an option is unknown, or its value is not possible.
        """
        own_options = self.options
        for name in options:
            if name not in own_options:
                raise unknown_name(f"option of method '{self.name}'", name, own_options)
        return self.build(
            **{name: own_options[name].convert(value, self.name) for name, value in options.items()}
        )


def _option(name: str, hint: Any, default: Any) -> Option:
    value_type, description = get_args(hint)
    members = get_args(value_type) if get_origin(value_type) in (Union, UnionType) else (value_type,)
    choices = tuple(choice for part in members if get_origin(part) is Literal for choice in get_args(part))
    types = tuple(str if get_origin(part) is Literal else get_origin(part) or part for part in members)
    return Option(name, types, default, choices or None, description)
