"""A suite from beginning to end: every method is tuned alike, then trained once with each seed."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rankfold.bench.executors.base import Executor
from rankfold.bench.suites.outcomes import Outcome, record_purpose
from rankfold.bench.suites.runner import run_all
from rankfold.bench.suites.saved_suite import join_saved_suite, save_suite
from rankfold.bench.suites.suite import Suite
from rankfold.bench.suites.tuning import Key, new_searches, trial_request, trial_requests, tune
from rankfold.progress import Progress, Silent
from rankfold.runs.methods import find_method
from rankfold.runs.output import find_finished
from rankfold.runs.record import TuningInfo
from rankfold.runs.request import RunRequest
from rankfold.tasks.kinds import default_kind, find_kind
from rankfold.tasks.registry import check_named


def run_suite(
    suite: Suite,
    out: Path,
    *,
    executor: Executor | None = None,
    make_progress: Callable[[], Progress] = Silent,
    overwrite: bool = False,
) -> list[Outcome]:
    """Tune and train all unfinished runs, and return the outcomes, trials first.

    Args:
        suite: What to run.
        out: The folder that gets a folder for each run.
        executor: Does the runs.
        make_progress: Gives one listener for each batch of runs and one for each run.
        overwrite: Do again what is done.

    Raises:
        SpecError: If a method or an option is unknown, or a value is not possible, before the first run.
        OutputExistsError: If a folder holds something that was not asked for, or `out` another suite.
        DataError: If the data has changed since trials or runs were done that are kept.
        TrainingError: If every trial failed.
        BusyError: If another process is at a trial.
    """
    check_suite(suite, out)
    save_suite(suite if overwrite else _checked_join(suite, out), out)

    def run_batch(
        requests: Sequence[RunRequest], label: str, earlier: Sequence[Outcome] = ()
    ) -> list[Outcome]:
        return run_all(
            requests,
            make_progress=make_progress,
            executor=executor,
            overwrite=overwrite,
            label=label,
            earlier=earlier,
        )

    trials, choices = tune(suite, out, run_batch)
    values = {key: choice.values for key, choice in choices.items()}
    outcomes = run_batch(suite.requests(out, values), "runs", trials)
    return [*trials, *_with_choice(suite, choices, outcomes)]


def check_suite(suite: Suite, out: Path) -> None:
    """Check the names and options of all runs before the first, so that a typo costs no time.

    Raises:
        SpecError: If a method, an option or a task is unknown, a value is not possible, there is nothing to
            learn, or the methods would not get equally many trials.
    """
    requests = all_requests(suite, out)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # each run says again what there is to say of it
        for request in requests:
            kind = default_kind(is_causal=False) if request.kind is None else find_kind(request.kind)
            find_method(request.method).config(request.options, kind.head().task_type, seed=request.seed)
        for task_request in dict.fromkeys(request.task_request for request in requests):
            check_named(task_request)


def all_requests(suite: Suite, out: Path) -> list[RunRequest]:
    """Return all trials and all runs, with the values of the suite where others will be chosen.

    Raises:
        SpecError: If they cannot be made.
    """
    return [*trial_requests(suite, out), *suite.requests(out)]


def _checked_join(suite: Suite, out: Path) -> Suite:
    """Return the suite joined with the one saved in its folder, if their runs agree.

    Raises:
        OutputExistsError: If the folder holds the runs of another.
    """
    suite_of_folder = join_saved_suite(suite, out)
    # A run has what tuning chooses, which is not known yet; the trials that are asked for first are.
    first_trials = [
        trial_request(suite_of_folder, out, key, state, values, number)
        for key, state in new_searches(suite_of_folder).items()
        for number, values in enumerate(state.search.suggest(), start=1)
    ]
    for request in first_trials or suite_of_folder.requests(out):
        find_finished(request)
    return suite_of_folder


def _with_choice(
    suite: Suite, choices: Mapping[Key, TuningInfo], outcomes: Sequence[Outcome]
) -> list[Outcome]:
    """Add the tuned values to the records of outcomes, in the order of `Suite.requests`."""
    keys = [
        (condition, row.search_label)
        for _ in suite.seeds
        for condition in suite.conditions()
        for row in suite.variants_at(condition)
    ]
    return [
        record_purpose(outcome, choices[key]) if key in choices else outcome
        for key, outcome in zip(keys, outcomes, strict=True)
    ]
