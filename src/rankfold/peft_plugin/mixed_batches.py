"""Mixed batches: a layer's output where each row of a batch has an adapter of its own, or none.

Most layers get the batch first. Some models turn it around inside: XLNet, Longformer's queries, torch's
transformers and attention without `batch_first`. Where there are as many tokens as rows, the shape does not
say which axis is which. So before the first mixed batch one row is sent through the model by itself: the
axis that is then 1 is the batch.
"""

import threading
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from inspect import Parameter, signature
from typing import Any, Protocol, final

import torch
from torch import Size, Tensor, nn

from rankfold.adapter.gating import ExpertEntryGating, ExpertExitGating

BASE = "__base__"
"""In `adapter_names`, the name for rows that get no adapter."""


class MixedLayer(Protocol):
    """What a mixed batch needs of a layer with adapters; see `RankfoldLayer`."""

    path: str
    feature_axes: int
    batch_axis: int | None
    rankfold_adapters: Any
    base_layer: Any

    @property
    def merged(self) -> bool:
        """Whether the base weight has adapters in it."""
        ...

    def change(self, name: str, x: Tensor) -> Tensor:
        """Return the change of the output by an adapter."""
        ...


def forward_mixed(
    layer: MixedLayer, x: Tensor, adapter_names: list[str], *args: Any, **kwargs: Any
) -> Tensor:
    """Return the output of a layer where each row has an adapter of its own, or none.

    Between the first and the last layer of an MLP, rows with experts have an axis in front, one entry for
    each expert of a token. All rows of the batch get it then; those without experts are in its first entry.

    Args:
        layer: The layer.
        x: Its input, with the experts first within such an MLP.
        adapter_names: For each row its adapter, or `__base__`.
        *args: Passed to the base layer.
        **kwargs: Passed to the base layer.

    Raises:
        ValueError: If an adapter is merged, or there are not as many names as rows.
    """
    if layer.merged:
        raise ValueError(
            "Cannot pass `adapter_names` when there are merged adapters, please call `unmerge_adapter` first."
        )
    names = [name for name in dict.fromkeys(adapter_names) if name in layer.rankfold_adapters]
    gatings = {name: layer.rankfold_adapters[name].gating for name in names}
    entries = {
        name: gating.experts for name, gating in gatings.items() if isinstance(gating, ExpertEntryGating)
    }
    exits = {name: gating for name, gating in gatings.items() if isinstance(gating, ExpertExitGating)}
    expert_axes = 1 if exits else 0
    axis = _batch_axis(layer, x[0] if exits else x, adapter_names)
    x = x.movedim(axis + expert_axes, expert_axes)
    base_input = x[0].clone() if exits else x
    rows = {name: _rows(adapter_names, name, x.device) for name in names}
    for name, gating in exits.items():
        base_input[rows[name]] = gating.join(x[: gating.experts, rows[name]])
    result = layer.base_layer(base_input, *args, **kwargs)
    result = result.expand(max(entries.values()), *result.shape).clone() if entries else result.clone()
    for name in names:
        target = (slice(0, entries.get(name, len(result))), rows[name]) if entries else (rows[name],)
        source = x[: exits[name].experts, rows[name]] if name in exits else base_input[rows[name]]
        result[target] = (result[target] + layer.change(name, source)).to(result.dtype)
    expert_axes = 1 if entries else 0
    return result.movedim(expert_axes, axis + expert_axes)


def _batch_axis(layer: MixedLayer, x: Tensor, adapter_names: list[str]) -> int:
    """Return the axis of a layer's input that has the rows.

    Raises:
        ValueError: If no axis has as many, or several have and nothing says which of them it is.
    """
    rows = len(adapter_names)
    axes = [axis for axis in range(x.ndim - layer.feature_axes) if x.shape[axis] == rows]
    if axes and (len(set(adapter_names)) == 1 or (torch.compiler.is_compiling() and axes[0] == 0)):
        return axes[0]
    if axes:
        found_axis = _axis_of_one_row(layer, x, axes, rows)
        layer.batch_axis = layer.batch_axis if found_axis is None else found_axis
    if layer.batch_axis is not None and layer.batch_axis in axes:
        return layer.batch_axis
    if layer.batch_axis is None and axes == [0]:
        return 0
    if len(axes) > 1:
        raise ValueError(
            f"Cannot pass `adapter_names`: the layer '{layer.path}' has as many tokens as rows, so "
            "its input does not say which are which; pad the tokens by one, or leave out a row."
        )
    raise ValueError(
        "Length of `adapter_names` should be the same as the number of inputs, but got "
        f"{rows} and {len(x)} respectively, in the layer '{layer.path}'."
    )


def _rows(adapter_names: list[str], name: str, device: torch.device) -> Tensor:
    return torch.tensor([row for row, of in enumerate(adapter_names) if of == name], device=device)


# The axis that holds the rows.

Shapes = dict[object, set[Size]]


@final
class _SeenShapes(threading.local):
    """Shapes of inputs in this thread's pass of one row: while it runs, and for the batch after it."""

    of_one_row: Shapes | None = None
    is_recording: bool = False


_SEEN = _SeenShapes()


def note_input(layer: nn.Module, x: Tensor) -> None:
    """Note the shape of a layer's input while one row goes through the model."""
    if _SEEN.is_recording and _SEEN.of_one_row is not None:
        _SEEN.of_one_row.setdefault(layer, set()).add(x.shape)


@contextmanager
def compared_to_one_row(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], rows: int
) -> Generator[None]:
    """Send one row of a batch through a model, and compare the shapes of the pass under way with its.

    A model that cannot be called with one row is left alone: then only shapes that are clear are taken.

    Args:
        model: The model with its adapters, in evaluation mode.
        args: The batch as it is passed by position.
        kwargs: The batch by name.
        rows: The size of the batch.
    """
    before = _SEEN.of_one_row
    _SEEN.of_one_row = _shapes_of_one_row(model, args, kwargs, rows)
    try:
        yield
    finally:
        _SEEN.of_one_row = before


def _axis_of_one_row(layer: MixedLayer, x: Tensor, axes: Sequence[int], rows: int) -> int | None:
    """Return the axis of an input that was 1 for one row and is the batch now; None if nothing is known.

    Args:
        layer: The layer.
        x: Its input.
        axes: The axes whose size is that of the batch.
        rows: The size of the batch.

    Raises:
        ValueError: If the input of this layer is the same for any number of rows.
    """
    shapes = (_SEEN.of_one_row or {}).get(layer, set())
    if x.shape in shapes and rows > 1:
        raise ValueError(
            f"Cannot pass `adapter_names`: the input of the layer '{layer.path}' is one for "
            "all rows of a batch; call the model for one adapter at a time."
        )
    return next((axis for axis in axes if _with_size(x.shape, axis, 1) in shapes), None)


def _with_size(shape: Size, axis: int, size: int) -> Size:
    return Size([*shape[:axis], size, *shape[axis + 1 :]])


def _shapes_of_one_row(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], rows: int
) -> Shapes | None:
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    sequence_first = [module for module in model.modules() if getattr(module, "batch_first", None) is False]
    for axis in (0, 1):
        if any(tensor.ndim > axis and tensor.shape[axis] == rows for tensor in tensors):
            shapes = _record(model, sequence_first, *_one_row(model, args, kwargs, rows, axis))
            if shapes is not None:
                return shapes
    return None


def _one_row(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], rows: int, axis: int
) -> tuple[list[Any], dict[str, Any]]:
    """Return the arguments of a call with the first row only, without caches and options of generation."""

    def cut(value: Any) -> Any:
        is_batch = isinstance(value, Tensor) and value.ndim > axis and value.shape[axis] == rows
        return value.narrow(axis, 0, 1) if is_batch else value

    parameters = signature(model.forward).parameters
    takes_any = all(p.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD) for p in parameters.values())
    inputs = {
        key: cut(value)
        for key, value in kwargs.items()
        if (takes_any or key in parameters) and (value is None or isinstance(value, Tensor | bool))
    }
    is_decoding = "decoder_input_ids" in parameters and not args
    if is_decoding and not any(key.startswith(("decoder_input", "labels")) for key in inputs):
        device = next((value.device for value in inputs.values() if isinstance(value, Tensor)), None)
        inputs["decoder_input_ids"] = torch.zeros(1, 1, dtype=torch.long, device=device)
    return [cut(value) for value in args], inputs


def _record(
    model: nn.Module, sequence_first: Iterable[nn.Module], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Shapes | None:
    """Return the shapes that layers get; None if the call fails, or a module has the row as its sequence."""
    thread, contradictions = threading.get_ident(), list[nn.Module]()

    def compare(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        x = inputs[0] if inputs else None
        is_sequence = isinstance(x, Tensor) and x.ndim == 3 and x.shape[0] == 1 < x.shape[1]  # noqa: PLR2004 (tokens, rows, features)
        if is_sequence and threading.get_ident() == thread:
            contradictions.append(module)

    handles = [module.register_forward_pre_hook(compare) for module in sequence_first]
    shapes: Shapes = {}
    before, _SEEN.of_one_row, _SEEN.is_recording = _SEEN.of_one_row, shapes, True
    try:
        with torch.no_grad():
            model(*args, **kwargs)
    except Exception:  # whatever a model of others raises, the batch itself decides
        return None
    finally:
        _SEEN.of_one_row, _SEEN.is_recording = before, False
        for handle in handles:
            handle.remove()
    return None if contradictions else shapes
