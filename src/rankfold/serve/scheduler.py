"""Scheduler: requests of many clients wait in a queue and are answered in micro-batches by one thread.

The thread owns the model. In each turn it runs one batch of rows of similar length, lets new prompts join
those that are being continued, and adds one token to each of these.
"""

import contextlib
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any, final

from rankfold.errors import RankfoldError, unknown_name
from rankfold.serve.decoding import Decoder, DecodingRow, Prompt

GENERATE = "generate"
"""The operation of rows that are continued."""

Operation = Callable[[Sequence[Any], Sequence[str | None]], Sequence[Any]]
"""Takes the inputs of the rows of a batch, and their adapters; returns the answer to each."""

_CLOSEST = 2.0
"""Rows run in one batch with the oldest if none is longer by more than this factor."""


class QueueFullError(RankfoldError, RuntimeError):
    """More rows than the queue holds, or than a key may have in it.

    Args:
        message: Says which.
        retry_after: Seconds after which there should be room.
    """

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineError(RankfoldError, TimeoutError):
    """A request that was not answered in its time."""


class ClosedError(RankfoldError, RuntimeError):
    """A request that comes while the scheduler ends."""


class CancelledError(RankfoldError, RuntimeError):
    """A request that its client has given up."""


@final
@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a scheduler.

    Args:
        batch_rows: The most rows of a batch.
        wait: Seconds that a row waits for others to fill its batch.
        queue_rows: The most rows that wait or run.
        key_rows: The most of them of one key, unless the key has a number of its own.
    """

    batch_rows: int = 32
    wait: float = 0.003
    queue_rows: int = 1024
    key_rows: int = 512


@final
@dataclass(slots=True)
class SchedulerStats:
    """Counts of a scheduler since it was made.

    Args:
        batches: Batches that ran, by operation.
        rows: Rows in them, by operation.
        seconds: Their time, by operation.
        waiting: Rows that wait now.
        decoding: Rows that are being continued now.
        tokens: Tokens that were generated.
    """

    batches: Counter[str] = field(default_factory=Counter[str])
    rows: Counter[str] = field(default_factory=Counter[str])
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    waiting: int = 0
    decoding: int = 0
    tokens: int = 0


@final
class Ticket:
    """A request in the scheduler.

    Args:
        operation: Its operation.
        key: Whose it is.
        deadline: The time on the monotonic clock by which it is to be answered.
        rows: How many rows it has.

    Attributes:
        result: The answers, in the order of the rows, or the error.
    """

    def __init__(self, operation: str, key: str, deadline: float, rows: int) -> None:
        self.operation, self.key, self.deadline, self.count = operation, key, deadline, rows
        self.result: Future[list[Any]] = Future()
        self.answers: dict[int, Any] = {}

    def cancel(self) -> None:
        """Give the request up: its rows leave the queue, and the batch that is being continued."""
        self.fail(CancelledError("the request was given up."))

    def fail(self, error: Exception) -> None:
        """End the request with an error, if it has not ended yet."""
        with contextlib.suppress(InvalidStateError):
            self.result.set_exception(error)

    def answer(self, index: int, value: Any) -> None:
        """Set the answer to one row; the last one ends the request."""
        self.answers[index] = value
        if len(self.answers) == self.count:
            with contextlib.suppress(InvalidStateError):
                self.result.set_result([self.answers[place] for place in range(self.count)])


@final
@dataclass(frozen=True, slots=True, eq=False)
class _Row:
    """One row of a request, in the queue."""

    ticket: Ticket
    index: int
    value: Any
    adapter: str | None
    length: int
    arrival: float


@final
class Scheduler:
    """A queue of requests, and the thread that answers them in batches.

    Args:
        operations: How the rows of each operation are answered; `generate` is the decoder's.
        decoder: Continues prompts; None if the model does not.
        limits: Of the batches and of the queue.
    """

    def __init__(
        self,
        operations: Mapping[str, Operation],
        decoder: Decoder | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._operations, self._decoder, self.limits = operations, decoder, limits or Limits()
        self._queue: list[_Row] = []
        self._decoding: dict[DecodingRow, _Row] = {}
        self._by_key: Counter[str] = Counter()
        self._changed = threading.Condition()
        self._is_open = True
        self._row_seconds = 0.01
        self._stats = SchedulerStats()
        self._thread = threading.Thread(target=self._work, name="rankfold-scheduler", daemon=True)
        self._thread.start()

    @property
    def stats(self) -> SchedulerStats:
        """Counts since the scheduler was made."""
        self._stats.waiting, self._stats.decoding = len(self._queue), len(self._decoding)
        return self._stats

    @property
    def is_alive(self) -> bool:
        """Whether requests are answered."""
        return self._is_open and self._thread.is_alive()

    def submit(
        self,
        operation: str,
        rows: Sequence[tuple[Any, str | None, int]],
        *,
        timeout: float,
        key: str = "",
        key_rows: int | None = None,
    ) -> Ticket:
        """Put a request into the queue.

        Args:
            operation: One of the operations, or `generate`, whose rows are `Prompt`.
            rows: The input, the adapter and the length of each row.
            timeout: Seconds after which it fails.
            key: Whose it is, for the limit of a key.
            key_rows: The most rows of this key; that of the limits if None.

        Raises:
            QueueFullError: If there is no room for it.
            SpecError: If there is no such operation.
            ClosedError: If the scheduler ends.
        """
        if operation not in self._operations and not (operation == GENERATE and self._decoder):
            raise unknown_name("operation", operation, self._operations)
        now = time.monotonic()
        ticket = Ticket(operation, key, now + timeout, len(rows))
        with self._changed:
            if not self._is_open:
                raise ClosedError("the server is shutting down; send the request to another one.")
            self._check_room(len(rows), key, self.limits.key_rows if key_rows is None else key_rows)
            self._by_key[key] += len(rows)
            ticket.result.add_done_callback(lambda _: self._release(key, len(rows)))
            self._queue += [
                _Row(ticket, index, value, adapter, length, now)
                for index, (value, adapter, length) in enumerate(rows)
            ]
            self._changed.notify()
        return ticket

    def _check_room(self, rows: int, key: str, key_rows: int) -> None:
        total = self._by_key.total()
        retry_after = max(1, math.ceil(total * self._row_seconds))
        if self._by_key[key] + rows > key_rows:
            raise QueueFullError(
                f"this key may have {key_rows} rows waiting or running, and has {self._by_key[key]}; "
                f"{_remedy(rows, key_rows)}",
                retry_after,
            )
        if total + rows > self.limits.queue_rows:
            raise QueueFullError(
                f"the server has {total} of {self.limits.queue_rows} rows waiting or running; "
                f"{_remedy(rows, self.limits.queue_rows)}",
                retry_after,
            )

    def _release(self, key: str, rows: int) -> None:
        with self._changed:
            self._by_key[key] -= rows
            if not self._by_key[key]:
                del self._by_key[key]
            self._changed.notify()

    def close(self, *, timeout: float | None = None) -> None:
        """Take no more requests, answer those that wait, and end the thread.

        Args:
            timeout: Seconds after which those that are left fail.
        """
        with self._changed:
            self._is_open = False
            self._changed.notify()
        self._thread.join(timeout)
        if self._thread.is_alive():
            for row in (*self._queue, *self._decoding.values()):
                row.ticket.fail(ClosedError("the server has shut down; send the request to another one."))
            self._thread.join()

    # The thread.

    def _work(self) -> None:
        while True:
            with self._changed:
                self._drop_ended()
                batch, prompts = self._take_batch(), self._take_prompts()
                if not (batch or prompts or self._decoding):
                    if not (self._is_open or self._queue):
                        return
                    self._changed.wait(self._idle_seconds())
                    continue
            self._run(batch)
            self._join(prompts)
            self._step()

    def _drop_ended(self) -> None:
        """Remove rows of requests that have ended, and end those whose time is over."""
        now = time.monotonic()
        for row in (*self._queue, *self._decoding.values()):
            if row.ticket.deadline <= now:
                row.ticket.fail(
                    DeadlineError("the request was not answered in its time; try again, or send fewer rows.")
                )
        self._queue = [row for row in self._queue if not row.ticket.result.done()]
        ended = [row for row, own in self._decoding.items() if own.ticket.result.done()]
        if ended and self._decoder is not None:
            self._decoder.drop(ended)
            for row in ended:
                del self._decoding[row]

    def _take_batch(self) -> list[_Row]:
        """Return the rows of the next batch, which leave the queue; none if they wait for others still."""
        oldest = next((row for row in self._queue if row.ticket.operation != GENERATE), None)
        if oldest is None:
            return []
        size = self.limits.batch_rows
        alike = [
            row
            for row in self._queue
            if row.ticket.operation == oldest.ticket.operation
            and oldest.length / _CLOSEST <= row.length <= oldest.length * _CLOSEST
        ]
        has_time = time.monotonic() - oldest.arrival < self.limits.wait
        if len(alike) < size and has_time and self._is_open and not self._decoding:
            return []
        nearest = sorted(alike, key=lambda row: abs(row.length - oldest.length))[:size]
        self._remove(nearest)
        return nearest

    def _take_prompts(self) -> list[_Row]:
        if self._decoder is None:
            return []
        room = self._decoder.most_rows - len(self._decoding)
        prompts = [row for row in self._queue if row.ticket.operation == GENERATE][:room]
        self._remove(prompts)
        return prompts

    def _remove(self, rows: Sequence[_Row]) -> None:
        leaving = set(map(id, rows))
        self._queue = [row for row in self._queue if id(row) not in leaving]

    def _idle_seconds(self) -> float | None:
        """Return how long there is nothing to do; None until the next request."""
        if not self._queue:
            return None
        oldest = min(row.arrival for row in self._queue)
        return max(self.limits.wait - (time.monotonic() - oldest), 1e-4)

    def _run(self, rows: Sequence[_Row]) -> None:
        """Answer a batch; where it fails, each request alone, so that none fails because of another."""
        if not rows:
            return
        operation = rows[0].ticket.operation
        started = time.monotonic()
        try:
            answers = self._operations[operation]([row.value for row in rows], [row.adapter for row in rows])
        except Exception as error:
            tickets = list(dict.fromkeys(row.ticket for row in rows))
            if len(tickets) == 1:
                tickets[0].fail(error)
                return
            for ticket in tickets:
                self._run([row for row in rows if row.ticket is ticket])
            return
        for row, answer in zip(rows, answers, strict=True):
            row.ticket.answer(row.index, answer)
        self._count(operation, len(rows), time.monotonic() - started)

    def _join(self, rows: Sequence[_Row]) -> None:
        if not rows or self._decoder is None:
            return
        started = time.monotonic()
        prompts: list[Prompt] = [row.value for row in rows]
        try:
            joined = self._decoder.join(prompts, [row.adapter for row in rows])
        except Exception as error:
            if len(rows) == 1:
                rows[0].ticket.fail(error)
                return
            for row in rows:
                self._join([row])
            return
        self._decoding |= zip(joined, rows, strict=True)
        self._stats.tokens += len(joined)
        self._hand_out()
        self._count("prefill", len(rows), time.monotonic() - started)

    def _step(self) -> None:
        if not self._decoding or self._decoder is None:
            return
        started, count = time.monotonic(), len(self._decoding)
        try:
            self._decoder.step()
        except Exception as error:
            for row in self._decoding.values():
                row.ticket.fail(error)
            self._decoder.drop(list(self._decoding))
            self._decoding.clear()
            return
        self._stats.tokens += count
        self._hand_out()
        self._count("decode", count, time.monotonic() - started)

    def _hand_out(self) -> None:
        """Answer the rows that are done."""
        for row in [row for row in self._decoding if row.result is not None]:
            waiting = self._decoding.pop(row)
            if isinstance(row.result, Exception):
                waiting.ticket.fail(row.result)
            else:
                waiting.ticket.answer(waiting.index, row.result)

    def _count(self, operation: str, rows: int, seconds: float) -> None:
        stats = self._stats
        stats.batches[operation] += 1
        stats.rows[operation] += rows
        stats.seconds[operation] = stats.seconds.get(operation, 0.0) + seconds
        self._row_seconds += 0.1 * (seconds / rows - self._row_seconds)


def _remedy(rows: int, most: int) -> str:
    return "send fewer rows in a request." if rows > most else "try again later."
