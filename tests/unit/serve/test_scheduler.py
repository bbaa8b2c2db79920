"""The scheduler batches rows that are alike, keeps its limits, and ends every request exactly once."""

import threading
import time
from concurrent.futures import wait

import pytest

from rankfold.errors import DataError, SpecError
from rankfold.serve.scheduler import (
    CancelledError,
    ClosedError,
    DeadlineError,
    Limits,
    QueueFullError,
    Scheduler,
)

ECHO = "echo"


class Recorder:
    """An operation that returns its inputs with their adapters; it waits for `open` before each batch."""

    def __init__(self):
        self.batches = []
        self.open = threading.Event()

    def __call__(self, values, adapters):
        self.batches.append(list(values))
        assert self.open.wait(30)
        if "bad" in values:
            raise DataError("a bad row.")
        return list(zip(values, adapters, strict=True))


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def scheduler(recorder):
    made = Scheduler({ECHO: recorder}, limits=Limits(4, 0.001, 16, 8))
    yield made
    recorder.open.set()
    made.close()


def submit(scheduler, values, *, timeout=30.0, key="", lengths=None):
    rows = [(value, f"of-{value}", (lengths or {}).get(value, 10)) for value in values]
    return scheduler.submit(ECHO, rows, timeout=timeout, key=key)


def hold(scheduler, recorder):
    """Occupy the thread with a first batch, so that others have to wait."""
    ticket = submit(scheduler, ["first"])
    while not recorder.batches:
        time.sleep(0.001)
    return ticket


def test_every_row_gets_its_own_answer_in_batches_of_at_most_four(scheduler, recorder):
    first = hold(scheduler, recorder)
    tickets = [submit(scheduler, [f"{name}{index}" for index in range(3)], key=name) for name in "abcd"]
    recorder.open.set()
    for name, ticket in zip("abcd", tickets, strict=True):
        assert ticket.result.result(30) == [(f"{name}{index}", f"of-{name}{index}") for index in range(3)]
    assert first.result.result(30) == [("first", "of-first")]
    assert [len(batch) for batch in recorder.batches] == [1, 4, 4, 4]


def test_rows_of_other_lengths_run_in_batches_of_their_own(scheduler, recorder):
    hold(scheduler, recorder)
    lengths = {"long": 100, "longer": 150, "short": 10, "shorter": 6}
    tickets = [
        submit(scheduler, [value], lengths=lengths) for value in ("long", "short", "longer", "shorter")
    ]
    recorder.open.set()
    wait([ticket.result for ticket in tickets], 30)
    assert recorder.batches[1:] == [["long", "longer"], ["short", "shorter"]]


def test_a_bad_row_fails_its_own_request_only(scheduler, recorder):
    hold(scheduler, recorder)
    tickets = [submit(scheduler, [value]) for value in ("a", "bad", "b")]
    recorder.open.set()
    assert tickets[0].result.result(30) == [("a", "of-a")]
    assert tickets[2].result.result(30) == [("b", "of-b")]
    with pytest.raises(DataError, match="bad row"):
        tickets[1].result.result(30)


def test_queue_and_keys_are_bounded_and_say_when_to_try_again(scheduler, recorder):
    hold(scheduler, recorder)
    submit(scheduler, range(8), key="a")
    with pytest.raises(QueueFullError, match="this key may have 8 rows") as refusal:
        submit(scheduler, range(1), key="a")
    assert refusal.value.retry_after >= 1
    with pytest.raises(QueueFullError, match="send fewer rows"):
        submit(scheduler, range(9), key="b")
    last = submit(scheduler, range(7), key="b")
    with pytest.raises(QueueFullError, match="16 of 16 rows"):
        submit(scheduler, range(1), key="c")
    recorder.open.set()
    last.result.result(30)
    assert submit(scheduler, range(8), key="a").result.result(30)


def test_requests_that_are_late_or_given_up_do_not_run(scheduler, recorder):
    hold(scheduler, recorder)
    late, cancelled, other = submit(scheduler, ["late"], timeout=0), submit(scheduler, ["gone"]), None
    cancelled.cancel()
    other = submit(scheduler, ["other"])
    recorder.open.set()
    assert other.result.result(30)
    with pytest.raises(DeadlineError):
        late.result.result(30)
    with pytest.raises(CancelledError):
        cancelled.result.result(30)
    assert recorder.batches[1:] == [["other"]]


def test_close_answers_what_waits_and_refuses_the_rest(scheduler, recorder):
    hold(scheduler, recorder)
    waiting = submit(scheduler, ["a", "b"])
    closing = threading.Thread(target=scheduler.close)
    closing.start()
    while scheduler.is_alive:
        time.sleep(0.001)
    with pytest.raises(ClosedError):
        submit(scheduler, ["c"])
    recorder.open.set()
    closing.join(30)
    assert len(waiting.result.result(0)) == 2


def test_unknown_operation_is_refused(scheduler):
    with pytest.raises(SpecError, match="unknown operation 'generate'"):
        scheduler.submit("generate", [("a", None, 1)], timeout=1)
