"""Runs in processes of their own: several at once, and a run that crashes takes nothing with it."""

import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, cast, final

import torch

from rankfold.bench.executors.base import FinishedRun, Run, picklable_error
from rankfold.errors import RankfoldWarning, TrainingError
from rankfold.progress import Progress
from rankfold.runs.record import RunRecord
from rankfold.runs.request import RunRequest
from rankfold.runs.run import run

# What a run imports takes seconds, so a server imports it once and is forked for each run. A run begins as
# fresh as in a spawned process: importing gives torch's threads no work and asks no GPU for anything.
_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
_START: Any = multiprocessing.get_context(_METHOD)

# Which warnings were shown, as the module `warnings` keeps it.
_Warned = dict[str | tuple[str, type[Warning], int], int]


@final
@dataclass(slots=True)
class _Job:
    """A run under way."""

    request: RunRequest
    process: Any
    news: Connection
    progress: Progress
    ended: FinishedRun | None = field(default=None)


@final
@dataclass(frozen=True, slots=True)
class Processes:
    """Several runs at once on this machine, a process for each.

    Args:
        jobs: How many at once; they share the processor's cores evenly.
        run_one: Does one run; can be pickled.
    """

    jobs: int = 1
    run_one: Run = run

    def execute(
        self, requests: Sequence[RunRequest], new_progress: Callable[[], Progress]
    ) -> Iterator[FinishedRun]:
        """Do runs; when the caller stops early, those under way are stopped and can be resumed."""
        waiting = list(reversed(requests))
        under_way: list[_Job] = []
        warned: _Warned = {}
        _START.set_forkserver_preload([run.__module__])
        threads = max(1, (os.cpu_count() or 1) // self.jobs)
        try:
            while waiting or under_way:
                while waiting and len(under_way) < self.jobs:
                    with _uninterrupted():
                        under_way.append(self._begin(waiting.pop(), new_progress(), threads))
                wait([job.news for job in under_way])
                for job in [job for job in under_way if job.news.poll()]:
                    _hear(job, warned)
                    if job.ended is not None:
                        under_way.remove(job)
                        job.progress.finish()
                        yield job.ended
        finally:
            for job in under_way:
                _stop(job)

    def _begin(self, request: RunRequest, progress: Progress, threads: int) -> _Job:
        ours, theirs = _START.Pipe(duplex=False)
        # The server has the environment of its own beginning.
        given = (self.run_one, request, threads, theirs, dict(os.environ))
        process = _START.Process(target=_work, args=given, daemon=True)
        process.start()
        theirs.close()  # so that the pipe ends when the process does
        return _Job(request, process, ours, progress)


@contextmanager
def _uninterrupted() -> Generator[None]:
    """Have Ctrl-C wait for the block, and not reach the processes begun in it, which this one stops."""
    if _METHOD == "spawn":
        yield
        return
    resource_tracker.ensure_running()  # which would let interrupts through once it has begun its own process
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        with _interrupts_later():
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextmanager
def _interrupts_later() -> Generator[None]:
    """Raise at the end of the block what interrupted it.

    A mask holds for one thread: another thread, as libraries have, takes the signal, of which Python then
    tells the main one in the middle of what it does.
    """
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []  # a handler that is itself interrupted must wait for no lock
    signal.signal(signal.SIGINT, lambda number, _frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if came:
            signal.raise_signal(signal.SIGINT)


def _hear(job: _Job, warned: _Warned) -> None:
    """Take one piece of news, or notice that there will be none; a warning of many runs is shown once."""
    try:
        what, *content = job.news.recv()
    except (EOFError, OSError):  # the second in the middle of a message
        job.process.join()
        job.ended = FinishedRun(job.request, None, TrainingError(_death(job.process.exitcode)))
        return
    if what == "ended":
        job.process.join()
        job.ended = FinishedRun(job.request, *content)
    elif what == "warned":
        warnings.warn_explicit(*content, registry=warned)
    else:
        arguments, fields = content
        getattr(job.progress, what)(*arguments, **fields)


def _death(code: int) -> str:
    if code == -signal.SIGKILL:
        return "the process was killed, most likely for want of memory; give it a smaller batch_size."
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"the process ended with {how} before the run did; run it alone to see why."


def _stop(job: _Job) -> None:
    job.process.terminate()
    job.process.join()
    job.progress.finish()


@final
class _Teller:
    """Tells another process what this one does: it is the `Progress` of the run, and shows its warnings."""

    def __init__(self, news: Connection) -> None:
        self._news, self._one_at_a_time = news, threading.Lock()

    def tell(self, what: str, *content: object) -> None:
        """Send a piece of news."""
        with self._one_at_a_time:
            self._news.send((what, *content))

    def start(self, total: int, description: str) -> None:
        """Tell it."""
        self.tell("start", (total, description), {})

    def advance(self, done: int, **fields: object) -> None:
        """Tell it."""
        self.tell("advance", (done,), fields)

    def finish(self) -> None:
        """Tell it."""
        self.tell("finish", (), {})

    def warn(
        self, message: Warning | str, category: type[Warning], filename: str, lineno: int, *_rest: object
    ) -> None:
        """Tell of a warning, in place of `warnings.showwarning`."""
        # The other process may not have the category of a library.
        kind = RankfoldWarning if issubclass(category, RankfoldWarning) else UserWarning
        self.tell("warned", str(message), kind, filename, lineno)


def _work(
    run_one: Run, request: RunRequest, threads: int, news: Connection, environment: Mapping[str, str]
) -> None:
    """Do one run in this process and tell how it ended."""
    _die_with_parent()
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(threads)
    teller = _Teller(news)
    warnings.showwarning = cast("Any", teller.warn)  # which is called with positions alone
    record: RunRecord | None = None
    error: Exception | None = None
    try:
        record = run_one(request, progress=teller)
    except Exception as reason:  # told to the other process, which makes a row of it
        error = picklable_error(reason)
    except KeyboardInterrupt:
        return
    teller.tell("ended", record, error)


def _die_with_parent() -> None:
    """End this process when the one that began it is gone, however it went: nobody waits for the result."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a run's process is begun by another"

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
