"""Rounding in training: in the last third of the steps, the model computes with the numbers that are stored.

The forward and the backward pass see numbers that are rounded as the codec stores them, and the optimiser
changes exact ones by the gradients of the rounded (the straight-through estimator: Bengio et al., 2013,
arXiv:1308.3432). Evaluations see the rounded numbers too, and so does whoever saves the model. Packing them
at these bits changes none.
"""

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any, cast, final

import peft
import torch
from peft import PeftModel
from safetensors import torch as safetensors
from torch import Tensor
from transformers import TrainerCallback

from rankfold.errors import SpecError
from rankfold.store.rounding import GRIDS, Grid, choose_grids

_FILE = "store_bits.safetensors"


@final
class StoreBits(TrainerCallback):
    """Callback that rounds an adapter in the last third of a training.

    Outside of an optimiser's step the model has the rounded numbers; checkpoints hold the exact ones beside.

    Args:
        model: The model, with the adapter that is trained.
        bits: Bits of a stored number: 8, 4, 3 or 2.
        steps: Updates of the training.

    Raises:
        SpecError: If the method saves other tensors than it trains.
    """

    def __init__(self, model: PeftModel, bits: int, steps: int) -> None:
        self._model = model
        self._grid = GRIDS[f"int{bits}"]
        self._start = steps - steps // 3
        self._exact: dict[str, Tensor] = {}
        self._rounded: dict[str, tuple[Tensor, Grid]] = {}
        self._tensors()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Begin to round, if it is time, and go on in a resumed training."""
        if state.global_step >= self._start and not self._rounded:
            self._rounded = self._tensors()
            earlier = self._exact
            self._exact = {name: tensor.clone() for name, (tensor, _grid) in self._rounded.items()}
            for name, tensor in earlier.items():
                self._exact[name].copy_(tensor)
            self._round()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Give the optimiser the exact numbers."""
        for name, (tensor, _grid) in self._rounded.items():
            tensor.copy_(self._exact[name])

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take the exact numbers back, and round the model's."""
        for name, (tensor, _grid) in self._rounded.items():
            self._exact[name].copy_(tensor)
        self._round()

    def finish(self) -> bool:
        """Round a trained model, and return whether that changed it.

        It does if the weights are those of an evaluation before the rounding began.
        """
        is_changed = False
        for tensor, grid in self._tensors().values():
            nearest = grid.round(tensor)
            is_changed = is_changed or not torch.equal(nearest, tensor)
            tensor.copy_(nearest)
        return is_changed

    def write_files(self, checkpoint: Path) -> None:
        """Write the exact numbers into a checkpoint."""
        if self._exact:
            tensors = {name: tensor.contiguous() for name, tensor in self._exact.items()}
            cast(Any, safetensors).save_file(tensors, checkpoint / _FILE)

    def read_files(self, checkpoint: Path) -> None:
        """Read the exact numbers from a checkpoint."""
        file = checkpoint / _FILE
        self._exact = cast(Any, safetensors).load_file(file) if file.is_file() else {}

    def _round(self) -> None:
        for tensor, grid in self._rounded.values():
            tensor.copy_(grid.round(tensor))

    def _tensors(self) -> dict[str, tuple[Tensor, Grid]]:
        """Return the tensors that the codec rounds, which are the model's own memory, each with its grid."""
        config = self._model.active_peft_config
        state = cast("Mapping[str, Tensor]", cast(Any, peft).get_peft_model_state_dict(self._model))
        method = cast(Any, config.peft_type).value
        modules = tuple(cast("list[str]", getattr(config, "modules_to_save", None) or ()))
        grids = choose_grids(state, method, modules, self._grid)
        tensors = {name: (state[name], grid) for name, grid in grids.items() if grid is not None}
        memory = {item.data_ptr() for item in chain(self._model.parameters(), self._model.buffers())}
        for name, (tensor, _grid) in tensors.items():
            if tensor.data_ptr() not in memory:
                raise SpecError(
                    f"'{name}' is computed when the adapter is saved, so it cannot be rounded in training; "
                    "leave store_bits out, and round the trained adapter with store."
                )
        return tensors
