"""Ratios of times with intervals, of functions in turns: whatever else the machine does hits all alike."""

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypedDict

_RESAMPLES = 1000
_INTERVAL = 0.025, 0.975
_LEAST_ROUNDS = 5


class Ratio(TypedDict, total=False):
    """A time as a multiple of the reference's, with an interval of 95 %, and the exact ratio of bytes."""

    time: float
    low: float
    high: float
    bytes: float


def interleave(
    steps: Mapping[str, Callable[[], object]], rounds: int, seconds: float | None = None
) -> dict[str, list[float]]:
    """Return the processor time of every function in every round; a round runs each once, in random order.

    Args:
        steps: The functions; each is run once before.
        rounds: How many rounds.
        seconds: Begin no round after so many seconds, but do five at least.
    """
    for step in steps.values():
        step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    begin = time.monotonic()
    for done in range(rounds):
        if seconds is not None and done >= _LEAST_ROUNDS and time.monotonic() - begin > seconds:
            break
        for name in random.sample(list(steps), len(steps)):
            start = time.process_time()
            steps[name]()
            times[name].append(time.process_time() - start)
    return times


def ratios_of(
    times: Mapping[str, Sequence[float]],
    reference: str,
    *,
    average: Callable[[Sequence[float]], float] = statistics.median,
) -> dict[str, Ratio]:
    """Return the ratio of every function to one of them, with the interval that resampled rounds give.

    Args:
        times: From `interleave`.
        reference: The function that the others are compared with.
        average: The mean where some rounds do more than others, as they should.
    """
    rounds = range(len(times[reference]))
    samples = [random.choices(rounds, k=len(rounds)) for _ in range(_RESAMPLES)]
    ratios: dict[str, Ratio] = {}
    for name, values in times.items():

        def ratio(chosen: Sequence[int], values: Sequence[float] = values) -> float:
            own, other = ([series[index] for index in chosen] for series in (values, times[reference]))
            return average(own) / average(other)

        resampled = sorted(map(ratio, samples))
        low, high = (resampled[round(share * (_RESAMPLES - 1))] for share in _INTERVAL)
        ratios[name] = {"time": ratio(rounds), "low": low, "high": high}
    return ratios
