"""Templates: from a saved adapter to the numbers of its slots, with everything decided once for its kind.

Reading a configuration, finding its layers in the model, checking them and drawing frozen factors takes tens
of milliseconds. It is done for the first adapter of a kind; of each further one the tensors are copied into
place, relayed and other structured factors become matrices, and cores and scalings are multiplied into them.
"""

import json
from collections.abc import Hashable, Mapping, Sequence
from threading import Lock
from typing import cast, final

import torch
from peft import LoraConfig
from torch import Tensor, nn

from rankfold.errors import AdapterFileError, SpecError
from rankfold.peft_plugin.config import RankfoldConfig
from rankfold.peft_plugin.state import check_heads
from rankfold.peft_plugin.targets import rename_layer
from rankfold.serve.forms import AdapterLayer, Forms, Places, shape_text
from rankfold.serve.frame import Frames
from rankfold.serve.peft_layers import INERT, head_layers, lora_layers
from rankfold.serve.rankfold_layers import RankfoldLayers
from rankfold.store.adapter import SavedAdapter
from rankfold.store.loading import peft_config

_PREFIX = "base_model.model."


def kind_of(saved: SavedAdapter) -> Hashable:
    """Return a key that two adapters share if one template serves both."""
    values = {name: value for name, value in saved.config_values.items() if name not in INERT}
    factors = [values.get(role) for role in ("down", "core", "up")]
    if not any(isinstance(factor, dict) and factor.get("kind") == "seeded" for factor in factors):
        values.pop("seed", None)  # of initial values, which training has replaced
    return json.dumps(values, sort_keys=True), saved.layout.entries


@final
class Template:
    """How adapters of one kind become numbers in slots.

    Args:
        saved: The first one.
        model: The base model.
        frames: The frames of this model.

    Attributes:
        frames: That of the layers, and that of the heads if an adapter has any.

    Raises:
        AdapterFileError: If the adapter is damaged, or belongs to another model.
        SpecError: If it has something that a bank cannot serve.
    """

    def __init__(self, saved: SavedAdapter, model: nn.Module, frames: Frames) -> None:
        self._model, self._dtype, self._lock = model, frames.dtype, Lock()
        config, tensors = peft_config(saved), self._rename_tensors(saved)
        saved_whole: Sequence[str] = getattr(config, "modules_to_save", None) or ()
        check_heads(model, saved_whole, [f".{name}" for name in tensors])
        places, fixed = Places(), dict[str, Tensor]()
        self._adapters: RankfoldLayers | None = None
        match config:
            case RankfoldConfig():
                self._adapters = RankfoldLayers(saved, config, model, tensors, frames.dtype)
                layers = list(self._adapters.layers(places, frames, fixed))
            case LoraConfig():
                layers = list(lora_layers(saved, config, model, tensors, places))
            case _:
                raise SpecError(
                    f"{saved.title} is of PEFT's method {saved.method}, and a bank serves rankfold's methods "
                    "and LoRA; convert it with PEFT's save_as_lora, or merge it."
                )
        head_places = Places()
        heads = list(head_layers(saved, model, saved_whole, tensors, head_places))
        parts = [(layers, places.total), *([(heads, head_places.total)] if heads else [])]
        self._parts = [layers for layers, _ in parts]
        self.frames = [
            frames.frame(cast("Forms", tuple(layer.form for layer in layers)), size, fixed)
            for layers, size in parts
        ]

    def values(self, saved: SavedAdapter) -> list[Tensor]:
        """Return the numbers of an adapter, for each of the frames.

        Raises:
            AdapterFileError: If some are not finite.
        """
        tensors = self._rename_tensors(saved)
        with torch.no_grad(), self._lock:
            if self._adapters is not None:
                self._adapters.take(tensors)
            values = [
                self._fill(layers, frame.size, tensors)
                for layers, frame in zip(self._parts, self.frames, strict=True)
            ]
        # A sum is faster than asking each number, and is finite only if all of them are.
        if not all(numbers.sum().isfinite() or numbers.isfinite().all() for numbers in values):
            saved.check_finite()
            raise AdapterFileError(
                f"{saved.title} has numbers too large for {str(self._dtype).removeprefix('torch.')}; "
                "train it again with a smaller learning rate."
            )
        return values

    def _fill(self, layers: Sequence[AdapterLayer], size: int, tensors: Mapping[str, Tensor]) -> Tensor:
        values = torch.zeros(size, dtype=self._dtype)
        for layer in layers:
            matrices = layer.matrices(tensors)
            for role, place in layer.form.fields:
                target = values[place.start : place.start + place.count].view(place.shape)
                matrix = matrices[role]
                for axis, length in enumerate(matrix.shape):
                    target = target.narrow(axis, 0, length)
                target.copy_(matrix)
        return values

    def _rename_tensors(self, saved: SavedAdapter) -> dict[str, Tensor]:
        """Return the tensors of a file by the present names of their layers, without PEFT's prefix."""
        for entry in saved.layout.entries:
            tensor = saved.tensors[entry.name]
            if tuple(tensor.shape) != entry.shape or not tensor.is_floating_point():
                raise AdapterFileError(
                    f"{saved.title} is damaged: '{entry.name}' holds no floating-point numbers of the shape "
                    f"{shape_text(entry.shape)}; copy it again."
                )
        return {
            rename_layer(name.removeprefix(_PREFIX), self._model): tensor
            for name, tensor in saved.tensors.items()
        }
