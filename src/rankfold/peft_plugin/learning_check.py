"""Learning check: adapted layers that have no part in the first training steps are named in a warning.

A layer may be one that the model never calls, or one whose output no loss depends on, such as the pooler of a
model that is trained on its hidden states. An adapter there learns nothing, without an error.
"""

import warnings
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any, final

import torch
from torch import distributed, nn
from torch.utils.hooks import RemovableHandle

from rankfold.adapter.layout import name_patterns
from rankfold.errors import RankfoldWarning
from rankfold.peft_plugin.layer import RankfoldLayer


@final
class LearningCheck:
    """Watches the first training steps of one adapter. Register `begin` and `end` as hooks of the model.

    Args:
        adapter_name: The adapter's name.
    """

    def __init__(self, adapter_name: str) -> None:
        self._adapter_name = adapter_name
        self._uncalled: list[str] | None = None
        self._without_gradient: set[str] = set()
        self._handles: dict[str, RemovableHandle] = {}
        self._is_done = False

    def __reduce__(self) -> tuple[Any, ...]:
        """Let a copy or a pickle begin anew."""
        return LearningCheck, (self._adapter_name,)

    def begin(self, model: nn.Module, _args: Any) -> None:
        """Watch the gradients of the first steps, and name the layers that got none: a forward pre-hook."""
        if torch.compiler.is_compiling():
            return
        if self._is_done or not _is_training(model):
            return
        if not self._handles:
            self._watch(model)
        elif len(self._without_gradient) < len(self._handles):  # there was a backward pass
            self._is_done = True
            for handle in self._handles.values():
                handle.remove()
            _warn(
                sorted(self._without_gradient - set(self._uncalled or ()), key=list(self._handles).index),
                "the loss of the first training step",
                "later losses depend on them",
            )

    def end(self, model: nn.Module, _args: Any, output: Any) -> None:
        """Name the layers that the first training pass did not call: a forward hook."""
        if torch.compiler.is_compiling():
            return
        if self._uncalled is None and output is not None and _is_training(model):
            self._uncalled = [name for name, layer in self._layers(model).items() if not layer.is_used]
            _warn(
                self._uncalled,
                "the first training pass",
                "later passes call them, as of skipped blocks or experts",
            )

    def _layers(self, model: nn.Module) -> dict[str, RankfoldLayer]:
        """Return the layers in which the adapter is active, by name."""
        name = self._adapter_name
        return {
            path: layer
            for path, layer in model.named_modules()
            if isinstance(layer, RankfoldLayer)
            and name in layer.rankfold_adapters
            and name in layer.active_adapters
            and not layer.disable_adapters
        }

    def _watch(self, model: nn.Module) -> None:
        """Let one parameter of each layer that no other layer trains say when it gets a gradient."""
        if distributed.is_available() and distributed.is_initialized():
            self._is_done = True  # sharded parameters are others in each pass
            return
        parameters = {
            path: [p for p in layer.rankfold_adapters[self._adapter_name].parameters() if p.requires_grad]
            for path, layer in self._layers(model).items()
        }
        users = Counter(id(parameter) for own in parameters.values() for parameter in own)
        for path, own in parameters.items():
            parameter = next((parameter for parameter in own if users[id(parameter)] == 1), None)
            if parameter is not None:
                self._without_gradient.add(path)
                self._handles[path] = parameter.register_hook(partial(self._note_gradient, path))

    def _note_gradient(self, path: str, _gradient: torch.Tensor) -> None:
        self._without_gradient.discard(path)


def _is_training(model: nn.Module) -> bool:
    return model.training and torch.is_grad_enabled()


def _warn(names: Sequence[str], place: str, exception: str) -> None:
    if names:
        quoted = ", ".join(f"'{pattern}'" for pattern in name_patterns(names))
        warnings.warn(
            f"{len(names)} adapted layers took no part in {place} and learned nothing in it: {quoted}; leave "
            f"them out with exclude_modules unless {exception}.",
            RankfoldWarning,
            stacklevel=4,
        )
