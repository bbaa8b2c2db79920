"""Which layers matter: scores, and draws by scores. Pure mathematics, without a model.

The rule is that of importance-aware sparse tuning (IST; Yao et al., 2024), as its code has it. Its score
s says how dispensable a layer is; here importance is -s, so that higher means "train this one".
"""

import math
from collections.abc import Callable, Sequence

from rankfold.seeding import random_matrix

Importance = tuple[float, ...]
"""One number a layer; 0 for nothing known."""

Layers = tuple[int, ...]
"""Indices of layers, rising."""

# So many draws for each suppressed set that is still wanted: there may be fewer sets, or hardly likely ones.
_TRIES = 20


def uniforms(count: int, *, seed: int, name: str) -> list[float]:
    """Return numbers strictly between 0 and 1 that depend on seed and name alone, on every rank the same."""
    centred = random_matrix(1, count, seed=seed, name=name, std=1 / math.sqrt(3), distribution="uniform")
    return [(1 + value) / 2 for value in centred.double().reshape(-1).numpy().tolist()]


def log_sigmoid(score: float) -> float:
    """Return the logarithm of 1 / (1 + exp(-score)), for scores of any size."""
    return min(score, 0.0) - math.log1p(math.exp(-abs(score)))


def draw(scores: Sequence[float], count: int, chances: Sequence[float]) -> Layers:
    """Draw layers one after the other, without replacement, each with weight sigmoid(score).

    The `count` largest of log weight + Gumbel noise are such a draw (Efraimidis and Spirakis, 2006).

    Args:
        scores: One a layer.
        count: How many to draw.
        chances: One number between 0 and 1 a layer.
    """
    keys = [
        log_sigmoid(score) - math.log(-math.log(chance))
        for score, chance in zip(scores, chances, strict=True)
    ]
    return highest(keys, count)


def highest(scores: Sequence[float], count: int) -> Layers:
    """Return the layers with the highest scores; of equal ones the first."""
    ranked = sorted(range(len(scores)), key=lambda layer: -scores[layer])
    return tuple(sorted(ranked[:count]))


def sampled_sets(
    importance: Importance, count: int, sets: int, chances: Callable[[int], Sequence[float]]
) -> list[Layers]:
    """Return different sets of layers to suppress, unimportant layers more often than important ones.

    There are fewer sets than asked for if no more are found.

    Args:
        importance: One number a layer.
        count: Layers in a set.
        sets: How many sets.
        chances: Gives fresh numbers between 0 and 1, one a layer, for each number of a try.
    """
    found: list[Layers] = []
    dispensable = [-value for value in importance]
    for attempt in range(_TRIES * sets):
        drawn = draw(dispensable, count, chances(attempt))
        if drawn not in found:
            found.append(drawn)
        if len(found) == sets:
            break
    return found


def lowest_set(importance: Importance, count: int) -> Layers:
    """Return the least important layers: the set that EffiLoRA's text suppresses."""
    return highest([-value for value in importance], count)


def by_reward(
    importance: Importance, suppressed: Sequence[Layers], losses: Sequence[float], learning_rate: float
) -> Importance:
    """Return importance after a round of probes, by IST's rule.

    The reward of a probe is exp(-loss) less the mean of its round. A layer whose suppression is rewarded is
    dispensable: it loses learning_rate * reward * p (1 - p), where p is the sigmoid of its importance before
    the round.

    Args:
        importance: One number a layer.
        suppressed: The layers that each probe suppressed.
        losses: What each probe lost.
        learning_rate: How far to move.
    """
    rewards = [math.exp(-loss) for loss in losses]
    mean = sum(rewards) / len(rewards)
    moved = list(importance)
    for layers, reward in zip(suppressed, rewards, strict=True):
        for layer in layers:
            chance = math.exp(log_sigmoid(importance[layer]))
            moved[layer] -= learning_rate * (reward - mean) * chance * (1 - chance)
    return tuple(moved)


def by_loss_delta(
    importance: Importance,
    suppressed: Sequence[Layers],
    losses: Sequence[float],
    baseline: float,
    learning_rate: float,
) -> Importance:
    """Return importance after a round of probes, by the letter of EffiLoRA: what suppressing cost is added.

    Args:
        importance: One number a layer.
        suppressed: The layers that each probe suppressed.
        losses: What each probe lost.
        baseline: The loss with no layer suppressed.
        learning_rate: How far to move.
    """
    moved = list(importance)
    for layers, loss in zip(suppressed, losses, strict=True):
        for layer in layers:
            moved[layer] += learning_rate * (loss - baseline)
    return tuple(moved)
