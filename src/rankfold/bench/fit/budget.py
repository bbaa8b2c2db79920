"""What an adapter may cost: numbers, bytes, and the time of a training step."""

import re
from dataclasses import dataclass
from math import inf
from typing import final

from rankfold.bench.fit.size import Size
from rankfold.errors import SpecError

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
        params: The most trained numbers of the adapter; a task head beside it is not counted.
        bytes: The most bytes of the adapter's weights file, as `Size.bytes` has them.
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
                "there is no budget; give --budget-params 60k, --budget-bytes 128KB or --budget-step 1.1x."
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
            left = self.step - size.base_step
            shares.append((size.step - size.base_step) / left if left > 0 else inf)
        return max(shares)

    def text(self) -> str:
        """Return the limits in words."""
        limits = [
            None if self.params is None else f"{self.params:,} trained numbers",
            None if self.bytes is None else f"{self.bytes:,} bytes",
            None if self.step is None else f"{self.step:g}x the step of LoRA",
        ]
        return " and ".join(filter(None, limits))


def parse_count(text: str) -> int:
    """Read a number such as 60k or 1.5M.

    Raises:
        SpecError: If it is none.
    """
    found = _COUNT.fullmatch(text.strip().lower())
    if found is None:
        raise SpecError(f"'{text}' is no number of parameters; write it as 60k, 1.5M or 60000.")
    return int(float(found[1]) * _THOUSANDS[found[2]])


def parse_bytes(text: str) -> int:
    """Read a size such as 128KB (thousands) or 1MiB (powers of 1024).

    Raises:
        SpecError: If it is none.
    """
    found = _BYTES.fullmatch(text.strip().lower())
    units = _THOUSANDS | _POWERS
    if found is None or found[2] not in units:
        raise SpecError(f"'{text}' is no size; write it as 128KB, 1MiB or 131072.")
    return int(float(found[1]) * units[found[2]])


def parse_step(text: str) -> float:
    """Read a multiple such as 1.1x.

    Raises:
        SpecError: If it is none.
    """
    found = _STEP.fullmatch(text.strip().lower())
    if found is None:
        raise SpecError(f"'{text}' is no multiple of a step's time; write it as 1.1x.")
    return float(found[1])
