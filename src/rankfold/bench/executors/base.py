"""What a place where runs are done has to do, and the simplest of them: this process, one run at a time."""

import contextlib
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, final

from rankfold.errors import TrainingError
from rankfold.progress import Progress
from rankfold.runs.record import RunRecord
from rankfold.runs.request import RunRequest
from rankfold.runs.run import run

Run = Callable[..., RunRecord]


@final
@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A run that came to an end.

    Args:
        request: What was asked for.
        record: What came of it; None if it failed.
        error: Why it failed; None if it did not.
    """

    request: RunRequest
    record: RunRecord | None
    error: Exception | None = None


class Executor(Protocol):
    """Does runs."""

    @property
    def jobs(self) -> int:
        """How many runs are under way at once."""
        ...

    def execute(
        self, requests: Sequence[RunRequest], new_progress: Callable[[], Progress]
    ) -> Iterator[FinishedRun]:
        """Do runs, and yield each when it has ended, whatever became of it.

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

    run_one: Run = run

    @property
    def jobs(self) -> int:
        """One."""
        return 1

    def execute(
        self, requests: Sequence[RunRequest], new_progress: Callable[[], Progress]
    ) -> Iterator[FinishedRun]:
        """Do runs one by one."""
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
