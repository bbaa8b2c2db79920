"""GraphMoE: an experiment after the idea; neither code nor full text could be read."""

import math
from dataclasses import dataclass, field
from typing import Annotated, final

import torch
from torch import Tensor, nn

from rankfold.adapter.router import Router, RouterSpec
from rankfold.adapter.spec import AdapterSpec
from rankfold.errors import SpecError
from rankfold.limits import MOST_ROUNDS, check_most
from rankfold.presets._preset import Alpha, Dropout, Heads, Preset, Rank, Seed
from rankfold.presets._recipes import RECIPES
from rankfold.seeding import random_matrix


@final
@dataclass(frozen=True, kw_only=True)
class RecurrentRouterSpec(RouterSpec):
    """Description of a `RecurrentRouter`.

    Args:
        rounds: How often it decides.

    Raises:
        SpecError: If there are fewer than two rounds, or a value of a `RouterSpec` is not possible.
    """

    rounds: int = 2
    kind: str = field(default="recurrent", init=False)

    def __post_init__(self) -> None:
        """Check every field."""
        super().__post_init__()
        if self.rounds < 1:
            raise SpecError(f"rounds={self.rounds} never decides; give at least 1.")
        check_most("rounds", self.rounds, MOST_ROUNDS)
        if self.rounds == 1:
            raise SpecError("rounds=1 leaves a recurrent router nothing to take in; use a RouterSpec.")

    def build(self, heads: int, in_features: int) -> "RecurrentRouter":
        """Return the router, not yet reset."""
        return RecurrentRouter(heads, in_features, self)

    def parameter_count(self, heads: int, in_features: int) -> int:
        """Return how many parameters are trained, and stored."""
        nodes, gates = heads * in_features, 6 * in_features**2
        return super().parameter_count(heads, in_features) + nodes + gates

    def products(self, heads: int, in_features: int) -> list[tuple[int, int]]:
        """Return the rows and columns of each trained matrix that one token is multiplied by."""
        scores, nodes, gates = (heads, in_features), (heads, in_features), (3 * in_features, in_features)
        return [scores] * self.rounds + [nodes, gates, gates] * (self.rounds - 1)


@final
class RecurrentRouter(Router):
    """A router that decides in rounds, each time knowing which heads it chose before.

    Between two rounds a recurrent cell updates the features that are read, by a message of the chosen heads.
    This is ours, after the idea of GraphMoE that heads are nodes of a graph (Tang et al., 2025);
    `tests/reference/graph_moe.py`.

    Args:
        heads: Number of heads.
        in_features: Number of features that are read.
        spec: The rest of its description.
    """

    def __init__(self, heads: int, in_features: int, spec: RecurrentRouterSpec) -> None:
        super().__init__(heads, in_features, spec)
        self.rounds = spec.rounds
        self.nodes = nn.Parameter(torch.zeros(heads, in_features))
        self.message_gates = nn.Parameter(torch.zeros(3 * in_features, in_features))
        self.state_gates = nn.Parameter(torch.zeros(3 * in_features, in_features))

    def decide(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the decision of the last round: probabilities, weights, and 1 for each chosen head."""
        decision = super().decide(features)
        for _ in range(self.rounds - 1):
            features = self._next_state(features, decision[1].to(features.dtype))
            decision = super().decide(features)
        return decision

    def _next_state(self, state: Tensor, weights: Tensor) -> Tensor:
        """Return the features of the next round [*batch, in_features], from those of this one."""
        message = (weights @ self.nodes) * state
        rows = -1, state.shape[-1]
        flat = torch.gru_cell(
            message.reshape(rows), state.reshape(rows), self.message_gates, self.state_gates
        )
        return flat.reshape(state.shape)

    @torch.no_grad()
    def reset(self, *, seed: int, name: str) -> None:
        """Draw the initial values; on the meta device they are left as they are."""
        super().reset(seed=seed, name=name)
        if self.weight.is_meta:
            return
        std = 1 / math.sqrt(3 * self.in_features)
        parts = {"nodes": self.nodes, "message": self.message_gates, "state": self.state_gates}
        for part, parameter in parts.items():
            rows, cols = parameter.shape
            parameter.copy_(
                random_matrix(rows, cols, seed=seed, name=f"{name}.{part}", std=std, distribution="uniform")
            )
        self.nodes.add_(1)  # nodes close to 1 let the state through at the start


def _spec(
    *,
    r: Rank = 16,
    alpha: Alpha = 32.0,
    dropout: Dropout = 0.05,
    heads: Heads = 4,
    top_k: Annotated[int, "heads chosen for a token in each round"] = 2,
    rounds: Annotated[int, "number of rounds in which the router decides, knowing its earlier choices"] = 3,
    seed: Seed = 0,
) -> AdapterSpec:
    if rounds == 1:
        router = RouterSpec(reads="code", top_k=top_k)
    else:
        router = RecurrentRouterSpec(reads="code", top_k=top_k, rounds=rounds)
    return AdapterSpec(
        rank=r,
        alpha=alpha,
        dropout=dropout,
        heads=heads,
        router=router,
        seed=seed,
    )


PRESET = Preset(
    name="graph_moe",
    title="GraphMoE (experimental)",
    paper="inspired by Tang et al., 2025, arXiv:2501.07890",
    summary="Experimental: a recurrent router chooses heads in several rounds, knowing its earlier choices.",
    learning_rate=RECIPES["graph_moe"].learning_rate,
    build=_spec,
    router_type=RecurrentRouterSpec,
)
