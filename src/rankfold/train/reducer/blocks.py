"""The adapters of a model by layer, and what in them can rest while a layer does not train.

A layer here is a transformer block: everything below the first number in a module's path, such as
`encoder.layer.3`. Adapters outside of all blocks (an embedding's) belong to no layer and always train.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import final

import torch
from torch import Tensor, nn

from rankfold.adapter.layout import block_of
from rankfold.adapter.module import Adapter, adapters_in, hosts_in
from rankfold.errors import SpecError
from rankfold.factors import Factor

_OUTSIDE = -1


@final
@dataclass(frozen=True, slots=True)
class Blocks:
    """The active adapters of a model by block.

    Args:
        names: The blocks, as the model orders them: from the input to the output.
        adapters: The adapters of each block.
        outside: The adapters that are in no block.
    """

    names: tuple[str, ...]
    adapters: tuple[tuple[Adapter, ...], ...]
    outside: tuple[Adapter, ...]

    def users(self, *, up_only: bool) -> dict[nn.Parameter, frozenset[int]]:
        """Return every parameter that trains now, with the blocks that use it.

        Args:
            up_only: Leave out all parameters but those of up factors.
        """
        users: dict[nn.Parameter, set[int]] = {}
        for block, adapter in self._numbered():
            part = adapter.up if up_only else adapter
            for parameter in part.parameters():
                if parameter.requires_grad:
                    users.setdefault(parameter, set()).add(block)
        return {parameter: frozenset(blocks) for parameter, blocks in users.items()}

    def _numbered(self) -> Iterator[tuple[int, Adapter]]:
        for block, adapters in enumerate(self.adapters):
            yield from ((block, adapter) for adapter in adapters)
        yield from ((_OUTSIDE, adapter) for adapter in self.outside)


def find_blocks(model: nn.Module) -> Blocks:
    """Return the active adapters of a model by block.

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
        where = f"in one block ('{names[0]}')" if names else "in no numbered block of the model"
        raise SpecError(
            f"the adapters are {where}; a Reducer chooses among blocks, so adapt layers of at least two."
        )
    return Blocks(tuple(names), tuple(map(tuple, groups.values())), tuple(outside))


def _names(blocks: Collection[tuple[str, ...]]) -> list[str]:
    """Return short names: without what all blocks share above their lists, which wrapping a model changes."""
    above = [block[:-2] for block in blocks]
    shared = len(list(takewhile(lambda parts: len(set(parts)) == 1, zip(*above, strict=False))))
    return [".".join(block[shared:]) for block in blocks]


def zero_factors(adapter: Adapter) -> list[Factor]:
    """Return the factors of an adapter that are zero now, so that it changes nothing.

    One on the meta device has no values and counts as zero: only what a step takes is asked of it.
    """
    factors = [factor for factor in (adapter.up, adapter.core, adapter.down) if factor is not None]
    with torch.no_grad():
        return [factor for factor in factors if _is_zero(factor())]


def _is_zero(matrix: Tensor) -> bool:
    return matrix.is_meta or not matrix.any()
