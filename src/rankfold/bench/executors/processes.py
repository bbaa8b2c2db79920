"""Runs in processes of their own: several at once, and a run that crashes takes nothing with it."""

import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, cast, final

import torch

from rankfold.bench.executors.base import OPENMP_WAITING, FinishedRun, Run, picklable_error, run_request
from rankfold.errors import RankfoldWarning, TrainingError
from rankfold.progress import Progress
from rankfold.runs.record import RunRecord
from rankfold.runs.request import RunRequest

# What a run imports takes seconds, so a server imports it once and is forked for each run. A run begins as
# fresh as in a spawned process: importing gives torch's threads no work and asks no GPU for anything.
_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
_START: Any = multiprocessing.get_context(_METHOD)

# Which warnings were shown, as the module `warnings` keeps it.
_WarningRegistry = dict[str | tuple[str, type[Warning], int], int]


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
        preload: The module that a run imports, which is imported once for all of them.
    """

    jobs: int = 1
    run_one: Run = run_request
    preload: str = "rankfold.runs.run"

    def execute(
        self, requests: Sequence[RunRequest], new_progress: Callable[[], Progress]
    ) -> Iterator[FinishedRun]:
        """Execute runs; when the caller stops early, those under way are stopped and can be resumed."""
        pending = list(reversed(requests))
        running: list[_Job] = []
        shown_warnings: _WarningRegistry = {}
        _START.set_forkserver_preload([__name__, self.preload])
        threads = max(1, (os.cpu_count() or 1) // self.jobs)
        try:
            while pending or running:
                while pending and len(running) < self.jobs:
                    with _block_interrupts():
                        running.append(self._begin(pending.pop(), new_progress(), threads))
                wait([job.news for job in running])
                for job in [job for job in running if job.news.poll()]:
                    _receive(job, shown_warnings)
                    if job.ended is not None:
                        running.remove(job)
                        job.progress.finish()
                        yield job.ended
        finally:
            for job in running:
                _stop(job)

    def _begin(self, request: RunRequest, progress: Progress, threads: int) -> _Job:
        ours, theirs = _START.Pipe(duplex=False)
        with _passive_threads() if self.jobs > 1 else nullcontext():
            # The server has the environment of its own beginning.
            arguments = (self.run_one, request, threads, theirs, dict(os.environ))
            process = _START.Process(target=_work, args=arguments, daemon=True)
            process.start()
        theirs.close()  # so that the pipe ends when the process does
        return _Job(request, process, ours, progress)


@contextmanager
def _passive_threads() -> Generator[None]:
    """Have the threads of the processes begun in the block sleep while they wait, unless the user chose.

    Threads that spin between two operations take the cores from the other runs. OpenMP reads this once, when
    it is loaded, which is in the server that runs are forked from.
    """
    chosen = OPENMP_WAITING.keys() & os.environ.keys()
    os.environ.update({name: value for name, value in OPENMP_WAITING.items() if name not in chosen})
    try:
        yield
    finally:
        for name in OPENMP_WAITING.keys() - chosen:
            os.environ.pop(name, None)


@contextmanager
def _block_interrupts() -> Generator[None]:
    """Have Ctrl-C wait for the block, and not reach the processes begun in it, which this one stops."""
    if _METHOD == "spawn":
        yield
        return
    resource_tracker.ensure_running()  # which would let interrupts through once it has begun its own process
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        with _delay_interrupts():
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextmanager
def _delay_interrupts() -> Generator[None]:
    """Delay an interrupt to the end of the block.

    A mask holds for one thread: another thread, as libraries have, takes the signal, of which Python then
    tells the main one in the middle of what it does.
    """
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    pending_signals: list[int] = []  # a handler that is itself interrupted must wait for no lock
    signal.signal(signal.SIGINT, lambda number, _frame: pending_signals.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if pending_signals:
            signal.raise_signal(signal.SIGINT)


def _receive(job: _Job, shown_warnings: _WarningRegistry) -> None:
    """Handle the next event of a run, or the end of its process; a warning of many runs is shown once."""
    try:
        event, *content = job.news.recv()
    except (EOFError, OSError):  # the second in the middle of a message
        job.process.join()
        job.ended = FinishedRun(job.request, None, TrainingError(_exit_message(job.process.exitcode)))
        return
    if event == "ended":
        job.process.join()
        job.ended = FinishedRun(job.request, *content)
    elif event == "warned":
        warnings.warn_explicit(*content, registry=shown_warnings)
    else:
        arguments, fields = content
        getattr(job.progress, event)(*arguments, **fields)


def _exit_message(code: int) -> str:
    if code == -signal.SIGKILL:
        return "the process was killed, most likely for want of memory; give it a smaller batch_size."
    cause = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"the process ended with {cause} before the run did; run it alone to see why."


def _stop(job: _Job) -> None:
    job.process.terminate()
    job.process.join()
    job.progress.finish()


@final
class ProgressForwarder:
    """Forwards progress and warnings of a run to the parent process."""

    def __init__(self, news: Connection) -> None:
        self._news, self._one_at_a_time = news, threading.Lock()

    def send(self, event: str, *content: object) -> None:
        """Send one event."""
        with self._one_at_a_time:
            self._news.send((event, *content))

    def start(self, total: int, description: str) -> None:
        """Forward it."""
        self.send("start", (total, description), {})

    def advance(self, done: int, **fields: object) -> None:
        """Forward it."""
        self.send("advance", (done,), fields)

    def finish(self) -> None:
        """Forward it."""
        self.send("finish", (), {})

    def warn(
        self, message: Warning | str, category: type[Warning], filename: str, lineno: int, *_unused: object
    ) -> None:
        """Forward a warning, in place of `warnings.showwarning`."""
        # The other process may not have the category of a library.
        kind = RankfoldWarning if issubclass(category, RankfoldWarning) else UserWarning
        self.send("warned", str(message), kind, filename, lineno)


def _work(
    run_one: Run, request: RunRequest, threads: int, news: Connection, environment: Mapping[str, str]
) -> None:
    """Execute one run in this process and send its record or error."""
    _die_with_parent()
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(threads)
    forwarder = ProgressForwarder(news)
    warnings.showwarning = cast("Any", forwarder.warn)  # which is called with positions alone
    record: RunRecord | None = None
    error: Exception | None = None
    try:
        record = run_one(request, progress=forwarder)
    except Exception as failure:  # reported to the parent, which records it as a failed run
        error = picklable_error(failure)
    except KeyboardInterrupt:
        return
    forwarder.send("ended", record, error)


def _die_with_parent() -> None:
    """End this process when the one that began it is gone, however it went: nobody waits for the result."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a run's process is begun by another"

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
