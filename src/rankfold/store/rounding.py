"""Numbers in fewer bytes: bfloat16, or eight bits in blocks with a scale. The error is measured."""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from rankfold.errors import SpecError
from rankfold.store.tensors import DTYPES, TensorEntry, bytes_of

Rounding = Literal["bf16", "int8"]

BLOCK = 64
"""How many numbers share one scale in `int8`."""

_LARGEST = 127
_SCALE_BYTES = 4


def kept_bytes(entry: TensorEntry, rounding: Rounding | None) -> int:
    """Return how many bytes a tensor takes; integers, and what has few bits already, are kept as they are."""
    if rounding is None or not DTYPES[entry.dtype].is_floating_point:
        return entry.bytes
    scales = math.ceil(entry.numbers / BLOCK)
    return min(
        entry.bytes, 2 * entry.numbers if rounding == "bf16" else entry.numbers + _SCALE_BYTES * scales
    )


def keep(entry: TensorEntry, tensor: Tensor, rounding: Rounding | None) -> bytes:
    """Return a tensor as bytes, rounded if that makes it smaller.

    Raises:
        SpecError: If a number is not finite or too large to be rounded.
    """
    if rounding is None or kept_bytes(entry, rounding) == entry.bytes:
        return bytes_of(tensor)
    numbers = tensor.reshape(-1).to(torch.bfloat16 if rounding == "bf16" else torch.float32)
    if not numbers.isfinite().all():
        raise SpecError(
            f"'{entry.name}' has numbers that cannot be rounded to {rounding}; leave out the option."
        )
    if rounding == "bf16":
        return bytes_of(numbers)
    blocks = pad(numbers, (0, -len(numbers) % BLOCK)).view(-1, BLOCK)
    scales = blocks.abs().amax(dim=1, keepdim=True) / _LARGEST
    # A block of zeros has no scale, nor has one whose largest number is too small for it.
    steps = (blocks / scales).nan_to_num(nan=0.0).round().clamp(-_LARGEST, _LARGEST).to(torch.int8)
    return bytes_of(scales) + bytes_of(steps.view(-1)[: len(numbers)])


def restore(entry: TensorEntry, data: memoryview, rounding: Rounding | None) -> Tensor:
    """Return a tensor, in its own type, from what `keep` gave."""
    dtype, memory = DTYPES[entry.dtype], bytearray(data)
    if not entry.numbers:
        return torch.empty(entry.shape, dtype=dtype)
    if rounding is None or kept_bytes(entry, rounding) == entry.bytes:
        numbers = torch.frombuffer(memory, dtype=dtype)
    elif rounding == "bf16":
        numbers = torch.frombuffer(memory, dtype=torch.bfloat16)
    else:
        count = math.ceil(entry.numbers / BLOCK)
        scales = torch.frombuffer(memory, dtype=torch.float32, count=count)
        steps = torch.frombuffer(memory, dtype=torch.int8, offset=_SCALE_BYTES * count)
        numbers = steps.float() * scales.repeat_interleave(BLOCK)[: entry.numbers]
    return numbers.to(dtype).reshape(entry.shape)


def relative_error(before: Tensor, after: Tensor) -> float:
    """Return the largest change of a number, over the largest number."""
    if not before.numel() or not before.is_floating_point():
        return 0.0
    largest = before.double().abs().max().item()
    return (before.double() - after.double()).abs().max().item() / largest if largest else 0.0
