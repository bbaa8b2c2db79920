"""Real processes, some of them killed, forked from one server that has imported everything once."""

import contextlib
import gc
import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
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


def call(words: Sequence[object], *paths: str) -> None:
    """Call the command line with packages on further paths, as the body of a process."""
    gc.freeze()
    sys.path[:0] = paths
    from rankfold.cli.main import cli

    cli([str(word) for word in words])


def call_in_folder(words: Sequence[object], folder: Path, errors: Path) -> None:
    """Call the command line in a folder, with standard error in a file, as the body of a process."""
    import torch

    torch.set_num_threads(1)
    os.chdir(folder)
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    call(words)


def run_script(path: Path, environment: Mapping[str, str], output: Path) -> None:
    """Run a script in the folder of its output, as the body of a process."""
    gc.freeze()
    os.environ.update(environment)
    os.chdir(output.parent)
    sys.path.insert(0, str(path.parent))
    with output.open("w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        runpy.run_path(str(path), run_name="__main__")


def start(body: Callable[..., None], *arguments: object) -> Any:
    """Start a process with this body."""
    child = PROCESSES.Process(target=body, args=arguments)
    child.start()
    return child


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
