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
from rankfold.runs.prepare import Prepared, prepare
from rankfold.runs.request import RunRequest
from rankfold.train.auxiliary import auxiliary_loss

_WARM_UP = 3
_RESAMPLES = 2000
_HASH_LETTERS = 16


def measure_speed(
    suite: Suite, folder: Path, *, rounds: int = 20, progress: Progress | None = None
) -> list[StepTime]:
    """Measure every row of a suite, and write what was measured after each.

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
    found = read_step_times(folder)
    done = {each.asked for each in found if each.rounds >= rounds}
    pairs = [pair for pair in _pairs(suite) if pair.asked not in done]
    listener = progress or Silent()
    listener.start(len(pairs), "rows")
    for number, pair in enumerate(pairs):
        listener.advance(number, now=pair.label)
        new = _measured(pair, rounds)
        found = [*(each for each in found if _row(each) != _row(new)), new]
        write_step_times(found, folder)
    listener.advance(len(pairs))
    listener.finish()
    return found


@final
@dataclass(frozen=True, slots=True)
class _Pair:
    """A row and the reference of its condition, by their labels and as what they are."""

    label: str
    reference: str
    ours: RunRequest
    theirs: RunRequest

    @property
    def asked(self) -> str:
        """A hash of what is measured, wherever it is."""
        identities = [request.identity() for request in (self.ours, self.theirs)]
        return hashlib.sha256(json.dumps(identities, sort_keys=True).encode()).hexdigest()[:_HASH_LETTERS]


def _pairs(suite: Suite) -> Iterator[_Pair]:
    for condition in suite.conditions():
        first, *others = suite.variants_at(condition)
        for row in others:
            ours, theirs = (
                suite.request(condition, each.method, suite.seeds[0], Path("unused")) for each in (row, first)
            )
            yield _Pair(row.label, first.label, ours, theirs)


def _measured(pair: _Pair, rounds: int) -> StepTime:
    ratios, hardware = _take_turns(pair.ours, pair.theirs, rounds)
    low, high = _interval(ratios)
    model, task = pair.ours.model, pair.ours.task_request.name
    return StepTime(
        model, task, pair.label, pair.reference, median(ratios), low, high, rounds, hardware, pair.asked
    )


def _row(measured: StepTime) -> tuple[str, str, str]:
    return measured.model, measured.task, measured.label


def _take_turns(ours: RunRequest, theirs: RunRequest, rounds: int) -> tuple[list[float], str]:
    """Return the ratio of the times of a step in each round, and what they were measured on."""
    prepared = prepare(ours), prepare(theirs)
    steps = [_step_of(each) for each in prepared]
    device = prepared[0].device
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    for step in steps * _WARM_UP:
        step()
    ratios: list[float] = []
    for _ in range(rounds):
        seconds = [0.0, 0.0]
        for which in random.sample((0, 1), 2):
            _wait(device)
            began = clock()
            steps[which]()
            _wait(device)
            seconds[which] = clock() - began
        ratios.append(seconds[0] / seconds[1])
    threads = torch.get_num_threads()
    return ratios, gpu_name(device) or f"{cpu_name()}, {threads} thread{'s' * (threads > 1)}"


def _step_of(prepared: Prepared) -> Callable[[], None]:
    """Return a function that does one update, as a plain loop would do it."""
    model = prepared.model.to(prepared.device).train()
    kind = prepared.data.kind
    collate = kind.collate(prepared.learner)
    rows: list[Any] = [dict(row) for row in prepared.rows[: prepared.schedule.batch_size]]
    batch = {name: value.to(prepared.device) for name, value in collate(rows).items()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: Any = prepared.groups or trained
    optimizer = torch.optim.AdamW(groups, lr=prepared.schedule.learning_rate)
    if prepared.reducer is not None:
        prepared.reducer.attach(model)

    def step() -> None:
        if prepared.reducer is not None:
            prepared.reducer.before_step()
        with autocast(prepared.device, prepared.schedule.precision):
            loss: Any = kind.loss(model, batch)
        (loss + auxiliary_loss(model, batch.get("attention_mask"))).backward()
        cast(Any, optimizer).step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _interval(ratios: Sequence[float]) -> tuple[float, float]:
    drawn = np.random.default_rng(0).choice(np.asarray(ratios), (_RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(drawn, axis=1), (2.5, 97.5))
    return float(low), float(high)
