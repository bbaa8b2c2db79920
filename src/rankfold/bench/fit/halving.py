"""Successive halving: many candidates with few updates, the better ones again with more.

Every rung trains from the beginning. A learning rate falls to zero in the steps it was planned for, so going
on from a shorter run would not be the run that was asked for. It costs little: with three times the steps in
each rung, all earlier runs of the winner together are half of its last one.
"""

import math
from collections.abc import Sequence

from rankfold.bench.statistics.scores import SMALLER_IS_BETTER, goodness, mean_score, shared_examples
from rankfold.runs.record import RunRecord


def rung_sizes(candidates: int, eta: int) -> list[int]:
    """Return how many candidates each rung trains: the first all, each later one the best 1/eta of the last.

    Example:
        >>> rung_sizes(14, 3)
        [14, 5, 2]
    """
    sizes = [candidates]
    while sizes[-1] > eta:
        sizes.append(math.ceil(sizes[-1] / eta))
    return sizes


def rung_steps(rungs: int, steps: int, eta: int) -> list[int]:
    """Return the updates of each rung: the last has `steps`, each earlier one 1/eta of the next.

    Example:
        >>> rung_steps(3, 240, 3)
        [27, 80, 240]
    """
    return [max(1, round(steps / eta**later)) for later in reversed(range(rungs))]


def ranked(records: Sequence[RunRecord]) -> list[RunRecord]:
    """Return runs of one rung, the best first, failed ones last.

    Equal scores are told apart by the loss on the same rows, then by how many numbers are trained; then the
    order stays.
    """
    return sorted(records, key=_rank)


def _rank(record: RunRecord) -> tuple[float, float, int]:
    return -goodness(record), held_out_loss(record), record.parameters.trainable


def like_guessing(records: Sequence[RunRecord]) -> list[RunRecord]:
    """Return the runs that have not been seen to be better than guessing, such as the most frequent class."""
    return [record for record in records if record.status == "done" and _is_like_guessing(record)]


def _is_like_guessing(record: RunRecord) -> bool:
    metric = record.task.metric
    score = mean_score([record], metric, shared_examples([record]))
    if score is None or not record.baselines or metric in SMALLER_IS_BETTER:
        return False
    return score.low <= max(record.baselines.values())


def held_out_loss(record: RunRecord) -> float:
    """Return the last loss on held-out rows; infinite where none was measured."""
    return float(record.curve.validation[-1]["loss"]) if record.curve.validation else math.inf
