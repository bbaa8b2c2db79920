"""A sketch of the base weights, to notice an adapter that is put on another model than it was trained on.

It is not a hash: the same model loaded in another dtype, or quantised, must still be recognised. So it keeps
a few weights of a few layers and compares them with a tolerance.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from rankfold.errors import AdapterFileError
from rankfold.peft_plugin.layer import RankfoldLayer, is_meta
from rankfold.peft_plugin.targets import Target

_LAYERS, _WEIGHTS = 16, 4
_LARGEST = torch.finfo(torch.float16).max
_FLOAT, _QUANTISED = "float", "quantised"

# Rounding a weight to bfloat16 moves it by at most 2**-9 of itself, to 4 bits by about a tenth of a typical
# one.
_TOLERANCE = {_FLOAT: 0.02, _QUANTISED: 0.3}


def fingerprint(targets: Sequence[Target]) -> str | None:
    """Return the sketch of the base weights under some targets, or None if the weights are not at hand."""
    if not targets:
        return None
    chosen = [targets[index] for index in _spread(len(targets), _LAYERS)]
    samples = [_sample(target) for target in chosen]
    if any(sample is None for sample in samples):
        return None
    kind = _QUANTISED if any(target.quantization_backend is not None for target in targets) else _FLOAT
    values = torch.cat([sample for sample in samples if sample is not None])
    values = values.clamp(-_LARGEST, _LARGEST).to(torch.float16)
    return f"{kind}:{values.numpy().tobytes().hex()}"


def check_fingerprint(expected: str, targets: Sequence[Target]) -> None:
    """Compare the base weights under some targets with a sketch.

    Raises:
        AdapterFileError: If they are of another model, or the sketch is damaged.
    """
    actual = fingerprint(targets)
    if actual is None:
        return
    (kind, values), (actual_kind, actual_values) = _read(expected), _read(actual)
    tolerance = max(_TOLERANCE[kind], _TOLERANCE[actual_kind])
    if values.shape == actual_values.shape and (values - actual_values).norm() <= tolerance * values.norm():
        return
    raise AdapterFileError(
        "the adapter was trained on another base model: the base weights differ from its 'base_fingerprint'; "
        "load the base model it was trained on, or remove 'base_fingerprint' from its adapter_config.json to "
        "use it here all the same; a new adapter takes a configuration that no other was trained with."
    )


def _spread(size: int, count: int) -> list[int]:
    """Return up to `count` indices, spread evenly over `size`."""
    count = min(size, count)
    return [index * size // count for index in range(count)]


def _sample(target: Target) -> Tensor | None:
    layer, backend = target.base_layer, target.quantization_backend
    if is_meta(layer):
        return None
    if backend is not None and not backend.supports_merge:
        return None
    weight = _original_weight(target)
    if type(weight) is not Tensor:
        return None
    flat = weight.reshape(-1)
    return flat[torch.tensor(_spread(flat.numel(), _WEIGHTS), device=flat.device)].float().cpu()


def _original_weight(target: Target) -> Tensor:
    """Return the base weight, dequantised, without what other adapters have merged into it."""
    if isinstance(target.module, RankfoldLayer):
        return target.module.original_weight()
    if target.quantization_backend is not None:
        return target.quantization_backend.get_base_weight(target.base_layer)
    # Where weight norm or pruning computes it at every pass, it is no parameter.
    return cast("Tensor", target.base_layer.weight).detach()


def _read(sketch: str) -> tuple[str, Tensor]:
    kind, _, digits = sketch.partition(":")
    try:
        data = bytearray.fromhex(digits)
        values = torch.frombuffer(data, dtype=torch.float16).float()
    except ValueError as error:
        raise AdapterFileError(
            f"base_fingerprint={sketch!r} is damaged; restore adapter_config.json."
        ) from error
    if kind not in _TOLERANCE:
        raise AdapterFileError(
            f"base_fingerprint={sketch!r} is damaged or newer; restore its file or update rankfold."
        )
    return kind, values
