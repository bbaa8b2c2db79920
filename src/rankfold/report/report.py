"""Everything that a report says, as a value: studies, and what they say to the claims of their suite."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

from rankfold.bench.statistics.claims import Judgement
from rankfold.bench.step_times import StepTime, read_step_times
from rankfold.bench.suite.kept import judge_suite, kept_suite
from rankfold.bench.suite.named_runs import model_of, named_runs, task_of
from rankfold.bench.suite.rows import Place
from rankfold.bench.suite.suite import Suite
from rankfold.report.study import Study, make_studies
from rankfold.runs.record import RunRecord


@final
@dataclass(frozen=True, slots=True)
class Report:
    """What the terminal, the page, Markdown and CSV are made from.

    Attributes:
        studies: One for each model and task; at least one.
        judgements: What the runs say to each claim of their suite.
        name: The suite's name; empty if the runs are of none.
        description: What the suite shows, in a sentence.
        missing: Of which model and task of the suite runs are not there, and why if that is known, in a
            sentence each.
    """

    studies: tuple[Study, ...]
    judgements: tuple[Judgement, ...] = ()
    name: str = ""
    description: str = ""
    missing: tuple[str, ...] = ()


def make_report(
    records: Sequence[RunRecord],
    folder: Path | None = None,
    *,
    reference: str | None = None,
    reasons: Mapping[str, str] | None = None,
) -> Report:
    """Compare runs, and judge the claims of the suite they are of.

    Args:
        records: The runs. Rows have the order of the suite, or else that of their first runs.
        folder: Where they are; the suite that is kept there says what was asked.
        reference: Label of the row that the others are held against; the first row if not given.
        reasons: Why no run of a model and a task began, as `rankfold.bench.suite.outcome.never_began` has it.

    Raises:
        DataError: If there are no runs, or the suite cannot be read.
        SpecError: If no study has a row with the reference's label.
    """
    suite = kept_suite(folder) if folder else None
    if suite is None or folder is None:
        return Report(tuple(make_studies(records, reference=reference)))
    names = {name: label for name, (_, label) in named_runs(suite).items()}
    place = {name: number for number, name in enumerate(names)}
    ordered = sorted(records, key=lambda record: place.get(record.name, len(place)))
    studies = make_studies(ordered, reference=reference, names=names)
    speeds = read_step_times(folder)
    timed = (replace(study, step_times=_step_times(study, speeds)) for study in studies)
    judgements = tuple(judge_suite(suite, records))
    missing = tuple(_missing(suite, records, reasons or {}))
    return Report(tuple(timed), judgements, suite.name, suite.description, missing)


def _missing(suite: Suite, records: Sequence[RunRecord], reasons: Mapping[str, str]) -> Iterator[str]:
    """Yield a sentence for each model and task of a suite of which runs are not there, not even failed."""
    present = {record.name for record in records}
    begun: dict[Place, list[bool]] = {}
    for name, (place, _) in named_runs(suite).items():
        begun.setdefault(place, []).append(name in present)
    for place, there in begun.items():
        name = f"{model_of(suite, place)} on {task_of(suite, place)}"
        if not any(there):
            yield f"There is no run of {name}: {reasons.get(name, 'none that was asked for began')}."
        elif not all(there):
            yield f"Of {name} there are {sum(there)} of {len(there)} runs; run the suite again to go on."


def _step_times(study: Study, speeds: Sequence[StepTime]) -> Mapping[str, StepTime]:
    """Return how long a step of each row takes beside the reference's, if the reference is the study's."""
    return {
        each.label: each
        for each in speeds
        if (each.task, each.reference) == (study.task, study.rows[0].label)
        and Path(each.model).name == Path(study.model).name
    }
