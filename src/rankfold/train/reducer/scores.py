"""Importance of layers: how it is stored, how probes update it, and how layers are sampled by it.

Pure mathematics, without a model. The rule is that of importance-aware sparse tuning (IST; Yao et al., 2024),
as its code has it. Its score s says how dispensable a layer is; here importance is -s: higher trains more.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, final

from rankfold.errors import SpecError
from rankfold.seeding import random_matrix
from rankfold.train.reducer.spec import ReducerSpec

Importance = tuple[float, ...]
"""One number a layer; 0 for nothing known."""

Layers = tuple[int, ...]
"""Indices of layers, rising."""

# Attempts per suppressed set: there may be fewer different sets than wanted, or very unlikely ones.
_ATTEMPTS = 20


def uniform_numbers(count: int, *, seed: int, name: str) -> list[float]:
    """Uniform random numbers strictly between 0 and 1, from seed and name alone: the same on every rank."""
    matrix = random_matrix(1, count, seed=seed, name=name, std=1 / math.sqrt(3), distribution="uniform")
    return [(1 + value) / 2 for value in matrix.double().reshape(-1).numpy().tolist()]


def log_sigmoid(score: float) -> float:
    """Logarithm of the sigmoid 1 / (1 + exp(-score)), for scores of any size."""
    return min(score, 0.0) - math.log1p(math.exp(-abs(score)))


def sample_layers(scores: Sequence[float], count: int, uniforms: Sequence[float]) -> Layers:
    """Sample layers one after the other, without replacement, each with weight sigmoid(score).

    The `count` largest of log weight + Gumbel noise are such a sample (Efraimidis and Spirakis, 2006).

    Args:
        scores: One per layer.
        count: Number of layers to sample.
        uniforms: One random number between 0 and 1 per layer.
    """
    keys = [
        log_sigmoid(score) - math.log(-math.log(uniform))
        for score, uniform in zip(scores, uniforms, strict=True)
    ]
    return top_layers(keys, count)


def top_layers(scores: Sequence[float], count: int) -> Layers:
    """Return the layers with the highest scores; of equal ones the first."""
    ranking = sorted(range(len(scores)), key=lambda layer: -scores[layer])
    return tuple(sorted(ranking[:count]))


def sample_sets(
    importance: Importance, count: int, sets: int, uniforms: Callable[[int], Sequence[float]]
) -> list[Layers]:
    """Sample different sets of layers to suppress, unimportant layers more often than important ones.

    There are fewer sets than requested where no more turn up within the attempts.

    Args:
        importance: One number per layer.
        count: Layers in a set.
        sets: Number of sets.
        uniforms: Returns fresh random numbers between 0 and 1, one per layer, for the number of an attempt.
    """
    samples: list[Layers] = []
    dispensability = [-value for value in importance]
    for attempt in range(_ATTEMPTS * sets):
        layers = sample_layers(dispensability, count, uniforms(attempt))
        if layers not in samples:
            samples.append(layers)
        if len(samples) == sets:
            break
    return samples


def least_important(importance: Importance, count: int) -> Layers:
    """Return the least important layers: the set that EffiLoRA's text suppresses."""
    return top_layers([-value for value in importance], count)


def importance_by_reward(
    importance: Importance, sets: Sequence[Layers], losses: Sequence[float], learning_rate: float
) -> Importance:
    """Update importance after a round of probes by IST's rule.

    The reward of a probe is exp(-loss) minus the mean of its round. A layer whose suppression is rewarded is
    dispensable: its importance moves by -learning_rate * reward * p (1 - p), where p is the sigmoid of its
    importance before the round.

    Args:
        importance: One number per layer.
        sets: The layers that each probe suppressed.
        losses: The loss of each probe.
        learning_rate: Step size.
    """
    rewards = [math.exp(-loss) for loss in losses]
    mean = sum(rewards) / len(rewards)
    new = list(importance)
    for layers, reward in zip(sets, rewards, strict=True):
        for layer in layers:
            probability = math.exp(log_sigmoid(importance[layer]))
            new[layer] -= learning_rate * (reward - mean) * probability * (1 - probability)
    return tuple(new)


def importance_by_loss_delta(
    importance: Importance,
    sets: Sequence[Layers],
    losses: Sequence[float],
    baseline: float,
    learning_rate: float,
) -> Importance:
    """Update importance after a round of probes by EffiLoRA's text: add the increase of the loss.

    Args:
        importance: One number per layer.
        sets: The layers that each probe suppressed.
        losses: The loss of each probe.
        baseline: The loss with no layer suppressed.
        learning_rate: Step size.
    """
    new = list(importance)
    for layers, loss in zip(sets, losses, strict=True):
        for layer in layers:
            new[layer] += learning_rate * (loss - baseline)
    return tuple(new)


@final
@dataclass(frozen=True, slots=True)
class ScorePoint:
    """Importance of the layers at one step.

    Args:
        step: Number of updates before it.
        importance: Of each layer; higher trains more often.
        trained: Number of these updates in which each layer trained.
    """

    step: int
    importance: Importance
    trained: tuple[int, ...]


@final
@dataclass(slots=True)
class LayerScores:
    """Importance of the layers, now and in the course of the training.

    Args:
        layers: Their names, from the input to the output.
        step: Number of updates, the current one included.
        importance: Of each layer; higher trains more often, 0 before any probe.
        trained: Number of updates in which each layer trained.
        active: Indices of the layers that train now; empty before the first update.
        history: Earlier scores, one every `interval` steps.
    """

    layers: tuple[str, ...] = ()
    step: int = 0
    importance: Importance = ()
    trained: tuple[int, ...] = ()
    active: Layers = ()
    history: list[ScorePoint] = field(default_factory=list[ScorePoint])

    @classmethod
    def initial(cls, layers: tuple[str, ...]) -> Self:
        """Return the scores before the first probe: zero for every layer."""
        return cls(layers, importance=(0.0,) * len(layers), trained=(0,) * len(layers))

    def add_to_history(self) -> None:
        """Append the current scores to the history."""
        self.history.append(ScorePoint(self.step, self.importance, self.trained))

    def count_step(self) -> None:
        """Count an update of the active layers."""
        self.step += 1
        self.trained = tuple(count + (layer in self.active) for layer, count in enumerate(self.trained))

    def to_dict(self) -> dict[str, Any]:
        """Return the scores as JSON values, without rounding."""
        return {
            "layers": list(self.layers),
            "step": self.step,
            "importance": list(self.importance),
            "trained": list(self.trained),
            "active": list(self.active),
            "history": [[point.step, list(point.importance), list(point.trained)] for point in self.history],
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Self:
        """Restore scores from the values of `to_dict`."""
        return cls(
            tuple(state["layers"]),
            state["step"],
            tuple(state["importance"]),
            tuple(state["trained"]),
            tuple(state["active"]),
            [ScorePoint(step, tuple(values), tuple(counts)) for step, values, counts in state["history"]],
        )


def check_state(state: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Check that a Reducer can continue from a saved state.

    Args:
        state: The saved state.
        current: The present state of this Reducer.

    Raises:
        SpecError: If the state is incomplete, or of other layers or other options.
    """
    mismatches = sorted(
        (state.keys() ^ current.keys()) | (state.get("scores", {}).keys() ^ current["scores"].keys())
    )
    if mismatches:
        raise SpecError(f"the Reducer's state is damaged (see '{mismatches[0]}'); start a new training.")
    before, now = state["scores"]["layers"], current["scores"]["layers"]
    if before != now:
        raise SpecError(
            f"the Reducer's state is of {len(before)} layers ({_ends(before)}), but the model has {len(now)} "
            f"({_ends(now)}); use the same model and targets, or start a new training."
        )
    # An option that is newer than the state had its default.
    options = {**ReducerSpec().to_dict(), **state["options"]}
    for name, value in current["options"].items():
        if (old := options[name]) != value:
            raise SpecError(
                f"the Reducer's state was made with {name}={old}, but this Reducer has {name}={value}; "
                "use the same options, or start a new training."
            )


def _ends(layers: list[str]) -> str:
    return f"'{layers[0]}' to '{layers[-1]}'"
