"""The interface of executors, and the simplest of them: one run after another in this process."""

import contextlib
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, final

from rankfold.errors import TrainingError
from rankfold.progress import Progress
from rankfold.runs.record import RunRecord
from rankfold.runs.request import RunRequest

Run = Callable[..., RunRecord]

OPENMP_WAITING = {"OMP_WAIT_POLICY": "PASSIVE"}
"""The environment of runs beside each other: up to ten times faster than with threads that spin."""


def run_request(request: RunRequest, *, progress: Progress | None = None) -> RunRecord:
    """Do one run in this process; torch and PEFT are imported only now. See `rankfold.runs.run.run`."""
    from rankfold.runs.run import run

    return run(request, progress=progress)


@final
@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A run that has ended, with its record or its error.

    Args:
        request: The request.
        record: Its record; None if it failed.
        error: Why it failed; None if it did not.
    """

    request: RunRequest
    record: RunRecord | None
    error: Exception | None = None


class Executor(Protocol):
    """Executes runs."""

    @property
    def jobs(self) -> int:
        """How many runs are under way at once."""
        ...

    def execute(
        self, requests: Sequence[RunRequest], new_progress: Callable[[], Progress]
    ) -> Iterator[FinishedRun]:
        """Execute runs, and yield each when it has ended, successful or not.

        Args:
            requests: What to do; begun in this order.
            new_progress: Makes a listener for a run.
        """
        ...


@final
@dataclass(frozen=True, slots=True)
class Inline:
    """One run after another, in this process.

    Args:
        run_one: Does one run.
    """

    run_one: Run = run_request

    @property
    def jobs(self) -> int:
        """One."""
        return 1

    def execute(
        self, requests: Sequence[RunRequest], new_progress: Callable[[], Progress]
    ) -> Iterator[FinishedRun]:
        """Execute runs one by one."""
        for request in requests:
            progress = new_progress()
            try:
                yield FinishedRun(request, self.run_one(request, progress=progress))
            except Exception as error:  # a failed run is a row of the comparison, whatever the reason
                yield FinishedRun(request, None, error)
            finally:
                progress.finish()


def picklable_error(error: Exception) -> Exception:
    """Return the error, or its words as a `TrainingError` where it cannot be sent as it is."""
    with contextlib.suppress(Exception):
        if str(pickle.loads(pickle.dumps(error))) == str(error):  # noqa: S301 (our own object)
            return error
    return TrainingError(f"{type(error).__name__}: {error}")
