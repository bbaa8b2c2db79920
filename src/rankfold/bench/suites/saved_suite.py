"""A suite saved beside its records (`suite.json`), so that a later report knows its claims."""

import json
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from rankfold.bench.statistics.claims import JudgedClaim, judge
from rankfold.bench.suites.suite import Suite, first_trial_names, model_of, runs_by_name, task_of
from rankfold.errors import DataError, OutputExistsError
from rankfold.files import write_into
from rankfold.runs.record import NAME as RECORD_NAME
from rankfold.runs.record import RunRecord
from rankfold.runs.records import ARCHIVE_NAME, read_archive
from rankfold.runs.request import IDENTITY_FIELDS

NAME = "suite.json"


def save_suite(suite: Suite, folder: Path) -> None:
    """Write a suite into the folder of its runs; where it was run is no part of it.

    Raises:
        SpecError: If it cannot be written.
    """
    base = {name: value for name, value in suite.base.items() if name in IDENTITY_FIELDS}
    write_into(folder, NAME, _adapter().dump_json(replace(suite, base=base), indent=1) + b"\n")


def load_suite(folder: Path) -> Suite | None:
    """Return the suite whose runs a folder holds, or None if they are of no suite.

    Raises:
        DataError: If it cannot be read.
    """
    file = folder / NAME
    try:
        return _adapter().validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise DataError(f"cannot read '{file}'; run the suite again, which writes it anew.") from error


def join_saved_suite(suite: Suite, folder: Path) -> Suite:
    """Join a suite with the one saved in its folder: their seeds, tasks and models.

    Their runs stay there, so they go on to be rows of the suite and to be asked its claims.

    Raises:
        OutputExistsError: If the folder has runs of another name, or of methods that this suite lacks:
            their names and claims would be lost.
    """
    try:
        saved = load_suite(folder)
    except DataError:  # to run the suite again is how a damaged file is mended
        return suite
    if saved is None or not _has_runs(saved, folder):
        return suite
    if difference := _describe_missing(saved, suite):
        raise OutputExistsError(
            f"'{folder}' holds the runs of another suite: {difference}; "
            "choose another folder, or add --overwrite to replace what is known of it."
        )
    return replace(
        suite,
        seeds=tuple(dict.fromkeys((*saved.seeds, *suite.seeds))),
        tasks={**saved.tasks, **suite.tasks},
        models=tuple(dict.fromkeys((*saved.models, *suite.models))),
    )


def judge_suite(suite: Suite, records: Iterable[RunRecord]) -> list[JudgedClaim]:
    """Return the verdicts of a suite's records on its claims.

    Args:
        suite: The suite.
        records: Its runs; what is none of them, or did not end well, is left out.
    """
    by_name = {record.name: record for record in records if record.status == "done"}
    rows = {
        condition: {row.label: list[RunRecord]() for row in suite.variants_at(condition)}
        for condition in suite.conditions()
    }
    for name, (condition, label) in runs_by_name(suite).items():
        if name in by_name:
            rows[condition][label].append(by_name[name])
    studies = {
        (model_of(suite, condition), task_of(suite, condition)): variants
        for condition, variants in rows.items()
    }
    reference = suite.labels()[0] if suite.rules else None
    return judge(suite.claims, studies, rules=suite.rules, reference=reference)


def _has_runs(suite: Suite, folder: Path) -> bool:
    """Return whether a run or trial is in a folder; one that failed at once has left nothing to lose."""
    archive = read_archive(folder / ARCHIVE_NAME)
    names = [*first_trial_names(suite), *runs_by_name(suite)]
    return any(name in archive or (folder / name / RECORD_NAME).is_file() for name in names)


def _describe_missing(saved: Suite, suite: Suite) -> str | None:
    """Describe a part of a saved suite that another one lacks; None if it has all parts."""
    if saved.name != suite.name:
        return f"it is called '{saved.name}', and this one '{suite.name}'"
    for kind, before, now in (("tasks", saved.tasks, suite.tasks), ("models", saved.models, suite.models)):
        if bool(before) != bool(now):  # then its folders are named in another way
            return f"only one of the two has {kind} of its own"
    missing = _methods(saved).items() - _methods(suite).items()
    return f"the method '{min(missing)[0]}' is not in this one, or is another" if missing else None


def _methods(suite: Suite) -> dict[str, str]:
    """Return name, options and settings of each variant as JSON, by its label."""
    return {
        label: json.dumps([method.name, method.options, method.settings], sort_keys=True)
        for label, method in zip(suite.labels(), suite.methods, strict=True)
    }


@cache
def _adapter() -> TypeAdapter[Suite]:
    return TypeAdapter(with_config(ConfigDict(extra="forbid"))(Suite))
