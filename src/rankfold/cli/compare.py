"""`rankfold compare`: several methods under one budget, one table and one page."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rankfold import __version__
from rankfold.cli.console import (
    kept_when_interrupted,
    note,
    print_json,
    print_table,
    progress_screen,
    shown_notes,
)
from rankfold.cli.options import (
    DATA_FIELDS,
    SectionedCommand,
    check_mixture,
    json_option,
    parse_settings,
    request_options,
    section,
)
from rankfold.errors import SpecError
from rankfold.models.names import EMBEDDED_LIST
from rankfold.runs.check import check_method_name
from rankfold.runs.request import RunRequest

if TYPE_CHECKING:
    from rankfold.bench.estimates import RunsEstimate
    from rankfold.bench.executors.base import Executor
    from rankfold.bench.suites.outcomes import Outcome
    from rankfold.bench.suites.suite import Suite
    from rankfold.runs.request import RunRequest


DEFAULT_OUT = Path("runs")


class _Seeds(click.ParamType[tuple[int, ...]]):
    """Whole numbers separated by commas."""

    name = "seeds"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Return the numbers, or fail as a usage error."""
        if isinstance(value, tuple):
            return value  # type: ignore[return-value]
        try:
            return tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"'{value}' is no list of whole numbers; write it as 0,1,2.", param, ctx)


_SUBJECT = "What to compare"
_subject_option = section(_SUBJECT)
_place_option = section("Where")

_TRAINING_FIELDS = ("kind_options", "epochs", "steps", "batch_size", "learning_rate", "device", "threads")
_HELP_TEXTS = {"model": f"{EMBEDDED_LIST}, a folder, a GGUF file or a hub id.  [default: minilm]"}

_EPILOG = """\b
Examples:
  rankfold compare --suite quick
  rankfold compare --suite my.toml --seeds 0,1,2 --out runs/mine
  rankfold compare --task bbc_news --method 'lora r=8' --method peft:lora --seeds 0,1
"""


@click.command(cls=SectionedCommand, epilog=_EPILOG)
@_subject_option(
    "--suite", metavar="NAME|FILE", help="A packaged suite, such as quick, or a TOML file of your own."
)
@_subject_option("--profile", help="A profile of the suite; its first if left out.")
@_subject_option(
    "--method",
    "methods",
    multiple=True,
    metavar="'NAME KEY=VALUE ...'",
    help="A method with its options, or peft:NAME; may be repeated. The first is the reference.",
)
@_subject_option(
    "--seeds",
    type=_Seeds(),
    metavar="0,1,2",
    help="Train every method once with each of these.  [default: those of the suite, or 0,1,2,3,4]",
)
@request_options(RunRequest, ("model",), section=_SUBJECT, help_texts=_HELP_TEXTS)
@_subject_option(
    "--out", type=click.Path(path_type=Path), help="Folder of runs and report.  [default: runs/<suite>]"
)
@_subject_option("--overwrite", is_flag=True, help="Repeat finished runs; otherwise they are kept.")
@request_options(RunRequest, (*DATA_FIELDS, "mixture", *_TRAINING_FIELDS), shows_defaults=False)
@_place_option(
    "--jobs",
    type=click.IntRange(1),
    help="Runs at once, each in a process.  [default: 1; on a cluster, as many as it has processors for]",
)
@_place_option(
    "--executor",
    type=click.Choice(["local", "ray"]),
    default="local",
    help="Run here, or on the Ray cluster of RAY_ADDRESS.",
)
@click.option("--dry-run", is_flag=True, help="Train nothing; estimate cost and power of all runs.")
@click.option(
    "--pilot",
    type=click.Path(path_type=Path, exists=True),
    help="Folder of earlier runs whose times and spread --dry-run uses.  [default: --out]",
)
@json_option
def command(
    *,
    suite: str | None,
    profile: str | None,
    jobs: int | None,
    executor: str,
    methods: tuple[str, ...],
    seeds: tuple[int, ...] | None,
    out: Path | None,
    overwrite: bool,
    dry_run: bool,
    pilot: Path | None,
    as_json: bool,
    **budget: Any,
) -> None:
    """Train several methods with the same budget and compare them.

    Runs a suite, or the methods named by --method, and writes one table and one page. Other options
    override the suite for all its tasks, methods and trials. A comparison that was stopped continues with the
    same command.
    """
    for words in filter(str.split, methods):
        check_method_name(words.split()[0])
    from rankfold.bench.suites.protocol import run_suite  # --help can do without these seconds

    if pilot is not None and not dry_run:
        raise SpecError(f"--pilot {pilot} is for the plan of a dry run; add --dry-run, or leave it out.")
    settings = {key: value for key, value in budget.items() if value is not None}
    compared = _plan(suite, profile, methods, settings)
    if seeds is not None:
        compared = replace(compared, seeds=seeds)
    folder = out or DEFAULT_OUT / compared.name
    if "mixture" in settings:
        check_mixture(settings["mixture"], [request.task for request in compared.requests(folder)])
    if dry_run:
        from rankfold.bench.suites.protocol import all_requests

        is_complete = show_estimates(all_requests(compared, folder), as_json=as_json)
        if not as_json:
            show_plan(compared, folder, pilot)
        click.get_current_context().exit(0 if is_complete else 1)
    place = _executor(executor, jobs, compared.base.get("threads"))
    with kept_when_interrupted(overwrite=overwrite), shown_notes(), progress_screen() as new_bar:
        outcomes = run_suite(compared, folder, executor=place, make_progress=new_bar, overwrite=overwrite)
    _report(outcomes, folder, as_json=as_json)


def _executor(name: str, jobs: int | None, threads: int | None) -> "Executor":
    """Return where the runs are done; a cluster keeps as many processors for a run as it has threads."""
    from rankfold.bench.executors.processes import Processes

    if name == "ray":
        from rankfold.bench.executors.cluster import Cluster

        return Cluster(jobs, threads=threads or 1)
    return Processes(jobs or 1)


def _plan(
    suite: str | None, profile: str | None, methods: Sequence[str], settings: dict[str, Any]
) -> "Suite":
    """Return the suite to run: a named one with changed settings, or one of the given methods."""
    from rankfold.bench.statistics.claims import Rules
    from rankfold.bench.suites.suite import DEFAULT_SEEDS, Suite
    from rankfold.bench.suites.suite_file import parse_method, read_suite

    if suite and methods:
        raise SpecError(f"--suite {suite} and --method are both given; give one of them.")
    if suite:
        return read_suite(suite, profile).with_settings(settings)
    if profile is not None:
        raise SpecError(f"--profile {profile} is given without a suite; add --suite, or leave it out.")
    if not methods:
        raise SpecError(
            "there is nothing to compare; give --suite quick, or --task with two or more --method."
        )
    variants = tuple(parse_method(words, parse_settings) for words in methods)
    return Suite("compare", {"model": "minilm", **settings}, variants, DEFAULT_SEEDS, rules=Rules())


def _report(outcomes: "Sequence[Outcome]", folder: Path, *, as_json: bool) -> None:
    """Print and write the results, those of earlier calls too.

    Fail if no run ended well, if another process is at some, or if none of a model and a task began.
    """
    from rankfold.bench.suites.outcomes import (
        check_conditions_started,
        check_none_elsewhere,
        raise_common_error,
        unstarted_reasons,
    )
    from rankfold.cli.results import show_report
    from rankfold.report.study import make_report
    from rankfold.report.write import write_report
    from rankfold.runs.records import find_records

    reused = sum(outcome.is_reused for outcome in outcomes)
    if reused:
        note(f"{reused} of {len(outcomes)} runs were done before and are kept; --overwrite does them again.")
    if all(outcome.error for outcome in outcomes):
        check_none_elsewhere(outcomes)
        raise_common_error(outcomes)
    # What failed before its folder was made is known from its outcome alone.
    new_records = {outcome.record.name: outcome.record for outcome in outcomes if outcome.record}
    earlier_records = [record for record in find_records(folder) if record.name not in new_records]
    report = make_report(
        [*earlier_records, *new_records.values()], folder, reasons=unstarted_reasons(outcomes)
    )
    show_report(report, as_json=as_json)
    note(f"report: {write_report(report, folder, version=__version__)}")
    check_none_elsewhere(outcomes)
    check_conditions_started(outcomes)


def show_estimates(requests: "Sequence[RunRequest]", *, as_json: bool) -> bool:
    """Print the estimate of each group of runs and of all; return whether all could be estimated."""
    from rankfold.bench.estimates import estimate_runs
    from rankfold.report.format import seconds_text

    with progress_screen() as new_bar:
        estimates = estimate_runs(requests, progress=new_bar())
    is_complete = all(runs_estimate.estimate for runs_estimate in estimates)
    if as_json:
        print_json([_as_json(runs_estimate) for runs_estimate in estimates])
        return is_complete
    print_table(
        ["method", "model", "task", "runs", "trainable", "learned bytes", "steps", "memory", "time"],
        [_cells(runs_estimate) for runs_estimate in estimates],
        left=(0, 1, 2),
    )
    for reason in dict.fromkeys(runs_estimate.reason for runs_estimate in estimates if runs_estimate.reason):
        unknown = (
            f"{_label(runs_estimate)} on {runs_estimate.request.model}"
            for runs_estimate in estimates
            if runs_estimate.reason == reason
        )
        note(f"{', '.join(dict.fromkeys(unknown))}: {reason}")
    too_large = [
        runs_estimate
        for runs_estimate in estimates
        if runs_estimate.estimate and runs_estimate.estimate.fits is False
    ]
    if too_large:
        names = ", ".join(dict.fromkeys(_label(runs_estimate) for runs_estimate in too_large))
        note(f"more memory than the device has: {names}.")
    runs, hours = (
        sum(runs_estimate.runs for runs_estimate in estimates),
        sum(runs_estimate.hours or 0.0 for runs_estimate in estimates),
    )
    device = next(
        (runs_estimate.estimate.device for runs_estimate in estimates if runs_estimate.estimate), None
    )
    if device is not None:
        note(
            f"{runs} runs, about {seconds_text(3600 * hours)} on {device.name} at {device.assumption}, "
            "one at a time, every row at its full length and without evaluations."
        )
    return is_complete


def show_plan(suite: "Suite", folder: Path, pilot: Path | None) -> None:
    """Print the hours and the power of a suite, as far as records of earlier runs tell them."""
    from rankfold.bench.suites.plan import plan_suite
    from rankfold.report.format import seconds_text
    from rankfold.runs.records import find_records

    plan = plan_suite(suite, folder, None if pilot is None else find_records(pilot))
    if plan.hours is None:
        note("no earlier runs tell how long it takes here; name a folder of some with --pilot.")
    else:
        note(
            f"{plan.left} of {plan.runs} runs are left, about {seconds_text(3600 * plan.hours)} one at a "
            "time, as earlier runs took."
        )
    if plan.claims:
        print_table(
            ["claim", "expects", "margin", "tasks", "seeds", "could show (80 %)"],
            [
                [
                    claim.claim.id,
                    claim.claim.expect,
                    f"{claim.claim.margin:.3f}" if claim.claim.margin else "–",
                    ", ".join(claim.tasks),
                    str(len(suite.seeds)),
                    "–" if claim.detectable is None else f"{claim.detectable:.3f}",
                ]
                for claim in plan.claims
            ],
            title="power",
            left=(0, 1, 3),
        )


def _cells(runs_estimate: "RunsEstimate") -> list[str]:
    from rankfold.report.format import bytes_text, seconds_text

    request, run_estimate = runs_estimate.request, runs_estimate.estimate
    names = [
        _label(runs_estimate),
        request.model,
        request.task or request.data or "",
        str(runs_estimate.runs),
    ]
    if run_estimate is None:
        return [*names, *["–"] * 5]
    return [
        *names,
        f"{run_estimate.parameters.trainable:,}",
        bytes_text(run_estimate.stored_bytes),
        f"{run_estimate.steps:,}",
        bytes_text(run_estimate.memory.total),
        seconds_text(3600 * (runs_estimate.hours or 0.0)),
    ]


def _label(runs_estimate: "RunsEstimate") -> str:
    from rankfold.runs.records import label_with_all, reducer_settings

    request = runs_estimate.request
    options = {key: value for key, value in request.options.items() if key != "target_modules"}
    name = label_with_all(request.method, {**options, **reducer_settings(request.reducer)})
    return f"{name} (trials)" if request.hold_out else name


def _as_json(runs_estimate: "RunsEstimate") -> dict[str, object]:
    return {
        "command": runs_estimate.request.command(),
        "runs": runs_estimate.runs,
        "hours": runs_estimate.hours,
        "reason": runs_estimate.reason,
        "estimate": runs_estimate.estimate and runs_estimate.estimate.to_dict(),
    }
