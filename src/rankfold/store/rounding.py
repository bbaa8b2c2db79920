"""Round an adapter to fewer bytes: to another floating-point type, or to int8 in blocks with a scale each.

An adapter in int8 is again a `SavedAdapter`, which packed files, stores and exports hold like any other: a
rounded tensor has one signed byte a number and a second tensor with its scales, and the metadata has the
original types. `restore` goes back; whoever opens an adapter gets it restored.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from rankfold.errors import AdapterFileError
from rankfold.store.adapter import SavedAdapter
from rankfold.store.tensors import DTYPES, TensorEntry
from rankfold.store.weights import Layout

Dtype = Literal["fp32", "fp16", "bf16", "int8"]

FLOATS: Mapping[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""The floating-point types that an adapter can be rounded to, as the command line names them."""

BLOCK = 64
"""How many numbers share one scale in int8."""

SCALES = ".int8_scales"
"""The end of the name of the tensor with the scales of a rounded one."""

TYPES = "rankfold.int8"
"""The metadata with the original type of each tensor, or `-` where it was not rounded."""

_LARGEST = 127
_SCALE_BYTES = 4
_EXACT = "-"


def round_adapter(adapter: SavedAdapter, dtype: Dtype) -> SavedAdapter:
    """Return an adapter with its floating-point tensors rounded.

    Args:
        adapter: The adapter.
        dtype: A floating-point type, which the tensors then have; or `int8`, from which `restore` gives
            rounded numbers in the original types. Integers, and tensors that `int8` would not make smaller,
            are kept as they are.

    Raises:
        AdapterFileError: If a value is not finite or too large, or the adapter is in int8 already.
    """
    check_exact(adapter)
    if dtype != "int8":
        tensors = {name: _to_float(name, tensor, dtype) for name, tensor in adapter.tensors.items()}
        rounded = _with_tensors(adapter, tensors, adapter.layout.metadata)
        return rounded.with_digest_of(rounded)
    tensors: dict[str, Tensor] = {}
    types: list[str] = []
    for entry in adapter.layout.entries:
        name, tensor = entry.name, adapter.tensors[entry.name]
        if _is_smaller_in_int8(entry):
            tensors[name], tensors[name + SCALES] = _to_int8(name, tensor)
            types.append(entry.dtype)
        else:
            tensors[name] = tensor
            types.append(_EXACT)
    rounded = _with_tensors(adapter, tensors, {**(adapter.layout.metadata or {}), TYPES: " ".join(types)})
    # The digest is that of the file which a reader gets.
    return rounded.with_digest_of(restore(rounded))


def restore(adapter: SavedAdapter) -> SavedAdapter:
    """Return an adapter in int8 with rounded numbers in the original types; any other as it is.

    Raises:
        AdapterFileError: If the types, the scales and the tensors do not fit.
    """
    if not is_int8(adapter):
        return adapter
    metadata = dict(adapter.layout.metadata or {})
    types = metadata.pop(TYPES).split()
    scales = {name: tensor for name, tensor in adapter.tensors.items() if name.endswith(SCALES)}
    names = [name for name in adapter.tensors if name not in scales]
    if len(types) != len(names):
        raise _contradiction()
    tensors: dict[str, Tensor] = {}
    for name, dtype in zip(names, types, strict=True):
        tensors[name] = adapter.tensors[name]
        if dtype != _EXACT:
            tensors[name] = _from_int8(tensors[name], dtype, scales.pop(name + SCALES, None))
    if scales:
        raise _contradiction()
    return _with_tensors(adapter, tensors, metadata or None)


def is_int8(adapter: SavedAdapter) -> bool:
    """Whether an adapter was rounded to int8 and not restored."""
    return TYPES in (adapter.layout.metadata or {})


def check_exact(adapter: SavedAdapter) -> None:
    """Check that an adapter is not in int8.

    Raises:
        AdapterFileError: If it is, or has a tensor with a name that is reserved for scales.
    """
    if is_int8(adapter) or any(name.endswith(SCALES) for name in adapter.tensors):
        raise AdapterFileError(f"{adapter.title} is in int8 already; unpack it with `rankfold unpack` first.")


def relative_error(exact: SavedAdapter, rounded: SavedAdapter) -> float:
    """Return the largest relative error of a tensor: RMS of its change over RMS of its values."""
    errors = (_rms_error(tensor, rounded.tensors[name]) for name, tensor in exact.tensors.items())
    return max(errors, default=0.0)


def _rms_error(exact: Tensor, rounded: Tensor) -> float:
    if not exact.is_floating_point():
        return 0.0
    wide = exact.double()
    is_finite = wide.isfinite()  # what is not finite is kept as it is, and has no error
    wide, rounded = wide[is_finite], rounded.double()[is_finite]
    size = wide.square().sum().sqrt().item()
    return (rounded - wide).square().sum().sqrt().item() / size if size else 0.0


def _to_float(name: str, tensor: Tensor, dtype: Dtype) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    narrow = tensor.to(FLOATS[dtype])
    # Eight-bit types do not know which of their numbers are finite.
    if not torch.equal(narrow.isfinite(), tensor.double().isfinite()):
        raise AdapterFileError(f"'{name}' has values too large for {dtype}; keep more bits.")
    return narrow


def _is_smaller_in_int8(entry: TensorEntry) -> bool:
    is_float = DTYPES[entry.dtype].is_floating_point
    return is_float and entry.numbers + _SCALE_BYTES * _blocks(entry.numbers) < entry.bytes


def _to_int8(name: str, tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Return the steps, in the tensor's shape, and the scale of each block."""
    numbers = tensor.reshape(-1).to(torch.float32)
    if not numbers.isfinite().all():
        raise AdapterFileError(f"'{name}' has values that int8 cannot hold; keep more bits.")
    blocks = pad(numbers, (0, -len(numbers) % BLOCK)).view(-1, BLOCK)
    scales = blocks.abs().amax(dim=1, keepdim=True) / _LARGEST
    # A block of zeros has no scale, nor has one whose largest number is too small for it.
    steps = (blocks / scales).nan_to_num(nan=0.0).round().clamp(-_LARGEST, _LARGEST).to(torch.int8)
    return steps.view(-1)[: len(numbers)].reshape(tensor.shape), scales.view(-1)


def _from_int8(steps: Tensor, dtype: str, scales: Tensor | None) -> Tensor:
    """Return the numbers of the steps; `scales` has one for each block."""
    is_float = dtype in DTYPES and DTYPES[dtype].is_floating_point
    if scales is None or not is_float or (steps.dtype, scales.dtype) != (torch.int8, torch.float32):
        raise _contradiction()
    if scales.shape != (_blocks(steps.numel()),):
        raise _contradiction()
    numbers = steps.reshape(-1).float() * scales.repeat_interleave(BLOCK)[: steps.numel()]
    return numbers.to(DTYPES[dtype]).reshape(steps.shape)


def _blocks(numbers: int) -> int:
    return math.ceil(numbers / BLOCK)


def _with_tensors(
    adapter: SavedAdapter, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None
) -> SavedAdapter:
    entries = tuple(TensorEntry.of(name, tensor) for name, tensor in tensors.items())
    return replace(adapter, layout=Layout(entries, metadata), tensors=tensors)


def _contradiction() -> AdapterFileError:
    return AdapterFileError("the adapter in int8 contradicts itself; pack the adapter again.")
