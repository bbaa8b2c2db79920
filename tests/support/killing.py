"""Real processes that train and are killed, forked from one server that has imported everything once."""

import gc
import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__, "rankfold.runs.run", "tests.support.store_work"])


class StopAt:
    """A progress that stops the run when it hears of a step, as Ctrl-C does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def start(self, total: int, description: str) -> None:
        """Go on."""

    def advance(self, done: int, **fields: object) -> None:
        """Stop at the step."""
        if done == self.step:
            raise KeyboardInterrupt

    def finish(self) -> None:
        """Go on."""


class Told:
    """A progress that tells every event to another process."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def start(self, total: int, description: str) -> None:
        """Tell it."""
        self._connection.send("start")

    def advance(self, done: int, **fields: object) -> None:
        """Tell it."""
        self._connection.send("advance")

    def finish(self) -> None:
        """Tell it."""
        self._connection.send("finish")


def train(request: Any, connection: Connection) -> None:
    """Do one run, as the body of a process."""
    from rankfold.runs.run import run

    # The garbage collector would look through every library again in each process.
    gc.freeze()
    run(request, progress=Told(connection))


def train_and_kill(request: Any, *, after_events: int, then_wait: float) -> bool:
    """Start a run and kill it with signal 9.

    Args:
        request: The run.
        after_events: How many events of its progress to wait for.
        then_wait: At most how many seconds to wait for one more.

    Returns:
        Whether it was killed; False if it ended before.
    """
    return (
        _watch(request, lambda child, events: _kill(child, events, after_events, then_wait))
        == -signal.SIGKILL
    )


def train_to_the_end(request: Any) -> None:
    """Do a run in a process of its own."""
    code = _watch(request, lambda child, events: None)
    assert code == 0, f"the run ended with exit code {code}"


def _watch(request: Any, meddle: Callable[[Any, Connection], None]) -> int | None:
    events, tell = PROCESSES.Pipe(duplex=False)
    child = PROCESSES.Process(target=train, args=(request, tell))
    child.start()
    tell.close()  # so that the end of the child is the end of the events
    meddle(child, events)
    _drain(events)
    child.join()
    return child.exitcode


def _kill(child: Any, events: Connection, after_events: int, then_wait: float) -> None:
    try:
        for _ in range(after_events):
            events.recv()
        events.poll(then_wait)
    except EOFError:
        return
    child.kill()


def _drain(events: Connection) -> None:
    try:
        while True:
            events.recv()
    except EOFError:
        events.close()
