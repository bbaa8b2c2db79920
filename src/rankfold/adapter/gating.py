"""How the heads of an adapter are weighed: by a router of its own, or by that of the whole MLP.

The heads lie side by side in one up factor, so weighing them is a product with the code that enters it: all
heads together are one matrix product, and none is run for itself.

The layers of an MLP that read its input are its entries (gate and up projection), the one that writes its
output is its exit (down projection). With one router for all of them an entry calls the router, and the exit
reuses the weights of the entries; nothing is kept from one pass to the next, nor seen by another thread.
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal, cast, final

import torch
from jaxtyping import Float
from torch import Tensor

from rankfold.adapter.router import Router
from rankfold.factors.base import is_transformed

MlpRole = Literal["entry", "exit"]
"""What a layer is in its MLP."""

Codes = Float[Tensor, "*#batch #heads rank"]
"""The codes of a token: one that all heads share, or one for each head."""


class Gating(ABC):
    """Weighs the heads of one adapter.

    Args:
        router: The router that decides, which may serve several adapters.
    """

    def __init__(self, router: Router) -> None:
        self.router = router

    def __call__(self, x: Tensor, codes: Codes, read: Callable[[], Tensor]) -> Tensor:
        """Return the input of the up factor, with heads times rank features.

        Args:
            x: What the layer reads, without dropout.
            codes: The adapter's codes of x.
            read: Returns the codes without dropout, flat, [*batch, code_heads * rank].
        """
        return weigh(codes, self.weights(x, read))

    @abstractmethod
    def weights(self, x: Tensor, read: Callable[[], Tensor]) -> Float[Tensor, "*batch heads"]:
        """Return the weights of the heads, with the arguments of a call."""


def weigh(
    codes: Codes, weights: Float[Tensor, "*batch heads"]
) -> Float[Tensor, "*batch {codes.shape[-1]*weights.shape[-1]}"]:
    """Return each head's code times the head's weight, side by side."""
    return (codes * weights.unsqueeze(-1)).flatten(-2)


@final
class InputGating(Gating):
    """Gates that a router reads off the layer's input (HydraLoRA; Tian et al., 2024, eq. 5)."""

    def weights(self, x: Tensor, read: Callable[[], Tensor]) -> Tensor:
        """Ask the router about x."""
        return self.router(x)


@final
class CodeGating(Gating):
    """Gates that a router reads off the adapter's code (EffiLoRA; Tian et al., 2025, section 3.1)."""

    def weights(self, x: Tensor, read: Callable[[], Tensor]) -> Tensor:
        """Ask the router about the code."""
        return self.router(read())


@final
class _PassWeights(threading.local):
    """Weights of an MLP's heads in this thread's forward pass; a copy or a pickle is in no pass."""

    def __init__(self) -> None:
        self.entered: list[Gating] = []
        self.weights: Tensor | None = None

    def __reduce__(self) -> tuple[type["_PassWeights"], tuple[()]]:
        return _PassWeights, ()


@final
class MlpPass:
    """Weights of the heads of one MLP, from its first entry to its exit in one forward pass.

    Args:
        router: The router of the MLP.
    """

    def __init__(self, router: Router) -> None:
        self.router = router
        self._pass = _PassWeights()

    def enter(self, entry: Gating, x: Tensor) -> Float[Tensor, "*batch heads"]:
        """Return the weights for x; further entries of the MLP, which read the same x, get them again.

        An entry that comes a second time begins a new pass. That it is the same x is not checked:
        each entry has its own copy where the adapter's dtype is not the base's.

        Args:
            entry: Who enters.
            x: The MLP's input.
        """
        state = self._pass
        if state.weights is None or entry in state.entered:
            state.entered, state.weights = [], self.router(x)
        state.entered.append(entry)
        return state.weights

    def weights(self) -> Float[Tensor, "*batch heads"]:
        """Return the weights that the entries got.

        Raises:
            RuntimeError: If no entry has run.
        """
        if self._pass.weights is None:
            raise RuntimeError("the last layer of an MLP ran before its first; call the MLP as a whole.")
        return self._pass.weights

    def leave(self) -> None:
        """Forget the pass."""
        self._pass.entered, self._pass.weights = [], None


class MlpGating(Gating):
    """Gates of a layer whose MLP has one router.

    Args:
        mlp: What the layers of the MLP share.
    """

    def __init__(self, mlp: MlpPass) -> None:
        super().__init__(mlp.router)
        self._mlp = mlp


class ExpertGating(MlpGating):
    """Gates of a layer whose MLP has experts.

    Args:
        mlp: What the layers of the MLP share.
        experts: How many experts are chosen for a token.
    """

    def __init__(self, mlp: MlpPass, experts: int) -> None:
        super().__init__(mlp)
        self.experts = experts


@final
class MlpEntryGating(MlpGating):
    """Gates of a layer that reads the MLP's input (LLaVA-MoLE; Chen et al., 2024)."""

    def weights(self, x: Tensor, read: Callable[[], Tensor]) -> Tensor:
        """Ask the router about the MLP's input."""
        return self._mlp.enter(self, x)


@final
class MlpExitGating(MlpGating):
    """Gates of the layer that writes the MLP's output: those of its entries."""

    def weights(self, x: Tensor, read: Callable[[], Tensor]) -> Tensor:
        """Take the weights of the entries."""
        weights = self._mlp.weights()
        self._mlp.leave()
        return weights


def _chosen_experts(weights: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    """Return the weight of each chosen expert, and its head as zeros and a one.

    Args:
        weights: Zero for heads that are not chosen, [*batch, heads].
        experts: How many are chosen.

    Returns:
        [experts, *batch] and [experts, *batch, heads].
    """
    best = weights.topk(experts, dim=-1)
    heads = torch.zeros_like(weights).expand(experts, *weights.shape).contiguous()
    heads.scatter_(-1, best.indices.movedim(-1, 0).unsqueeze(-1), 1.0)
    return best.values.movedim(-1, 0), heads


@final
class ExpertEntryGating(ExpertGating):
    """Where the experts of an MLP part: one output for each of a token's chosen experts (MixLoRA).

    Every expert is the frozen MLP with a head of its own in each layer, so its hidden state is its own. What
    comes out has an axis in front, one entry for each chosen expert; whatever the MLP does between its layers
    acts on each entry alone.

    Reference: Li et al., 2024, eq. 4 and 5.
    """

    def weights(self, x: Tensor, read: Callable[[], Tensor]) -> Tensor:
        """Return 1 for the head of each chosen expert, [experts, *batch, heads]."""
        return _chosen_experts(self._mlp.enter(self, x), self.experts)[1]


@final
class ExpertExitGating(ExpertGating):
    """Where the experts of an MLP join, weighed.

    The layer is linear and the weights sum to 1, so joining what enters it is the same as joining what leaves
    it, and the base layer runs once, not once for each expert.
    """

    def join(self, x: Float[Tensor, "experts *batch in_features"]) -> Float[Tensor, "*batch in_features"]:
        """Return the weighted sum of the experts' hidden states, the input of the layer."""
        weights, _ = _chosen_experts(self._mlp.weights(), self.experts)
        return join_experts(x, weights.unsqueeze(-1).to(x.dtype))

    def __call__(self, x: Tensor, codes: Codes, read: Callable[[], Tensor]) -> Tensor:
        """Return the experts' codes, weighted and summed, [*batch, heads * rank]."""
        return weigh(codes, self.weights(x, read)).sum(dim=0)

    def weights(self, x: Tensor, read: Callable[[], Tensor]) -> Tensor:
        """Return the weight of each chosen expert for its head, [experts, *batch, heads]."""
        weights, heads = _chosen_experts(self._mlp.weights(), self.experts)
        self._mlp.leave()
        return heads * weights.unsqueeze(-1)


def join_experts(
    x: Float[Tensor, "experts *batch features"], weights: Float[Tensor, "experts *batch 1"]
) -> Float[Tensor, "*batch features"]:
    """Return the weighted sum of the experts' hidden states, for weights of sum 1.

    For the backward pass nothing of their size is kept but themselves.
    """
    if torch.compiler.is_compiling() or is_transformed():
        return _weighted_sum(x, weights)
    return cast(Tensor, cast(Any, _WeightedSum).apply(x, weights))


def _weighted_sum(x: Tensor, weights: Tensor) -> Tensor:
    # As the first expert and how the others differ: where none does, it is the first one, bit for bit.
    return x[0] + ((x[1:] - x[0]) * weights[1:]).sum(dim=0)


@final
class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor) -> Any:
        ctx.save_for_backward(x, weights)
        return _weighted_sum(x, weights)

    # In differentiable steps, for those who want gradients of gradients.
    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride] (torch's way)
        (of_sum,) = gradients
        x, weights = ctx.saved_tensors
        shares = torch.cat([1 - weights[1:].sum(dim=0, keepdim=True), weights[1:]])
        of_weights = [torch.zeros_like(weights[0])]
        of_weights += [((state - x[0]) * of_sum).sum(dim=-1, keepdim=True) for state in x[1:]]
        return of_sum * shares, torch.stack(of_weights)
