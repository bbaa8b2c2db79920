"""The axis of a layer's input that holds the rows of a batch, for rows with adapters of their own.

Most layers get the batch first. Some models turn it around inside: XLNet, Longformer's queries, torch's
transformers and attention without `batch_first`. Where there are as many tokens as rows, the shape does not
say which axis is which. So before the first mixed batch one row is sent through the model by itself: the
axis that is then 1 is the batch.
"""

import threading
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from inspect import Parameter, signature
from typing import Any, final

import torch
from torch import Size, Tensor, nn

Shapes = dict[nn.Module, set[Size]]


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


def find_batch_axis(layer: nn.Module, x: Tensor, axes: Sequence[int], rows: int) -> int | None:
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
            f"Cannot pass `adapter_names`: the input of the layer '{getattr(layer, 'path', '')}' is one for "
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
