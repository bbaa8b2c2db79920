"""All relayed squares of one shape in one batched product, once for each forward pass of the model.

A pass lasts from the model's forward pre-hook to its forward hook. Inside it the first relayed factor that is
called builds all factors of its shape and the others take theirs from the result. Outside it (a layer called
alone, a layer recomputed by gradient checkpointing during the backward pass) each factor builds itself.
Nothing outlives a pass, so an optimiser step, however it writes its parameters, can never be missed; and a
pass is that of one thread, so requests that are served side by side do not meet.

The product is a `torch.autograd.Function` that keeps what it needs on its context instead of among the saved
tensors: non-reentrant checkpointing counts the saved tensors of a region, and a region must count the same
whether it was the one that built the batch or not.
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast, final

import torch
from torch import Tensor, nn

from rankfold.factors.base import without_autocast
from rankfold.factors.relay import Relay, RelayMap, positions_in_square


def materialise(relays: Sequence[Relay]) -> tuple[Tensor, ...]:
    """Return the matrices of relayed factors of one side and k, each of shape [rows, cols]."""
    parameters = [parameter for relay in relays for parameter in (relay.left, relay.right)]
    matrices = cast(tuple[Tensor, ...], cast(Any, _SquareProducts).apply(tuple(relays), *parameters))
    # A frozen factor in a batch with trained ones must not require a gradient.
    return tuple(
        matrix if relay.left.requires_grad or relay.right.requires_grad else matrix.detach()
        for relay, matrix in zip(relays, matrices, strict=True)
    )


@final
class _Pass(threading.local):
    """State of this thread's forward pass: the matrices built in it; a copy or a pickle is in no pass."""

    def __init__(self) -> None:
        self.is_open = False
        self.matrices: dict[tuple[int, ...], Tensor] = {}

    def __reduce__(self) -> tuple[type["_Pass"], tuple[()]]:
        return _Pass, ()


@final
class RelayBatches:
    """The relayed factors of one adapter, batched by shape. Register `begin` and `end` as hooks of the model.

    Args:
        relays: The factors; their `materialiser` is set to the new object.
    """

    def __init__(self, relays: Iterable[Relay]) -> None:
        self.relays = tuple(relays)
        self._pass = _Pass()
        for relay in self.relays:
            relay.materialiser = self

    def begin(self, _module: nn.Module, _args: Any) -> None:
        """Start a forward pass: a forward pre-hook."""
        self._pass.is_open = True
        self._pass.matrices.clear()

    def end(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        """Finish a forward pass: a forward hook, to be called after an error too."""
        self._pass.is_open = False
        self._pass.matrices.clear()

    def matrix(self, relay: Relay) -> Tensor:
        """Return the matrix of one factor, shape [rows, cols]."""
        if not self._pass.is_open:
            return materialise((relay,))[0]
        # Reentrant checkpointing runs parts of a pass without gradients; what it builds is of no use to the
        # others.
        with_gradient = torch.is_grad_enabled()
        matrices = self._pass.matrices
        if _key(relay, with_gradient) not in matrices:
            peers = [peer for peer in self.relays if peer is relay or _can_be_built_together(peer, relay)]
            for peer, matrix in zip(peers, materialise(peers), strict=True):
                matrices[_key(peer, with_gradient)] = matrix
        return matrices[_key(relay, with_gradient)]


def _key(relay: Relay, with_gradient: bool) -> tuple[int, ...]:  # noqa: FBT001 (a part of the key)
    """Return the cache key of a matrix; with versions, as an interrupt may leave a pass open."""
    small = (relay.left, relay.right)
    return id(relay), with_gradient, *(0 if part.is_inference() else part._version for part in small)


def _can_be_built_together(peer: Relay, relay: Relay) -> bool:
    """Whether two factors have squares of one shape, both at hand: not offloaded and not sharded away."""
    return all(
        mine.shape == theirs.shape
        and mine.dtype == theirs.dtype
        and mine.device == theirs.device
        and type(mine) is type(theirs)
        for mine, theirs in ((peer.left, relay.left), (peer.right, relay.right))
    )


@final
class _SquareProducts(torch.autograd.Function):
    """left @ right of many factors in one product, in float32 at least, read by each factor's map."""

    @staticmethod
    def forward(ctx: Any, relays: tuple[Relay, ...], *parameters: Tensor) -> tuple[Tensor, ...]:
        lefts, rights = _stack(parameters)
        ctx.set_materialize_grads(False)
        ctx.relays, ctx.lefts, ctx.rights, ctx.dtype = relays, lefts, rights, parameters[0].dtype
        ctx.parameters = parameters
        with without_autocast(lefts.device):
            squares = torch.bmm(lefts, rights).flatten(1)
        matrices = dict[int, Tensor]()
        for members, positions in _readings(relays, squares.device):
            entries = squares[members].gather(1, positions.expand(len(members), -1)).to(ctx.dtype)
            for member, row in zip(members, entries, strict=True):
                matrices[member] = row.view(relays[member].rows, relays[member].cols)
        return tuple(matrices[member] for member in range(len(relays)))

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] (torch passes ctx by position)
        ctx: Any, *gradients: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        # For gradients of gradients they are stacked anew, where autograd sees it; otherwise they are as they
        # were, whatever has become of the parameters.
        lefts, rights = _stack(ctx.parameters) if torch.is_grad_enabled() else (ctx.lefts, ctx.rights)
        count, side, _ = lefts.shape
        squares = lefts.new_zeros(count, side * side)
        for members, positions in _readings(ctx.relays, squares.device):
            rows = [gradients[member] for member in members]
            zero = squares.new_zeros(positions.numel())
            entries = torch.stack([zero if row is None else row.reshape(-1).to(zero.dtype) for row in rows])
            squares[members] = squares[members].scatter(1, positions.expand(len(members), -1), entries)
        squares = squares.view(count, side, side)
        with without_autocast(squares.device):
            for_lefts = torch.bmm(squares, rights.transpose(1, 2)).to(ctx.dtype)
            for_rights = torch.bmm(lefts.transpose(1, 2), squares).to(ctx.dtype)
        pairs = zip(for_lefts, for_rights, gradients, strict=True)
        return None, *(
            None if gradient is None else part
            for for_left, for_right, gradient in pairs
            for part in (for_left, for_right)
        )


def _stack(parameters: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Return all left and all right matrices, in float32 at least."""
    dtype = torch.promote_types(parameters[0].dtype, torch.float32)
    return torch.stack(parameters[0::2]).to(dtype), torch.stack(parameters[1::2]).to(dtype)


def _readings(relays: Sequence[Relay], device: torch.device) -> Iterator[tuple[list[int], Tensor]]:
    """Yield the factors that are read alike, by index, with the positions [entries] that they read."""
    alike: dict[tuple[RelayMap, int], list[int]] = {}
    for index, relay in enumerate(relays):
        alike.setdefault((relay.order, relay.rows * relay.cols), []).append(index)
    for (order, entries), members in alike.items():
        yield members, positions_in_square(order, entries, device)
