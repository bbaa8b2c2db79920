"""Which data to read, and how."""

from dataclasses import dataclass

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
        label_names: Class names in the order of their ids, where they are known already.
        holds_out: Take as validation split a tenth of the training split, even where there is another.
        mixture: How many training rows each task of a mixture has, one of `MIXTURES`.
    """

    task: str | None = None
    data: str | None = None
    data_root: str | None = None
    kind: str | None = None
    columns: Columns = Columns()
    label_names: tuple[str, ...] | None = None
    holds_out: bool = False
    mixture: str = MIXTURES[0]
