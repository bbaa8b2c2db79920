"""Estimates and plan of a suite's runs, for `rankfold compare --dry-run`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rankfold.cli.console import note, print_json, print_table, progress_screen

if TYPE_CHECKING:
    from rankfold.bench.estimates import RunsEstimate
    from rankfold.bench.suites.suite import Suite
    from rankfold.runs.request import RunRequest


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
