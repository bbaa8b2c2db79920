"""Layers at rest: what of a model does not train while its layer was not chosen.

In one process a parameter at rest has `requires_grad` False and no gradient, so that an optimiser skips it:
no weight decay, no update of its state. Distributed data parallelism decides when it is made which parameters
it waits for, and would wait for ever; so there the gradient is computed, set to zero before it is reduced
(the norm that clipping sees is that of one process), and taken away before the update (`mask_grads`).
"""

from collections.abc import Collection
from typing import Any, cast, final

import torch
from torch import Tensor, distributed, nn
from torch.utils.hooks import RemovableHandle

from rankfold.errors import SpecError
from rankfold.train.reducer.blocks import Blocks, zero_factors
from rankfold.train.reducer.spec import ReducerSpec


@final
class Resting:
    """Puts blocks of a model to rest, and wakes them.

    Args:
        blocks: The adapters by block.
        spec: What rests in a block that was not chosen.

    Raises:
        SpecError: If no block could rest alone, or if blocks shall be dropped that change something already.
    """

    def __init__(self, blocks: Blocks, spec: ReducerSpec) -> None:
        self._blocks, self._spec = blocks, spec
        is_whole = spec.freeze == "all" or spec.stop_shared_gradient or spec.mode == "drop"
        self._users = blocks.users(up_only=not is_whole)
        _check_users(self._users, blocks, spec)
        self._strengths = [[adapter.strength for adapter in adapters] for adapters in blocks.adapters]
        self._at_rest: frozenset[nn.Parameter] = frozenset()
        self._hooks: list[RemovableHandle] = []
        self.is_masking = distributed.is_available() and distributed.is_initialized()
        if self.is_masking:
            self._hooks = [self._zero_gradient_of(parameter) for parameter in self._users]

    def put(self, active: Collection[int]) -> None:
        """Put all blocks to rest but the active ones."""
        resting = frozenset(range(len(self._blocks.names))) - frozenset(active)
        if self._spec.mode == "drop" and not self._at_rest:
            self._check_that_they_change_nothing(resting)
        # What several blocks use rests only if all of them do.
        self._at_rest = frozenset(parameter for parameter, users in self._users.items() if users <= resting)
        if not self.is_masking:
            for parameter in self._users:
                parameter.requires_grad = parameter not in self._at_rest
        self.mask_grads()
        for block, adapters in enumerate(self._blocks.adapters):
            for adapter, strength in zip(adapters, self._strengths[block], strict=True):
                adapter.is_detached = self._spec.stop_shared_gradient and block in resting
                if self._spec.mode == "drop":
                    adapter.strength = 0.0 if block in resting else strength

    def mask_grads(self) -> None:
        """Take the gradients of all parameters at rest away, so that an optimiser skips them."""
        for parameter in self._at_rest:
            parameter.grad = None

    def end(self) -> None:
        """Wake every block, and leave no trace."""
        for hook in self._hooks:
            hook.remove()
        for parameter in self._users:
            parameter.requires_grad = True
        for adapters, strengths in zip(self._blocks.adapters, self._strengths, strict=True):
            for adapter, strength in zip(adapters, strengths, strict=True):
                adapter.is_detached, adapter.strength = False, strength

    def _zero_gradient_of(self, parameter: nn.Parameter) -> RemovableHandle:
        def zero(gradient: Tensor) -> Tensor:
            return torch.zeros_like(gradient) if parameter in self._at_rest else gradient

        return cast("Any", parameter).register_hook(zero)

    def _check_that_they_change_nothing(self, resting: frozenset[int]) -> None:
        """Check that a dropped block is off because a factor of its own is zero, and so will stay off."""
        users = self._blocks.users(up_only=False)
        for block in resting:
            for adapter in self._blocks.adapters[block]:
                own = [
                    factor
                    for factor in zero_factors(adapter)
                    if all(users.get(parameter, frozenset()) <= resting for parameter in factor.parameters())
                ]
                if not own:
                    name = self._blocks.names[block]
                    raise SpecError(
                        f"mode='drop' would switch off an adapter of '{name}' that changes something, and a "
                        "saved adapter would have it back; use adapters that start at zero by a factor that "
                        "layers do not share, or mode='freeze'."
                    )


def _check_users(users: dict[nn.Parameter, frozenset[int]], blocks: Blocks, spec: ReducerSpec) -> None:
    if not users:
        raise SpecError("the up factors train nothing, so freezing them is no choice; use freeze='all'.")
    ups = blocks.users(up_only=True) if spec.freeze == "up" and spec.mode == "freeze" else {}
    if any(len(of) > 1 for of in ups.values()):
        raise SpecError(
            "the up factors are shared between blocks (share_up), so those of one block cannot rest alone; "
            "use freeze='all', or share_up='none'."
        )
    is_stuck = all(len(of) >= len(blocks.names) for of in users.values())
    if is_stuck and spec.mode == "freeze" and not spec.stop_shared_gradient:
        raise SpecError(
            "all that the adapters train is shared by all blocks, so no block can rest; use "
            "stop_shared_gradient=True, or share less."
        )
