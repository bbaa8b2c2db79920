"""The plan of a suite: how long its runs take, and which differences its seeds and tasks can show.

Both follow from a pilot: records of earlier runs, of the same suite or of another on the same tasks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from pathlib import Path
from statistics import median
from typing import final

from rankfold.bench.statistics.claims import Claim
from rankfold.bench.statistics.comparison import (
    LEVEL,
    Difference,
    knows_metric,
    paired_difference,
    scores_of,
    shared_examples,
)
from rankfold.bench.statistics.confidence import MeanEstimate, mean_estimate
from rankfold.bench.suites.protocol import all_requests
from rankfold.bench.suites.runner import seconds_left
from rankfold.bench.suites.suite import Suite
from rankfold.errors import DataError
from rankfold.runs.record import RunRecord, measured_on
from rankfold.runs.records import find_records

_MOST_PAIRS = 30
_FEWEST_SEEDS = 2


@final
@dataclass(frozen=True, slots=True)
class ClaimPlan:
    """The power of a claim before its runs.

    Args:
        claim: The claim.
        tasks: The tasks it is decided on.
        detectable: The smallest difference, or for an equivalence the smallest margin, that its seeds and
            tasks show with 80 % power; None if the pilot has no run of some task.
    """

    claim: Claim
    tasks: tuple[str, ...]
    detectable: float | None


@final
@dataclass(frozen=True, slots=True)
class SuitePlan:
    """The plan of a suite.

    Args:
        runs: Number of runs, trials of tuning included as far as they are foreseen.
        left: How many of them have no record yet.
        hours: Hours for these, one after another; None without a pilot.
        claims: The power of each claim.
    """

    runs: int
    left: int
    hours: float | None
    claims: tuple[ClaimPlan, ...]


def plan_suite(suite: Suite, out: Path, pilot: Sequence[RunRecord] | None = None) -> SuitePlan:
    """Plan a suite by the times and the spread of earlier runs.

    Args:
        suite: The suite.
        out: The folder of its runs; those with a record there count as done.
        pilot: Records of any runs; those of `out` if None.
    """
    own_runs = _done_runs(out)
    done_runs = own_runs if pilot is None else [record for record in pilot if record.status == "done"]
    names = {record.name for record in own_runs}
    requests = all_requests(suite, out)
    left = [request for request in requests if request.out.name not in names]
    seconds = seconds_left(left, [(record.request, record) for record in done_runs], 1)
    family = sum(len(claim.comparisons) for claim in suite.claims)
    level = 1 - (1 - LEVEL) / max(1, family)
    claims = tuple(_plan_claim(claim, suite, done_runs, level) for claim in suite.claims)
    return SuitePlan(len(requests), len(left), None if seconds is None else seconds / 3600, claims)


def _done_runs(folder: Path) -> list[RunRecord]:
    """Return the finished runs of a folder; none if nothing was run there yet."""
    try:
        return [record for record in find_records(folder) if record.status == "done"]
    except DataError:
        return []


def _plan_claim(claim: Claim, suite: Suite, pilot: Sequence[RunRecord], level: float) -> ClaimPlan:
    rows = set(claim.comparisons[0])
    conditions = [
        condition
        for condition in suite.conditions()
        if (not claim.tasks or condition.task in claim.tasks)
        and rows <= {row.label for row in suite.variants_at(condition)}
    ]
    tasks = tuple(
        dict.fromkeys(condition.task or str(suite.base.get("task", "")) for condition in conditions)
    )
    spreads = [_planned_estimate(task, pilot, len(suite.seeds)) for task in tasks]
    known = [spread for spread in spreads if spread is not None]
    if len(known) < len(tasks) or not known:
        return ClaimPlan(claim, tasks, None)
    is_pooled = suite.rules is not None and suite.rules.tasks == "mean"
    estimates = [mean_estimate(known)] if is_pooled else known
    return ClaimPlan(
        claim, tasks, max(claim.detectable(Difference(estimate), level) for estimate in estimates)
    )


def _planned_estimate(task: str, pilot: Sequence[RunRecord], seeds: int) -> MeanEstimate | None:
    """Return a difference of 0 on a task with the standard errors that so many seeds would leave.

    The spread is the median over pairs of methods of the pilot that share seeds and examples.
    """
    groups: dict[str, list[RunRecord]] = {}
    for record in pilot:
        if record.task.name == task and not record.request.hold_out:
            key = f"{record.request.identity_of_seeds()} {measured_on(record)}"
            groups.setdefault(key, []).append(record)
    estimates = [
        estimate
        for ours, reference in islice(combinations(groups.values(), 2), _MOST_PAIRS)
        if (estimate := _estimate(ours, reference)) is not None
    ]
    if not estimates:
        return None
    # The part that examples make in each seed apart shrinks with more seeds; the shared part does not.
    apart = [
        math.sqrt(max(0.0, estimate.least**2 - estimate.shared**2) * estimate.seeds) for estimate in estimates
    ]
    shared = median(estimate.shared for estimate in estimates)
    return MeanEstimate(
        0.0,
        seeds,
        min(estimate.examples for estimate in estimates),
        median(estimate.spread * math.sqrt(estimate.seeds) for estimate in estimates) / math.sqrt(seeds),
        shared,
        math.hypot(shared, median(apart) / math.sqrt(seeds)),
    )


def _estimate(ours: Sequence[RunRecord], reference: Sequence[RunRecord]) -> MeanEstimate | None:
    """Return the paired difference of two methods of a pilot; None if they share too little."""
    records = [*ours, *reference]
    metric, examples = records[0].task.metric, shared_examples(records)
    seeds = {run.training.seed for run in ours} & {run.training.seed for run in reference}
    if len(seeds) < _FEWEST_SEEDS or not examples or not knows_metric(records, metric):
        return None
    first, second = (scores_of(runs, examples, metric) for runs in (ours, reference))
    return paired_difference(first, second, metric).estimate
