"""What several tasks in one adapter do to each other: a table from the runs of `interference.toml`.

Accuracy on each task of the mixture, averaged over seeds, and how far it is from the first method's: paired
over rows and seeds, with the interval that other rows and seeds would plausibly give.

    python benchmarks/interference.py benchmarks/records/interference
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rankfold.bench.statistics.comparison import (
    Interval,
    Scores,
    metric_interval,
    paired_difference,
    verdicts,
)
from rankfold.bench.suites.suite_file import read_suite
from rankfold.runs.record import RunRecord
from rankfold.runs.records import find_records

SUITE = Path(__file__).with_name("interference.toml")
WHOLE = "all four"


def scores(records: Sequence[RunRecord], task: str) -> Scores:
    """Return the predictions of one method, a run for each seed, on one task or on all of them."""
    runs = [
        [row for row in record.predictions if task == WHOLE or str(row.id).startswith(f"{task}:")]
        for record in records
    ]
    return Scores(
        np.array([row.label for row in runs[0]]),
        np.array([[row.prediction for row in run] for run in runs]),
        tuple(record.training.seed for record in records),
    )


def batched(values: Sequence[str], count: int) -> list[Sequence[str]]:
    """Return values in rows of `count`."""
    return [values[place : place + count] for place in range(0, len(values), count)]


def shown(interval: Interval, sign: str = "") -> str:
    """Return an interval in percent."""
    return (
        f"{100 * interval.value:{sign}.1f} [{100 * interval.low:{sign}.1f}, {100 * interval.high:{sign}.1f}]"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where the suite's runs are, or their archive")
    folder: Path = parser.parse_args().folder
    suite = read_suite(str(SUITE))
    records = find_records(folder)
    methods = {
        method.name: [record for record in records if record.method.name == method.name]
        for method in suite.methods
    }
    reference = next(iter(methods))
    tasks = [*str(suite.base["task"]).split("+"), WHOLE]
    print(f"| method | numbers | {' | '.join(tasks)} |")
    print(f"| --- | ---: | {' | '.join('---' for _ in tasks)} |")
    for name, runs in methods.items():
        cells = [shown(metric_interval(scores(runs, task), "accuracy")) for task in tasks]
        print(f"| `{name}` | {runs[0].parameters.trainable:,} | {' | '.join(cells)} |")
    pairs = [(name, task) for name in methods if name != reference for task in tasks]
    gains = [
        paired_difference(scores(methods[name], task), scores(methods[reference], task), "accuracy")
        for name, task in pairs
    ]
    # Every cell is a claim of its own, so all of them are corrected together.
    cells = [
        f"{shown(gain.interval, '+')} {verdict}" for gain, verdict in zip(gains, verdicts(gains), strict=True)
    ]
    for name, row in zip(dict.fromkeys(name for name, _ in pairs), batched(cells, len(tasks)), strict=True):
        print(f"| `{name}` less `{reference}` | | {' | '.join(row)} |")


if __name__ == "__main__":
    main()
