"""Which data to read, and how."""

from dataclasses import dataclass
from pathlib import Path

from rankfold.train.data.columns import Columns

MIXTURES = ("equal", "all")
"""As many training rows of each task as the smallest has, or all of them."""


@dataclass(frozen=True, slots=True)
class TaskRequest:
    """Which data to read, and how.

    Args:
        task: The name of a task: it gives the metric and the classes, and finds the data if `data` does not.
            Several names with "+" between them are a mixture.
        data: A folder of splits, a file or a hub id.
        data_root: The folder that has a folder for each task; that of `RANKFOLD_DATA` if None.
        kind: What is learned, where it should not be inferred.
        columns: Columns whose names cannot be guessed, and the one that says whose a row is.
        learned: Class names in the order in which a model has learned them, if one has.
        holds_out: Take as validation split a tenth of the training split, even where there is another.
        mixture: How many training rows each task of a mixture has, one of `MIXTURES`.
    """

    task: str | None = None
    data: str | None = None
    data_root: str | None = None
    kind: str | None = None
    columns: Columns = Columns()
    learned: tuple[str, ...] | None = None
    holds_out: bool = False
    mixture: str = MIXTURES[0]

    @property
    def name(self) -> str:
        """What the task is called: by its name, or as its data is called without folder and ending."""
        data = self.data or ""
        return self.task or Path(data).name.partition(".")[0] or data
