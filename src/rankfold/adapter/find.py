"""Finding adapters in a model, whoever wrapped its layers."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import takewhile
from typing import Protocol, cast, runtime_checkable

from torch import nn

from rankfold.adapter.module import Adapter


@runtime_checkable
class AdapterHost(Protocol):
    """A layer that carries adapters, by name."""

    rankfold_adapters: Mapping[str, Adapter]
    active_adapters: list[str]


def hosts_in(model: nn.Module) -> Iterator[tuple[str, AdapterHost]]:
    """Yield every layer that carries adapters, with its path."""
    named = cast(Iterator[tuple[str, nn.Module]], model.named_modules())
    return ((path, module) for path, module in named if isinstance(module, AdapterHost))


def adapters_in(model: nn.Module) -> Iterator[tuple[str, str, Adapter]]:
    """Yield every adapter of a model, with the path of its layer and its name."""
    for path, host in hosts_in(model):
        for name, adapter in host.rankfold_adapters.items():
            yield path, name, adapter


def block_of(path: str) -> tuple[str, ...]:
    """Return where the block of a layer is, the parts of the layer's path up to the first number.

    Empty if the path has no number: the layer is in no block. Without its last part, the number, this is the
    stack of blocks, of which an encoder-decoder has two.
    """
    parts = path.split(".")
    before = list(takewhile(lambda part: not part.isdecimal(), parts))
    return () if len(before) == len(parts) else tuple(parts[: len(before) + 1])


def common_depth(names: Iterable[str]) -> int:
    """Return how many modules around them these modules have in common."""
    parents = zip(*(name.split(".")[:-1] for name in names), strict=False)
    return sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, parents))
