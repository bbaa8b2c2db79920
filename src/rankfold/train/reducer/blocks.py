"""Blocks of a model and their adapters, and freezing of the blocks that do not train in a step.

A block is everything below the first number in a module's path, such as `encoder.layer.3`. Adapters outside
of all blocks (an embedding's) always train.

In one process a frozen parameter has `requires_grad` False and no gradient, so that an optimiser skips it:
no weight decay, no update of its state. Distributed data parallelism decides when it is constructed which
gradients it waits for, and would hang; so there the gradient is computed, set to zero before it is
reduced (the norm that clipping sees is that of one process), and removed before the update (`mask_grads`).
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, cast, final

import torch
from torch import Tensor, distributed, nn
from torch.utils.hooks import RemovableHandle

from rankfold.adapter.layout import block_of
from rankfold.adapter.module import Adapter, adapters_in, hosts_in
from rankfold.errors import SpecError
from rankfold.factors import Factor
from rankfold.train.reducer.spec import ReducerSpec

_OUTSIDE = -1


@final
@dataclass(frozen=True, slots=True)
class Blocks:
    """The active adapters of a model by block.

    Args:
        names: Names of the blocks in the order of the model, from the input to the output.
        adapters: The adapters of each block.
        outside: The adapters in no block.
    """

    names: tuple[str, ...]
    adapters: tuple[tuple[Adapter, ...], ...]
    outside: tuple[Adapter, ...]

    def users(self, *, up_only: bool) -> dict[nn.Parameter, frozenset[int]]:
        """Map every trainable parameter to the blocks that use it.

        Args:
            up_only: Only parameters of up factors.
        """
        users: dict[nn.Parameter, set[int]] = {}
        for block, adapter in self._enumerate():
            part = adapter.up if up_only else adapter
            for parameter in part.parameters():
                if parameter.requires_grad:
                    users.setdefault(parameter, set()).add(block)
        return {parameter: frozenset(blocks) for parameter, blocks in users.items()}

    def _enumerate(self) -> Iterator[tuple[int, Adapter]]:
        for block, adapters in enumerate(self.adapters):
            yield from ((block, adapter) for adapter in adapters)
        yield from ((_OUTSIDE, adapter) for adapter in self.outside)


def find_blocks(model: nn.Module) -> Blocks:
    """Group the active adapters of a model by block.

    Raises:
        SpecError: If there is no active rankfold adapter, or they are in fewer than two blocks.
    """
    active = {path: host.active_adapters for path, host in hosts_in(model)}
    groups: dict[tuple[str, ...], list[Adapter]] = {}
    outside: list[Adapter] = []
    for path, name, adapter in adapters_in(model):
        if name in active[path]:
            block = block_of(path)
            (groups.setdefault(block, []) if block else outside).append(adapter)
    if not groups and not outside:
        raise SpecError(
            "the model has no active rankfold adapter to choose layers of; add one with peft.get_peft_model."
        )
    names = _names(list(groups))
    if len(names) < 2:  # noqa: PLR2004 (a choice takes two)
        location = f"in one block ('{names[0]}')" if names else "in no numbered block of the model"
        raise SpecError(
            f"the adapters are {location}; a Reducer chooses among blocks, so adapt layers of at least two."
        )
    return Blocks(tuple(names), tuple(map(tuple, groups.values())), tuple(outside))


def _names(blocks: Collection[tuple[str, ...]]) -> list[str]:
    """Return short names, without the common prefix above the block lists, which wrapping a model changes."""
    parents = [block[:-2] for block in blocks]
    prefix = len(list(takewhile(lambda parts: len(set(parts)) == 1, zip(*parents, strict=False))))
    return [".".join(block[prefix:]) for block in blocks]


def zero_factors(adapter: Adapter) -> list[Factor]:
    """Return the factors of an adapter that are zero, which make the whole adapter zero.

    One on the meta device has no values and counts as zero: a dry run only counts memory and operations.
    """
    factors = [factor for factor in (adapter.up, adapter.core, adapter.down) if factor is not None]
    with torch.no_grad():
        return [factor for factor in factors if _is_zero(factor())]


def _is_zero(matrix: Tensor) -> bool:
    return matrix.is_meta or not matrix.any()


@final
class BlockFreezer:
    """Freezes blocks of a model, and unfreezes them.

    Args:
        blocks: The adapters by block.
        spec: Options: which parameters of an inactive block are frozen.

    Raises:
        SpecError: If no block could be frozen alone, adapters are to be folded whose gates depend on the
            input, or blocks are to be dropped whose output is not zero.
    """

    def __init__(self, blocks: Blocks, spec: ReducerSpec) -> None:
        self._blocks, self._spec = blocks, spec
        freezes_all = spec.freeze == "all" or spec.stop_shared_gradient or spec.mode == "drop"
        self._users = blocks.users(up_only=not freezes_all)
        _check_users(self._users, blocks, spec)
        _check_can_fold(blocks, spec)
        self._strengths = [[adapter.strength for adapter in adapters] for adapters in blocks.adapters]
        self._frozen: frozenset[nn.Parameter] = frozenset()
        self._hooks: list[RemovableHandle] = []
        self.is_masking = distributed.is_available() and distributed.is_initialized()
        if self.is_masking:
            self._hooks = [self._zero_gradient_of(parameter) for parameter in self._users]

    def freeze_all_but(self, active: Collection[int]) -> None:
        """Freeze every block but the active ones."""
        inactive = frozenset(range(len(self._blocks.names))) - frozenset(active)
        if self._spec.mode == "drop" and not self._frozen:
            self._check_zero_output(inactive)
        # A parameter that several blocks use is frozen only if all of them are inactive.
        self._frozen = frozenset(parameter for parameter, users in self._users.items() if users <= inactive)
        if not self.is_masking:
            for parameter in self._users:
                parameter.requires_grad = parameter not in self._frozen
        self.mask_grads()
        for block, adapters in enumerate(self._blocks.adapters):
            for adapter, strength in zip(adapters, self._strengths[block], strict=True):
                adapter.is_detached = self._spec.stop_shared_gradient and block in inactive
                adapter.is_folded = self._spec.fold_frozen and block in inactive
                if self._spec.mode == "drop":
                    adapter.strength = 0.0 if block in inactive else strength

    def mask_grads(self) -> None:
        """Remove the gradients of frozen parameters, so that an optimiser skips them."""
        for parameter in self._frozen:
            parameter.grad = None

    def unfreeze_all(self) -> None:
        """Unfreeze every block, and remove hooks."""
        for hook in self._hooks:
            hook.remove()
        for parameter in self._users:
            parameter.requires_grad = True
        for adapters, strengths in zip(self._blocks.adapters, self._strengths, strict=True):
            for adapter, strength in zip(adapters, strengths, strict=True):
                adapter.is_detached, adapter.is_folded, adapter.strength = False, False, strength

    def _zero_gradient_of(self, parameter: nn.Parameter) -> RemovableHandle:
        def zero(gradient: Tensor) -> Tensor:
            return torch.zeros_like(gradient) if parameter in self._frozen else gradient

        return cast("Any", parameter).register_hook(zero)

    def _check_zero_output(self, inactive: frozenset[int]) -> None:
        """Check that every adapter of a dropped block has a zero factor that only dropped blocks use.

        Such an adapter stays zero in the saved file.
        """
        users = self._blocks.users(up_only=False)
        for block in inactive:
            for adapter in self._blocks.adapters[block]:
                zero = [
                    factor
                    for factor in zero_factors(adapter)
                    if all(users.get(parameter, frozenset()) <= inactive for parameter in factor.parameters())
                ]
                if not zero:
                    name = self._blocks.names[block]
                    raise SpecError(
                        f"mode='drop' would switch off an adapter of '{name}' whose output is not zero, and "
                        "the saved adapter would have it on again; use adapters that start at zero by a "
                        "factor that layers do not share, or mode='freeze'."
                    )


def _check_can_fold(blocks: Blocks, spec: ReducerSpec) -> None:
    adapters = [adapter for adapters in blocks.adapters for adapter in adapters]
    if spec.fold_frozen and all(adapter.router is not None for adapter in adapters):
        raise SpecError(
            "fold_frozen=True adds adapters to the weights of their layers, but the gates of these depend on "
            "the input; leave it out, or take a method without a router."
        )


def _check_users(users: dict[nn.Parameter, frozenset[int]], blocks: Blocks, spec: ReducerSpec) -> None:
    if not users:
        raise SpecError(
            "the up factors have no trainable parameter, so freezing them does nothing; use freeze='all'."
        )
    ups = blocks.users(up_only=True) if spec.freeze == "up" and spec.mode == "freeze" else {}
    if any(len(owners) > 1 for owners in ups.values()):
        raise SpecError(
            "the up factors are shared between blocks (share_up), so those of one block cannot be frozen "
            "alone; use freeze='all', or share_up='none'."
        )
    is_stuck = all(len(owners) >= len(blocks.names) for owners in users.values())
    if is_stuck and spec.mode == "freeze" and not spec.stop_shared_gradient:
        raise SpecError(
            "all trainable parameters of the adapters are shared by all blocks, so no block can be frozen; "
            "use stop_shared_gradient=True, or share less."
        )
