"""The configuration: a `peft.PeftConfig` that carries an adapter's spec and chooses its layers."""

import enum
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, cast, final, get_origin

import numpy as np
import torch
from peft.config import PeftConfig
from peft.utils import SAFETENSORS_WEIGHTS_NAME, PeftType, TaskType
from peft.utils.other import get_pattern_key
from pydantic import (
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    TypeAdapter,
    ValidationError,
)
from safetensors import safe_open

from rankfold.adapter.layout import Layout
from rankfold.adapter.router import RouterSpec
from rankfold.adapter.spec import WITHOUT_ALPHA, AdapterSpec, DropoutPosition, HeadsIn, Scaling
from rankfold.errors import SpecError, unknown_name
from rankfold.factors import (
    BasisSpec,
    CoreSpec,
    DenseSpec,
    FactorSpec,
    SeededSpec,
    Share,
    look_beside,
    parse_factor,
)
from rankfold.peft_plugin.patterns import check_expression, check_names, check_time
from rankfold.presets import find, router_types

# Fields of an adapter by the names they have in a configuration, where the rank is PEFT's `r`.
_SPEC_FIELDS = {
    "r" if spec_field.name == "rank" else spec_field.name: spec_field.name
    for spec_field in fields(AdapterSpec)
}
_INTERNAL_FIELDS = {
    *("peft_type", "auto_mapping", "peft_version", "preset"),
    *("base_fingerprint", "layers", "towers"),
}


class RankfoldPeftType(str, enum.Enum):  # noqa: UP042 (as PEFT's own: a StrEnum prints differently)
    """The name of our method in PEFT's tables: PEFT reads `.value`, so a plain string would not do."""

    RANKFOLD = "RANKFOLD"


@final
@dataclass
class RankfoldConfig(PeftConfig):
    """Configuration of an adapter: its factors, and the layers that get it.

    The factors are stored in full, whatever preset they came from, so that a file never depends on a preset's
    defaults. Make one with `rankfold.config(preset, ...)`, or give factors yourself for a composition that
    nobody has published.

    Args:
        r: Rank.
        rank_up: Columns of the up factor, if they differ from `r`; takes a core.
        alpha: Numerator of the scaling.
        scaling: `alpha_over_r`, `alpha_over_sqrt_r`, `none` or `learned`.
        dropout: Probability of dropout.
        dropout_position: `input` or `output`.
        down: The factor r x in_features.
        core: The factor rank_up x r, if any.
        up: The factor out_features x rank_up.
        share_down: Which layers use one down factor: `none`, `module_type`, `in_features`, `slice` or
            `entries`.
        share_up: Which layers use one up factor: `none`, `module_type`, `slice` or `entries`.
        heads: Number of up factors side by side, weighed by a router; several numbers are those of as many
            equal parts of the model's blocks, from the first block on.
        heads_in: Which layers have several heads: `all`, or those in an `mlp`.
        down_per_head: Whether each head has a down factor of its own.
        router: What weighs the heads.
        seed: Seed of frozen factors, and of the initial values of the others; None takes torch's own, as
            `torch.manual_seed` and `transformers.set_seed` set it, when the adapter is added to a model, and
            keeps it here.
        target_modules: Names or a regular expression of the layers, "all-linear", or "mlp" for those of
            the MLPs; the model's usual ones if left out.
        target_parameters: Names of parameters that are adapted themselves, such as "experts.down_proj", where
            a model has the weights of all experts in one; the meaning is that of PEFT's LoRA. None warns
            where they are a large share of the model; an empty list does not.
        exclude_modules: Names or a regular expression of layers to leave out.
        layers_to_transform: Indices of the blocks whose layers are adapted.
        layers_pattern: Name of the list of blocks, where it is not found by itself.
        rank_pattern: Ranks of single layers, by name or regular expression.
        alpha_pattern: Alphas of single layers, by name or regular expression.
        modules_to_save: Modules that are trained and saved whole, such as a new head.
        bias: `none`; biases are not trained.
        init_weights: False starts at random values in place of zero, so that the adapter changes something at
            once.
        preset: The preset that the factors came from, for the record.
        base_fingerprint: A sketch of the base weights, written when an adapter is added to a model; loading
            compares it.
        layers: The layers that got it, with their types and sizes, written at the same time; loading compares
            them, and without the base model they describe the adapter's tensors.
        towers: Paths of the model's towers, such as a vision encoder and a language model, that got it and
            share no factor with each other, written at the same time.

    Raises:
        SpecError: If a value is not possible.
    """

    r: int = 8
    rank_up: int | None = None
    alpha: float = 16.0
    scaling: Scaling = "alpha_over_r"
    dropout: float = 0.0
    dropout_position: DropoutPosition = "input"
    down: FactorSpec = field(default_factory=DenseSpec)
    core: CoreSpec | None = None
    up: FactorSpec = field(default_factory=lambda: DenseSpec("zeros"))
    share_down: Share = "none"
    share_up: Share = "none"
    heads: int | tuple[int, ...] = 1
    heads_in: HeadsIn = "all"
    down_per_head: bool = False
    router: RouterSpec | None = None
    seed: int | None = 0
    target_modules: Collection[str] | str | None = None
    target_parameters: list[str] | None = None
    exclude_modules: Collection[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    rank_pattern: dict[str, int] = field(default_factory=dict[str, int])
    alpha_pattern: dict[str, float] = field(default_factory=dict[str, float])
    modules_to_save: list[str] | None = None
    bias: str = "none"
    init_weights: bool = True
    preset: str | None = None
    base_fingerprint: str | None = None
    layers: Layout | None = None
    towers: list[str] | None = None
    # PEFT saves the frozen embedding with an adapter on it, unless single tokens are trained: here none are.
    trainable_token_indices: ClassVar[dict[str, list[int]]] = {}

    def __new__(cls, *_args: Any, **options: Any) -> Self:
        """Refuse a field that does not exist: PEFT would leave out those of a file with a warning.

        Raises:
            SpecError: If there is one.
        """
        for name in options.keys() - cls.__dataclass_fields__:
            raise unknown_name("field of a configuration", name, cls.__dataclass_fields__)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        """Convert values that may come from a file, then check everything that needs no model."""
        if self.task_type is not None and self.task_type not in list(TaskType):
            raise unknown_name("task type", self.task_type, (task_type.value for task_type in TaskType))
        super().__post_init__()
        self.peft_type = cast("PeftType", RankfoldPeftType.RANKFOLD)
        if self.bias != "none":
            raise SpecError(
                f"bias='{self.bias}' is not supported; leave it at 'none' or name modules in modules_to_save."
            )
        for name, value in read_options(vars(self), _HINTS).items():
            setattr(self, name, value)
        # Only what came with the configuration is compared: what is written into it later is a record.
        self.expected_fingerprint = self.base_fingerprint
        self.expected_layers = self.layers
        self.saved_tensors: frozenset[str] | None = None
        # By the name of a layer in a model that renamed it, its name in the file; and fields with such names.
        self.saved_names: dict[str, str] = {}
        self.saved_fields: dict[str, Any] = {}
        if self.layers_pattern and self.layers_to_transform is None:
            raise SpecError("layers_pattern without layers_to_transform selects nothing; give both.")
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise SpecError(
                f"layers_to_transform has no effect on target_modules='{self.target_modules}'; "
                "give target_modules as a list of names."
            )
        if self.alpha_pattern and self.scaling in WITHOUT_ALPHA:
            raise SpecError(f"alpha_pattern has no effect with scaling='{self.scaling}'; leave it out.")
        patterns = {*self.rank_pattern, *self.alpha_pattern}
        check_time(self.expressions(), patterns)
        self.spec_for("")
        for path in {*self.rank_pattern, *self.alpha_pattern}:
            self.spec_for(path)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as values that JSON has: sets and tuples are lists, layers as in the file."""
        return _json_values({**super().to_dict(), **self.saved_fields})

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any
    ) -> Self:
        """Read a configuration as PEFT does; in a folder also the names of its tensors, and its basis."""
        config = cast("Self", super().from_pretrained(pretrained_model_name_or_path, subfolder, **kwargs))
        weights = Path(pretrained_model_name_or_path, subfolder or "", SAFETENSORS_WEIGHTS_NAME)
        for factor in (config.down, config.up):
            if isinstance(factor, BasisSpec) and weights.parent.is_dir():
                look_beside(factor.digest, weights.parent)
        if weights.is_file():
            with safe_open(weights, "pt") as file:
                config.saved_tensors = frozenset(file.keys())
        return config

    def keep_seed(self) -> None:
        """Write torch's seed into the configuration where it has none, so that a file has it."""
        if self.seed is None:
            self.seed = torch.initial_seed()

    def expressions(self) -> dict[str, tuple[str, str]]:
        """Return the regular expressions that are matched with names, each with its option and pattern.

        They are as PEFT puts them together, to be matched from the beginning of a name.
        """
        expressions: dict[str, tuple[str, str]] = {}
        for option in ("target_modules", "exclude_modules"):
            pattern = getattr(self, option)
            if isinstance(pattern, str):
                expressions[rf"(?:{pattern})\Z"] = option, pattern
        for option in ("rank_pattern", "alpha_pattern"):
            for pattern in getattr(self, option):
                expressions[rf"(.*\.)?({pattern})$"] = option, pattern
        for pattern in self.modules_to_save or ():
            expressions[rf"(^|.*\.){pattern}($|\..*)"] = "modules_to_save", pattern
        lists = [self.layers_pattern] if isinstance(self.layers_pattern, str) else self.layers_pattern
        for pattern in lists or ():
            expressions[rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\."] = "layers_pattern", pattern
        return expressions

    def spec_for(self, path: str) -> AdapterSpec:
        """Return the spec that holds for the layer at `path`.

        Raises:
            SpecError: If it is not possible.
        """
        values = {name: getattr(self, option) for option, name in _SPEC_FIELDS.items()}
        values["seed"] = torch.initial_seed() if self.seed is None else self.seed
        values["rank"] = self.rank_pattern.get(get_pattern_key(list(self.rank_pattern), path), self.r)
        values["alpha"] = self.alpha_pattern.get(get_pattern_key(list(self.alpha_pattern), path), self.alpha)
        spec = AdapterSpec(**values)
        return spec if self.init_weights else spec.with_random_start()


# Of PEFT's own fields, the one that an export reads.
_HINTS = {
    name: hint for name, hint in RankfoldConfig.__annotations__.items() if get_origin(hint) is not ClassVar
} | {"base_model_name_or_path": str | None}


def config(method: str, **options: Any) -> RankfoldConfig:
    """Return the configuration of a published method.

    Args:
        method: Name of a preset; `rankfold methods` lists them.
        **options: The preset's own options; `down` and `up`, other factors than the preset's, such as
            `basis:FILE`; `share_down`, `share_up` and `scaling`; and PEFT's for choosing layers:
            `target_modules`, `exclude_modules`, `layers_to_transform`, `layers_pattern`, `rank_pattern`,
            `alpha_pattern`, `modules_to_save`, `task_type`, `init_weights`, ...

    Raises:
        SpecError: If the method or an option is unknown, or a value is not possible.

    Example:
        >>> config("relayed_lora", r=8, k=4, target_modules=["query", "value"]).down
        RelaySpec(k=4, map='strided', initial='kaiming', std=None, kind='relay')
    """
    preset = find(method)
    own_options = preset.options
    targeting = (
        {config_field.name for config_field in fields(RankfoldConfig)}
        - _SPEC_FIELDS.keys()
        - _INTERNAL_FIELDS
    )
    parts = {
        name: _factor(options[name]) if name in ("down", "up") else options[name]
        for name in _PARTS
        if name in options.keys() - own_options
    }
    options = {name: value for name, value in options.items() if name not in parts}
    for name in options:
        if name not in own_options and name not in targeting:
            raise unknown_name(f"option of method '{method}'", name, {*own_options, *targeting, *_PARTS})
    takes_torch_seed = options.get("seed", 0) is None
    spec = preset.spec(
        **{
            name: value
            for name, value in options.items()
            if name in own_options and not (name == "seed" and takes_torch_seed)
        }
    )
    spec = replace(spec, **parts)
    if options.get("alpha") is not None and spec.scaling in WITHOUT_ALPHA:
        raise SpecError(
            f"alpha={options['alpha']} has no effect with scaling='{spec.scaling}'; leave it out."
        )
    if preset.targets is not None:
        options = {"target_modules": preset.targets, **options}
    values = {name: getattr(spec, attribute) for name, attribute in _SPEC_FIELDS.items()}
    if takes_torch_seed:
        values["seed"] = None  # read when the adapter is added to a model
    return RankfoldConfig(
        preset=method,
        **values,
        **{name: value for name, value in options.items() if name not in own_options},
    )


_PARTS = ("down", "up", "share_down", "share_up", "scaling")
"""Parts of a spec that replace those of any preset which has no option of this name."""


def _factor(value: Any) -> FactorSpec:
    """Return the factor that an option describes."""
    return parse_factor(value) if isinstance(value, str) else value


def _json_values(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _json_values(part) for key, part in cast("dict[str, Any]", value).items()}
    if isinstance(value, set):
        return sorted(cast("set[str]", value))
    if isinstance(value, list | tuple):
        return [_json_values(part) for part in cast("list[Any]", value)]
    return value


def difference_for_hotswap(old: RankfoldConfig, new: RankfoldConfig) -> list[str]:
    """Return the fields in which two configurations differ so that one's tensors mean something else here."""
    options = [*_SPEC_FIELDS, "rank_pattern", "alpha_pattern", "layers", "towers"]
    if not any(isinstance(factor, SeededSpec) for factor in (old.down, old.core, old.up)):
        options.remove("seed")  # of initial values only
    old_values, new_values = old.to_dict(), new.to_dict()
    return [option for option in options if old_values[option] != new_values[option]]


_WHOLE = "a whole number"
_WHOLES = "a whole number, or several as a list"
_NAME = "a name as a text"
_LAYERS = "names as a list, or a regular expression as a text"
_BY_NAME = 'numbers by name, such as {"query": 4}'

# By the type that a field is declared with: what reads its values, and what to give instead.
_VALUES: Mapping[Any, tuple[TypeAdapter[Any], str]] = {
    int: (TypeAdapter(StrictInt), _WHOLE),
    int | None: (TypeAdapter(StrictInt | None), _WHOLE),
    int | tuple[int, ...]: (TypeAdapter(StrictInt | tuple[StrictInt, ...]), _WHOLES),
    float: (TypeAdapter(StrictFloat), "a number"),
    bool: (TypeAdapter(StrictBool), "true or false"),
    str: (TypeAdapter(StrictStr), _NAME),
    # A set of any collection, since a configuration that is read from a file has lists.
    Collection[str] | str | None: (TypeAdapter(set[StrictStr] | StrictStr | None), _LAYERS),
    list[int] | int | None: (TypeAdapter(list[StrictInt] | StrictInt | None), "whole numbers of blocks"),
    list[str] | str | None: (TypeAdapter(list[StrictStr] | StrictStr | None), "names of lists of blocks"),
    list[str] | None: (TypeAdapter(list[StrictStr] | None), "names as a list"),
    dict[str, int]: (TypeAdapter(dict[StrictStr, StrictInt]), _BY_NAME),
    dict[str, float]: (TypeAdapter(dict[StrictStr, StrictFloat]), _BY_NAME),
    str | None: (TypeAdapter(StrictStr | None), _NAME),
    Layout | None: (TypeAdapter(dict[StrictStr, list[StrictStr]] | None), "what was saved"),
}

_NAMES_OF_LAYERS = ("target_modules", "exclude_modules", "target_parameters", "layers_pattern")
_STRICT = ConfigDict(extra="forbid", strict=True)
_KIND = Field(discriminator="kind")
_FACTOR = ("factor", "DenseSpec()")

# Likewise for specs: what reads one, what it describes, and an example.
_SPECS: Mapping[Any, tuple[TypeAdapter[Any], str, str]] = {
    FactorSpec: (TypeAdapter(Annotated[FactorSpec, _KIND], config=_STRICT), *_FACTOR),
    CoreSpec | None: (TypeAdapter(Annotated[CoreSpec | None, _KIND], config=_STRICT), *_FACTOR),
}


def read_options(options: Mapping[str, Any], hints: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options in the types they are declared with; collections of layer names become sets.

    Args:
        options: All fields of a configuration.
        hints: The types of those to read, by name.

    Raises:
        SpecError: If a value is of another type, or a regular expression cannot be read.
    """
    read = {name: _read(name, options[name], hint) for name, hint in hints.items()}
    for name in _NAMES_OF_LAYERS:
        if isinstance(read[name], str):
            check_expression(name, read[name])
        else:
            check_names(name, read[name] or ())
    for name in ("rank_pattern", "alpha_pattern", "modules_to_save"):
        for pattern in read[name] or ():
            check_expression(name, pattern)
    return read


def _read(name: str, value: Any, hint: Any) -> Any:
    if hint in _SPECS:
        return _read_spec(name, value, *_SPECS[hint])
    if hint == RouterSpec | None:
        return _read_router(name, value)
    if isinstance(value, np.generic):
        value = value.item()  # as of a sweep over an array; a file could not hold numpy's own types
    # Names are compared with the known ones by the spec, which has suggestions.
    reader, type_names = _VALUES[str if get_origin(hint) is Literal else hint]
    try:
        return reader.validate_python(value)
    except ValidationError as error:
        raise SpecError(f"{name}={value!r} cannot be read; give {type_names}.") from error


def _read_spec(name: str, value: Any, reader: TypeAdapter[Any], noun: str, example: str) -> Any:
    """Return a spec from a spec or from its fields in a file."""
    try:
        # Strict reading takes dictionaries from JSON only, which is where they come from.
        return (
            reader.validate_json(json.dumps(value))
            if isinstance(value, dict)
            else reader.validate_python(value)
        )
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(str(part) for part in fault['loc']) or 'value'}: {fault['msg']}"
            for fault in error.errors()
        )
        raise SpecError(
            f"{name}={value!r} describes no {noun} ({faults}); give a spec such as {example}."
        ) from error


def _read_router(name: str, value: Any) -> Any:
    """Return a router's spec from a spec or from the fields that a file has of it.

    Files of 0.1.0 have no kind, but every router in them has its rounds.
    """
    kind = "softmax"
    if isinstance(value, dict):
        value = dict(cast("dict[str, Any]", value))
        if "kind" not in value:
            value["kind"] = kind if value.get("rounds", 1) == 1 else "recurrent"
            if value["kind"] == kind:
                value.pop("rounds", None)
        kind = str(value.pop("kind"))
    return _read_spec(name, value, _router_reader(kind), "router", "RouterSpec()")


@cache
def _router_reader(kind: str) -> TypeAdapter[Any]:
    types = router_types()
    if kind not in types:
        raise unknown_name("router", kind, types)
    return TypeAdapter(cast(Any, types[kind] | None), config=_STRICT)
