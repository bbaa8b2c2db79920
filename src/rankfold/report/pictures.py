"""Grids of pictures: a row for each caption, a column for the data, the base model and each method.

The pictures are those that runs keep in `examples.jsonl`; they become part of the page, within a limit.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

from rankfold.runs.examples import HeldOutExample, read_examples
from rankfold.runs.record import RunRecord

OWN = "adapter"
"""The name that a run gives its own pictures; the others, such as the base model's, are alike in all runs."""

_MOST_ROWS, _MOST_COLUMNS = 8, 10
_MOST_CHARACTERS = 6_000_000


@final
@dataclass(frozen=True, slots=True)
class PictureGrid:
    """Pictures by caption and origin.

    Args:
        columns: Names of the origins: the data, the base model, the methods.
        rows: Each caption with its pictures as data URLs; an empty one is missing.
        note: What is left out; empty if nothing is.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    note: str = ""


def run_grid(examples: Sequence[HeldOutExample], own: str = OWN) -> PictureGrid | None:
    """Return the pictures of one run; None if it kept none.

    Args:
        examples: Of the run.
        own: The heading of its own pictures.
    """
    pictured = [item for item in examples if item.pictures]
    if not pictured:
        return None
    names = list(dict.fromkeys(name for item in pictured for name in item.pictures))
    rows = tuple(
        (" · ".join(item.texts.values()), tuple(item.pictures.get(name, "") for name in names))
        for item in pictured
    )
    return _limit(PictureGrid(tuple(own if name == OWN else name for name in names), rows))


def study_grid(runs: Iterable[tuple[str, RunRecord]], folder: Path) -> PictureGrid | None:
    """Return the pictures of the first run of each method that kept some; None if none did.

    Args:
        runs: With the label of their method.
        folder: The folder that has a folder for each run.
    """
    grids: dict[str, PictureGrid] = {}
    for label, record in runs:
        if label not in grids and (grid := run_grid(_examples_of(record, folder), label)) is not None:
            grids[label] = grid
    if not grids:
        return None
    columns = tuple(dict.fromkeys(name for grid in grids.values() for name in grid.columns))
    cells = {
        (caption, name): picture
        for grid in grids.values()
        for caption, pictures in grid.rows
        for name, picture in zip(grid.columns, pictures, strict=True)
    }
    captions = dict.fromkeys(caption for grid in grids.values() for caption, _ in grid.rows)
    rows = tuple((caption, tuple(cells.get((caption, name), "") for name in columns)) for caption in captions)
    return _limit(PictureGrid(columns, rows))


def _examples_of(record: RunRecord, folder: Path) -> list[HeldOutExample]:
    """Return the examples beside a run; none where its folder has been moved away."""
    return read_examples(folder / record.name) or read_examples(record.request.out)


def _limit(grid: PictureGrid) -> PictureGrid:
    """Return as much of a grid as a page takes, and a note on the rest."""
    rows = [(caption, pictures[:_MOST_COLUMNS]) for caption, pictures in grid.rows[:_MOST_ROWS]]
    rows = list(_within(rows))
    left_out = len(grid.rows) - len(rows), max(0, len(grid.columns) - _MOST_COLUMNS)
    note = ""
    if any(left_out):
        rest = f"{left_out[0]} more captions and {left_out[1]} more columns"
        note = f"{rest} are in examples.jsonl beside the runs."
    return replace(grid, columns=grid.columns[:_MOST_COLUMNS], rows=tuple(rows), note=note)


def _within(rows: Iterable[tuple[str, tuple[str, ...]]]) -> Iterator[tuple[str, tuple[str, ...]]]:
    size = 0
    for caption, pictures in rows:
        size += sum(map(len, pictures))
        if size > _MOST_CHARACTERS:
            return
        yield caption, pictures
