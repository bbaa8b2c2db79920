"""Terminal output: data on stdout, all else on stderr. The only file that imports rich."""

import json
import logging
import math
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO, cast, final

import click
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as LiveDisplay
from rich.table import Table
from rich.text import Text

from rankfold.progress import SECONDS_LEFT, Progress

if TYPE_CHECKING:
    from rankfold.export.verify import Check

LINE_INTERVAL_SECONDS = 10.0

_UNWRAPPED_COLUMNS = 400
_GAP = 2


def note(text: str) -> None:
    """Print one line for the user on stderr."""
    click.echo(text, err=True)


def print_json(value: object) -> None:
    """Print a value as JSON on stdout; a number that is not finite becomes null."""
    click.echo(json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False))


def _finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in cast("Mapping[object, object]", value).items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in cast("Sequence[object]", value)]
    return value


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str | None = None,
    left: Sequence[int] = (0,),
    caption: str | None = None,
) -> None:
    """Print a table on stdout.

    Args:
        columns: Headings.
        rows: One text per column and row; shown as it is, never read as markup.
        title: A line above.
        left: Indices of the columns that hold words; the others are aligned to the right, as numbers are.
        caption: A line below.
    """
    stdout = Console(file=sys.stdout, highlight=False)
    # A pipe has no width: a file or a test must get whole rows.
    console = (
        stdout if stdout.is_terminal else Console(file=sys.stdout, width=_UNWRAPPED_COLUMNS, highlight=False)
    )
    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        collapse_padding=console.is_terminal,  # of which there is little room
        header_style="bold",
    )
    widths = _widths([*zip(columns, *rows, strict=True)], console.width)
    for index, (name, width) in enumerate(zip(columns, widths, strict=True)):
        justify = "left" if index in left else "right"
        table.add_column(Text(name), justify=justify, overflow="fold", width=width)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    with console.capture() as capture:
        if title:
            console.print(Text(title, style="bold"))
        console.print(table)
        if caption:
            console.print(Text(caption))
    for line in capture.get().splitlines():
        click.echo(line.rstrip())


def print_checks(checks: "Sequence[Check]", title: str) -> None:
    """Print the checks of a certificate as a table."""
    rows = [[check.part, check.state, check.detail] for check in checks]
    print_table(["certificate", "", "result"], rows, title=title, left=(0, 1, 2))


def _widths(columns: Sequence[Sequence[str]], room: int) -> Sequence[int | None]:
    """Return the widths of columns in which no word is broken, though lines are; none if there is no room."""
    least = [max(cell_len(word) for cell in cells for word in [*cell.split(), ""]) for cells in columns]
    missing = [max(map(cell_len, cells)) - width for cells, width in zip(columns, least, strict=True)]
    spare = room - sum(least) - _GAP * (len(columns) - 1)
    if spare < 0:
        return [None] * len(columns)
    widths = list(least)
    for index in sorted(range(len(columns)), key=missing.__getitem__):
        extra_width = min(missing[index], spare)
        widths[index] += extra_width
        spare -= extra_width
    return widths


@contextmanager
def progress_screen() -> Generator[Callable[[], Progress]]:
    """Give a maker of progress bars; several may run at once, one under the other.

    With a terminal they are live bars with the time left; without one, a plain line every ten seconds.
    """
    console = Console(stderr=True)
    if not console.is_terminal or console.is_dumb_terminal:
        yield lambda: PlainBar(sys.stderr)
        return
    live = LiveDisplay(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}", markup=False),
        TextColumn("{task.fields[shown]}", markup=False),
        console=console,
        transient=True,
        redirect_stdout=False,
    )
    with live:
        yield lambda: LiveBar(live)


@final
@dataclass
class LiveBar:
    """One line of rich's live display."""

    live: LiveDisplay
    clock: Callable[[], float] = time.monotonic
    _task: TaskID | None = None
    _total: int = 0
    _began: float = 0.0

    def start(self, total: int, description: str) -> None:
        """Begin work of `total` units."""
        self.finish()
        self._total, self._began = total, self.clock()
        self._task = self.live.add_task(description, total=total, shown="", left="")

    def advance(self, done: int, **fields: object) -> None:
        """State that `done` units are finished."""
        if self._task is not None:
            left = _left_text(fields, self.clock() - self._began, done, self._total)
            self.live.update(self._task, completed=done, left=left, shown=_fields_text(fields))

    def finish(self) -> None:
        """Take the line away."""
        if self._task is not None:
            self.live.remove_task(self._task)
            self._task = None


@final
@dataclass
class PlainBar:
    """Progress as plain lines: the first, the last, and one every ten seconds between them."""

    stream: TextIO
    clock: Callable[[], float] = time.monotonic
    _total: int = 0
    _done: int = 0
    _description: str = ""
    _began: float = 0.0
    _printed: float = field(default=-math.inf)

    def start(self, total: int, description: str) -> None:
        """Begin work of `total` units."""
        self._total, self._done, self._description = total, 0, description
        self._began = self.clock()
        self._print("")

    def advance(self, done: int, **fields: object) -> None:
        """State that `done` units are finished; prints only when the last line is old enough."""
        self._done = done
        now = self.clock()
        if now - self._printed < LINE_INTERVAL_SECONDS:
            return
        left = _left_text(fields, now - self._began, done, self._total)
        self._print(f", {left} {_fields_text(fields)}")

    def finish(self) -> None:
        """Print how long it took, once."""
        if self._description:
            self._print(f" in {_seconds_text(self.clock() - self._began)}")
            self._description = ""

    def _print(self, tail: str) -> None:
        click.echo(f"{self._description}: {self._done}/{self._total}{tail}".rstrip(), file=self.stream)
        self._printed = self.clock()


def _left_text(fields: Mapping[str, object], elapsed: float, done: int, total: int) -> str:
    """Return the time left: as the work itself expects, else as if all units took the same."""
    seconds = fields.get(SECONDS_LEFT)
    if not isinstance(seconds, int | float):
        seconds = elapsed / max(done, 1) * max(total - done, 0)
    return f"{_seconds_text(seconds)} left"


def _fields_text(fields: Mapping[str, object]) -> str:
    texts = (
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in fields.items()
        if name != SECONDS_LEFT
    )
    return "  ".join(texts)


def _seconds_text(seconds: float) -> str:
    minutes, seconds_left = divmod(round(seconds), 60)
    return f"{minutes} min {seconds_left:02d} s" if minutes else f"{seconds_left} s"


@final
class _Notes(logging.Handler):
    """Filter that shows every message once, however often its data is read."""

    def __init__(self) -> None:
        super().__init__()
        self._shown: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message not in self._shown:
            self._shown.add(message)
            note(message)


@contextmanager
def shown_notes() -> Generator[None]:
    """Show the log of rankfold, from INFO on, while the block runs."""
    logger = logging.getLogger("rankfold")
    handler, level = _Notes(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@contextmanager
def kept_when_interrupted(*, overwrite: bool) -> Generator[None]:
    """Say, when Ctrl-C ends the block, that nothing is lost, and which command goes on."""
    try:
        yield
    except KeyboardInterrupt:
        same = "the same command without --overwrite" if overwrite else "the same command"
        note(f"what is done is kept; {same} goes on from there.")
        raise
