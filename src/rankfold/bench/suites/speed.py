"""How long a training step takes beside the reference's, measured in turns.

The times of runs that were made one after another say as much of what else the machine did as of the method.
Here method and reference take turns on the same batch, in an order drawn anew each round, so whatever happens
happens to both; only the ratio means anything.
"""

import hashlib
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, cast, final

import numpy as np
import torch

from rankfold.bench.step_times import NAME, StepTime, read_step_times, write_step_times
from rankfold.bench.suites.suite import Suite
from rankfold.errors import SpecError
from rankfold.files import check_writable
from rankfold.models.hardware import autocast, cpu_name, gpu_name
from rankfold.progress import Progress, Silent
from rankfold.runs.prepare import RunSetup, prepare
from rankfold.runs.request import RunRequest
from rankfold.train.auxiliary import auxiliary_loss

_WARM_UP = 3
_RESAMPLES = 2000
_HASH_LETTERS = 16


def measure_speed(
    suite: Suite, folder: Path, *, rounds: int = 20, progress: Progress | None = None
) -> list[StepTime]:
    """Measure the step time of every variant of a suite, and write each result at once.

    What is there is kept, unless more rounds are asked for now, or the row or its reference is another one.

    Args:
        suite: Its first method is the reference.
        folder: Gets `speed.json`.
        rounds: How often method and reference take turns.
        progress: Is told about every row.

    Raises:
        SpecError: If there is nothing to measure, or `folder` cannot be written.
        DataError: If an earlier file cannot be read.
    """
    if rounds < 1:
        raise SpecError(f"rounds is {rounds}; give a number above 0.")
    check_writable(folder / NAME)
    times = read_step_times(folder)
    measured_pairs = {time_of_row.asked for time_of_row in times if time_of_row.rounds >= rounds}
    pairs = [pair for pair in _pairs(suite) if pair.identity not in measured_pairs]
    listener = progress or Silent()
    listener.start(len(pairs), "rows")
    for number, pair in enumerate(pairs):
        listener.advance(number, now=pair.label)
        new_time = _measure_pair(pair, rounds)
        times = [*(time_of_row for time_of_row in times if _row(time_of_row) != _row(new_time)), new_time]
        write_step_times(times, folder)
    listener.advance(len(pairs))
    listener.finish()
    return times


@final
@dataclass(frozen=True, slots=True)
class _Pair:
    """A variant and the reference of its condition, with labels and requests."""

    label: str
    reference: str
    ours: RunRequest
    theirs: RunRequest

    @property
    def identity(self) -> str:
        """Hash of the identities of both runs."""
        identities = [request.identity() for request in (self.ours, self.theirs)]
        return hashlib.sha256(json.dumps(identities, sort_keys=True).encode()).hexdigest()[:_HASH_LETTERS]


def _pairs(suite: Suite) -> Iterator[_Pair]:
    for condition in suite.conditions():
        first, *variants = suite.variants_at(condition)
        for row in variants:
            ours, theirs = (
                suite.request(condition, variant.method, suite.seeds[0], Path("unused"))
                for variant in (row, first)
            )
            yield _Pair(row.label, first.label, ours, theirs)


def _measure_pair(pair: _Pair, rounds: int) -> StepTime:
    ratios, hardware = _take_turns(pair.ours, pair.theirs, rounds)
    low, high = _interval(ratios)
    model, task = pair.ours.model, pair.ours.task_request.name
    return StepTime(
        model, task, pair.label, pair.reference, median(ratios), low, high, rounds, hardware, pair.identity
    )


def _row(measured: StepTime) -> tuple[str, str, str]:
    return measured.model, measured.task, measured.label


def _take_turns(ours: RunRequest, theirs: RunRequest, rounds: int) -> tuple[list[float], str]:
    """Return the ratio of step times in each round, and the hardware."""
    runs = prepare(ours), prepare(theirs)
    steps = [_step_of(prepared_run) for prepared_run in runs]
    device = runs[0].device
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    for step in steps * _WARM_UP:
        step()
    ratios: list[float] = []
    for _ in range(rounds):
        seconds = [0.0, 0.0]
        for index in random.sample((0, 1), 2):
            _wait(device)
            began = clock()
            steps[index]()
            _wait(device)
            seconds[index] = clock() - began
        ratios.append(seconds[0] / seconds[1])
    threads = torch.get_num_threads()
    return ratios, gpu_name(device) or f"{cpu_name()}, {threads} thread{'s' * (threads > 1)}"


def _step_of(run: RunSetup) -> Callable[[], None]:
    """Return a function that does one update, as a plain loop would do it."""
    model = run.model.to(run.device).train()
    kind = run.data.kind
    collate = kind.collate(run.learner)
    rows: list[Any] = [dict(row) for row in run.rows[: run.schedule.batch_size]]
    batch = {name: value.to(run.device) for name, value in collate(rows).items()}
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: Any = run.groups or parameters
    optimizer = torch.optim.AdamW(groups, lr=run.schedule.learning_rate)
    if run.reducer is not None:
        run.reducer.attach(model)

    def step() -> None:
        if run.reducer is not None:
            run.reducer.before_step()
        with autocast(run.device, run.schedule.precision):
            loss: Any = kind.loss(model, batch)
        (loss + auxiliary_loss(model, batch.get("attention_mask"))).backward()
        cast(Any, optimizer).step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _interval(ratios: Sequence[float]) -> tuple[float, float]:
    samples = np.random.default_rng(0).choice(np.asarray(ratios), (_RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(samples, axis=1), (2.5, 97.5))
    return float(low), float(high)
