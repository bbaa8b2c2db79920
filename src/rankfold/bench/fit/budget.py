"""Budgets of an adapter (parameters, bytes, time of a step) and the cost of a composition."""

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal, cast, final

from pydantic import JsonValue
from torch import nn
from transformers.pytorch_utils import Conv1D

from rankfold.adapter.build import Builder
from rankfold.adapter.cost import adapter_work, base_work
from rankfold.adapter.geometry import Linear
from rankfold.errors import RankfoldWarning, SpecError
from rankfold.models.meta import MetaBase
from rankfold.peft_plugin.config import RankfoldConfig
from rankfold.peft_plugin.layer import layer_sizes
from rankfold.peft_plugin.structure import USUAL_TARGETS
from rankfold.peft_plugin.targets import plan_adapters
from rankfold.runs.methods import find_method, head_parameters
from rankfold.store.rounding import FEWEST_NUMBERS, GRIDS

ALL_LINEAR = "all-linear"

_REFERENCE_RANK = 8
EXACT = "fp32"
"""The type that adapters are trained and saved in, unless they are rounded."""

_FLOAT_BYTES = {EXACT: 4, "fp16": 2, "bf16": 2}

DTYPES = (*_FLOAT_BYTES, *GRIDS)
"""The types that adapters can be stored in."""


@final
@dataclass(frozen=True, slots=True)
class Size:
    """The cost of an adapter.

    Args:
        numbers: Trained parameters, each counted once, without the task head beside the adapter.
        bytes: Of these numbers as they are stored, in integers with their scales; a file has names and shapes
            besides.
        step: Predicted time of a training step, as a multiple of the reference's.
        base_step: The same of the frozen base alone, under which no adapter can be.
    """

    numbers: int
    bytes: int
    step: float
    base_step: float = 0.0


def stored_bytes(tensors: Iterable[tuple[str, int]], dtype: str = EXACT) -> int:
    """Return the bytes of trained numbers in a type, as an adapter's file has them.

    Args:
        tensors: Role and numbers of each tensor.
        dtype: What they are stored in, such as int4; integers have a scale for every 32 of a tensor.
    """
    if dtype in _FLOAT_BYTES:
        return _FLOAT_BYTES[dtype] * sum(size for _, size in tensors)
    grid = GRIDS[dtype]
    return sum(
        grid.packed_bytes(size) + grid.scale_bytes(size)
        if is_rounded(role, size)
        else _FLOAT_BYTES[EXACT] * size
        for role, size in tensors
    )


def is_rounded(role: str, size: int) -> bool:
    """Return whether a tensor is rounded to integers: routers and a few numbers alone are not."""
    return role != "router" and size >= FEWEST_NUMBERS


@final
class SizeEstimator:
    """Computes the cost of adapters on one model, from its structure alone.

    The reference of step times is LoRA of rank 8 on `usual`.

    Args:
        base: The model.
        tokens: Tokens of a training step.

    Attributes:
        usual: The layers that PEFT adapts by default in such a model; every linear one if it has no default.
    """

    def __init__(self, base: MetaBase, *, tokens: int) -> None:
        self.base = base
        self.tokens = tokens
        self._model = base.model()
        self.usual = default_targets(str(base.config.model_type))
        self._base_work = base_work(_linear_layers(self._model), tokens)
        # On a very small model this rank is more than makes sense, but it is what times are measured in.
        reference = self._plan(self._config(_REFERENCE_RANK, self.usual), on_warning="ignore")
        self._reference = self._time(reference)

    def head(self) -> int:
        """Return the parameters of a new task head, which are trained beside any adapter."""
        _, model = self.base.with_adapter(self._config(1, self.usual))
        return sum(parameter.numel() for parameter in head_parameters(model))

    def lora(self, rank: int, targets: list[str] | str) -> Size:
        """Return the cost of PEFT's own LoRA.

        Raises:
            SpecError: If it cannot be built on this model.
        """
        return self._size(self._plan(self._config(rank, targets)))

    def sizes(
        self, method: str, options: Mapping[str, JsonValue], dtypes: Sequence[str] = (EXACT,)
    ) -> dict[str, Size]:
        """Return the cost of a method in each of some types.

        Raises:
            SpecError: If it cannot be built on this model, or only with a warning: such as a rank that is
                more than a layer can have.
        """
        config = find_method(method).config(options, self.base.head.task_type, seed=0)
        builder = self._plan(cast(RankfoldConfig, config))
        return {dtype: self._size(builder, dtype) for dtype in dtypes}

    def _size(self, builder: Builder, dtype: str = EXACT) -> Size:
        times = self._time(builder), self._base_work.time
        step, base_step = (time / self._reference for time in times)
        tensors = builder.tensor_sizes()
        return Size(sum(size for _, size in tensors), stored_bytes(tensors, dtype), step, base_step)

    def _config(self, rank: int, targets: list[str] | str) -> RankfoldConfig:
        return RankfoldConfig(r=rank, target_modules=targets, task_type=self.base.head.task_type)

    def _plan(self, config: RankfoldConfig, on_warning: Literal["error", "ignore"] = "error") -> Builder:
        with warnings.catch_warnings():
            warnings.simplefilter(on_warning, RankfoldWarning)
            try:
                return plan_adapters(self._model, config)
            except RankfoldWarning as warning:
                raise SpecError(str(warning)) from warning

    def _time(self, builder: Builder) -> float:
        return (self._base_work + adapter_work(builder, self.tokens)).time


def _linear_layers(model: nn.Module) -> list[Linear]:
    sizes = (layer_sizes(module) for module in model.modules() if isinstance(module, nn.Linear | Conv1D))
    return [Linear(inputs, outputs) for inputs, outputs in sizes if inputs and outputs]


def default_targets(model_type: str) -> list[str] | str:
    """Return the layers that PEFT adapts by default in models of a type, or "all-linear"."""
    targets: list[str] | str = USUAL_TARGETS.get(model_type, ALL_LINEAR)
    return targets if isinstance(targets, str) else sorted(targets)


_THOUSANDS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
_POWERS = {"": 1, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_COUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([kmg]?)")
_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*([kmg]?i?)b?")
_STEP = re.compile(r"(\d+(?:\.\d+)?)\s*x?")


@final
@dataclass(frozen=True, slots=True)
class Budget:
    """Limits that all hold together; None is no limit.

    Args:
        params: Largest number of trained parameters of the adapter, without the task head beside it.
        bytes: The most bytes of the adapter's numbers, as `Size.bytes` has them.
        step: The most time of a training step, as a multiple of that of LoRA of rank 8 on the layers that
            PEFT adapts by default.

    Raises:
        SpecError: If there is no limit, or one is not above 0.
    """

    params: int | None = None
    bytes: int | None = None
    step: float | None = None

    def __post_init__(self) -> None:
        """Check that there is something to keep to."""
        if (self.params, self.bytes, self.step) == (None, None, None):
            raise SpecError(
                "there is no budget; give --bytes 12KiB, --budget-params 60k or --budget-step 1.1x."
            )
        for name, limit in (("params", self.params), ("bytes", self.bytes), ("step", self.step)):
            if limit is not None and limit <= 0:
                raise SpecError(f"a budget of {limit:g} {name} leaves nothing to train; give more than 0.")

    def use(self, size: Size) -> float:
        """Return how much of the tightest limit a size takes: 1 is all of it, more does not fit.

        Of a step's time, what counts is what comes on top of the frozen base's.
        """
        shares = [0.0]
        if self.params is not None:
            shares.append(size.numbers / self.params)
        if self.bytes is not None:
            shares.append(size.bytes / self.bytes)
        if self.step is not None:
            step_budget = self.step - size.base_step
            shares.append((size.step - size.base_step) / step_budget if step_budget > 0 else inf)
        return max(shares)

    def text(self) -> str:
        """Return the limits in words."""
        limits = [
            None if self.params is None else f"{self.params:,} trained parameters",
            None if self.bytes is None else f"{self.bytes:,} bytes",
            None if self.step is None else f"{self.step:g}x the step of LoRA",
        ]
        return " and ".join(filter(None, limits))


def parse_count(text: str) -> int:
    """Read a number such as 60k or 1.5M.

    Raises:
        SpecError: If it is none.
    """
    match = _COUNT.fullmatch(text.strip().lower())
    if match is None:
        raise SpecError(f"'{text}' is no number of parameters; write it as 60k, 1.5M or 60000.")
    return int(float(match[1]) * _THOUSANDS[match[2]])


def parse_bytes(text: str) -> int:
    """Read a size such as 128KB (thousands) or 1MiB (powers of 1024).

    Raises:
        SpecError: If it is none.
    """
    match = _BYTES.fullmatch(text.strip().lower())
    units = _THOUSANDS | _POWERS
    if match is None or match[2] not in units:
        raise SpecError(f"'{text}' is no size; write it as 128KB, 1MiB or 131072.")
    return int(float(match[1]) * units[match[2]])


def parse_step(text: str) -> float:
    """Read a multiple such as 1.1x.

    Raises:
        SpecError: If it is none.
    """
    match = _STEP.fullmatch(text.strip().lower())
    if match is None:
        raise SpecError(f"'{text}' is no multiple of a step's time; write it as 1.1x.")
    return float(match[1])
