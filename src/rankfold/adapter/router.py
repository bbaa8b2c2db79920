"""The router: a softmax over the heads of an adapter, for each token.

A router is a linear map to one score a head, then a softmax in float32 at least. Its weights for a token
depend on that token alone, never on another of the batch: rows served together cannot change each other.

A method with a router of another type derives from `RouterSpec` and `Router` in its preset's module
(`presets/graph_moe.py`) and names its spec in the preset.
"""

import math
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, final, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from rankfold.adapter.balance import BalanceSpec
from rankfold.errors import RankfoldWarning, SpecError, unknown_name
from rankfold.factors.base import shard_with_block
from rankfold.seeding import Distribution, random_matrix

RouterInput = Literal["input", "code"]
"""What a router reads: the layer's `input` x (HydraLoRA), or its `code` V x (EffiLoRA); without dropout."""

RouterScope = Literal["layer", "mlp", "experts"]
"""What a router decides about: the heads of one `layer`; the heads of all layers of one `mlp`, by its input;
or `experts`, each of which is that MLP as a whole with one head in each layer (MixLoRA)."""

RouterInitial = Literal["kaiming", "normal", "zeros"]
"""How a router starts: uniform of variance 1/(3 inputs), normal of standard deviation 0.02 (MixLoRA), or all
heads alike."""

HeadWeights = Literal["renormalized", "probability", "straight_through"]
"""The weights of the chosen heads: scaled to sum to 1; the probabilities themselves; or 1 each with the
probability's gradient (a choice that is not differentiable, made trainable)."""

_CHOICES = {"reads": RouterInput, "scope": RouterScope, "initial": RouterInitial, "weights": HeadWeights}
_NORMAL_STD = 0.02
_MOST_LOST = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterSpec:
    """Description of a `Router`.

    A spec that derives from this one gives every field a default and `kind` another value, by which files
    tell it apart, and overrides `build`, `parameter_count` and `products`.

    Args:
        reads: What it reads.
        scope: What it decides about.
        bias: Whether its scores have one.
        initial: How its weight starts.
        top_k: How many heads are chosen for a token; all of them if None.
        weights: The weights of the chosen heads.
        temperature: Scores are divided by it.
        jitter: In training, what is read is multiplied by numbers from 1 - jitter to 1 + jitter.
        balance: The auxiliary loss that keeps its heads in use, if any.

    Raises:
        SpecError: If a value is not possible.
    """

    reads: RouterInput = "input"
    scope: RouterScope = "layer"
    bias: bool = False
    initial: RouterInitial = "kaiming"
    top_k: int | None = None
    weights: HeadWeights = "renormalized"
    temperature: float = 1.0
    jitter: float = 0.0
    balance: BalanceSpec | None = None
    kind: str = field(default="softmax", init=False)

    def __post_init__(self) -> None:
        """Check every field."""
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in get_args(choices):
                raise unknown_name(f"router {name}", getattr(self, name), get_args(choices))
        if self.top_k is not None and self.top_k < 1:
            raise SpecError(f"top_k={self.top_k} chooses no head; give at least 1, or none for all heads.")
        if self.top_k is None and self.weights == "straight_through":
            raise SpecError(
                "weights='straight_through' are those of chosen heads, but all heads count; give top_k."
            )
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise SpecError(f"temperature={self.temperature} is not above 0; give 1 for a plain softmax.")
        if not 0 <= self.jitter < 1:
            raise SpecError(f"jitter={self.jitter} is not a share; give one from 0 up to 1.")
        self._check_scope()

    def _check_scope(self) -> None:
        if self.scope != "layer" and self.reads == "code":
            raise SpecError(
                f"a router of scope '{self.scope}' cannot read the code, which differs between its layers; "
                "let it read the input."
            )
        if self.scope == "experts" and self.weights != "renormalized":
            raise SpecError(
                f"weights='{self.weights}' of experts do not sum to 1, as their sum needs; "
                "use 'renormalized'."
            )

    def build(self, heads: int, in_features: int) -> "Router":
        """Return the router, not yet reset.

        Raises:
            SpecError: If it would choose more heads than there are.
        """
        return Router(heads, in_features, self)

    def parameter_count(self, heads: int, in_features: int) -> int:
        """Return how many parameters are trained, and stored."""
        return heads * in_features + (heads if self.bias else 0)

    def products(self, heads: int, in_features: int) -> list[tuple[int, int]]:
        """Return the rows and columns of each trained matrix that one token is multiplied by."""
        return [(heads, in_features)]


@final
@dataclass(frozen=True, slots=True)
class Decision:
    """Decision of a router, for an auxiliary loss.

    Args:
        probabilities: The softmax over all heads, [*batch, heads], in float32 at least.
        chosen: 1 for each chosen head, [*batch, heads]; without a gradient.
    """

    probabilities: Float[Tensor, "*batch heads"]
    chosen: Float[Tensor, "*batch heads"]


class Router(nn.Module):
    """A softmax router: from features to a weight for each head (Shazeer et al., 2017, without its noise).

    A subclass registers its parameters on itself, not in a module of their own: PEFT finds an adapter's name
    in a key by counting from the key's end.

    Args:
        heads: Number of heads.
        in_features: Number of features that are read.
        spec: The rest of its description.

    Raises:
        SpecError: If more heads would be chosen than there are.
    """

    def __init__(self, heads: int, in_features: int, spec: RouterSpec) -> None:
        super().__init__()
        if spec.top_k is not None and spec.top_k > heads:
            raise SpecError(f"top_k={spec.top_k} is more than the {heads} heads; give at most {heads}.")
        self.heads, self.in_features, self.spec = heads, in_features, spec
        self.weight = nn.Parameter(torch.zeros(heads, in_features))
        shard_with_block(self)
        self.bias = nn.Parameter(torch.zeros(heads)) if spec.bias else None
        self.decision: Decision | None = None
        self._lost = 0

    def forward(self, features: Float[Tensor, "*batch in_features"]) -> Float[Tensor, "*batch heads"]:
        """Return the weights of the heads, zero for those that are not chosen, in the dtype of `features`.

        In training, the decision is kept until `take_decision` if the spec has a balance loss.
        """
        if self.training and self.spec.jitter:
            noise = torch.empty_like(features).uniform_(1 - self.spec.jitter, 1 + self.spec.jitter)
            features = features * noise
        probabilities, weights, chosen = self.decide(features)
        if self.spec.balance is not None and self.training:
            self._keep(Decision(probabilities, chosen.detach()))
        return weights.to(features.dtype)

    def decide(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the probabilities of all heads, their weights, and 1 for each that is chosen."""
        scores = self.scores(features)
        dtype = torch.promote_types(scores.dtype, torch.float32)
        scores = scores.to(dtype)
        if self.spec.temperature != 1:
            scores = scores / self.spec.temperature
        probabilities = torch.softmax(scores, dim=-1)
        return probabilities, *self._choose(probabilities)

    def scores(self, features: Tensor) -> Tensor:
        """Return the score of every head, [*batch, heads]."""
        return functional.linear(features, self.weight, self.bias)

    def take_decision(self) -> Decision | None:
        """Return the decision of the last forward pass, once."""
        decision, self.decision = self.decision, None
        self._lost = 0
        return decision

    def _keep(self, decision: Decision) -> None:
        # Gradient checkpointing, which runs a layer twice, may lose one a step. More are never taken.
        self._lost += self.decision is not None
        if self._lost == _MOST_LOST:
            message = (
                "a router's balance loss is never added to the loss; add rankfold.auxiliary_loss(model) to "
                "it in each step, use rankfold.AuxiliaryLossMixin, or set balance_loss=0."
            )
            warnings.warn(message, RankfoldWarning, stacklevel=3)
        self.decision = decision

    @torch.no_grad()
    def reset(self, *, seed: int, name: str) -> None:
        """Draw the initial values; on the meta device they are left as they are."""
        if self.weight.is_meta:
            return
        if self.bias is not None:
            self.bias.zero_()
        kaiming = 1 / math.sqrt(3 * self.in_features)
        std = {"kaiming": kaiming, "normal": _NORMAL_STD, "zeros": 0.0}[self.spec.initial]
        distribution: Distribution = "uniform" if self.spec.initial == "kaiming" else "normal"
        self.weight.copy_(
            random_matrix(
                self.heads, self.in_features, seed=seed, name=name, std=std, distribution=distribution
            )
        )

    def _choose(self, probabilities: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights of the heads, and 1 for each that is chosen."""
        top_k, kind = self.spec.top_k, self.spec.weights
        if top_k is None or (top_k == self.heads and kind != "straight_through"):
            return probabilities, torch.ones_like(probabilities)
        indices = probabilities.topk(top_k, dim=-1).indices
        chosen = torch.zeros_like(probabilities).scatter(-1, indices, 1.0)
        weights = probabilities * chosen
        if kind == "renormalized" and top_k == 1:
            # The weight is 1. It stays a function of the probability, whose gradient is zero, because a
            # distributed wrapper waits for a gradient of every parameter.
            weights = chosen + 0 * weights
        elif kind == "renormalized":
            weights = weights / weights.sum(dim=-1, keepdim=True)
        elif kind == "straight_through":
            weights = weights + (chosen - weights).detach()
        return weights, chosen

    def extra_repr(self) -> str:
        """Return the size for `repr`."""
        return f"{self.heads} heads, {self.in_features} features"

    def __getstate__(self) -> dict[str, object]:
        """Leave the last decision out of copies and pickles."""
        return {**self.__dict__, "decision": None}

    if TYPE_CHECKING:  # `nn.Module.__call__` is typed as Any; a router's call is its forward.

        def __call__(self, features: Tensor) -> Tensor:
            """Return the weights of the heads."""
            ...
