"""What the runs of a suite would take, as `rankfold compare --dry-run` shows it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rankfold.cli.console import note, print_json, print_table, progress_screen

if TYPE_CHECKING:
    from rankfold.bench.estimates import RunsEstimate
    from rankfold.runs.request import RunRequest


def show_estimates(requests: "Sequence[RunRequest]", *, as_json: bool) -> bool:
    """Print what runs would take, each kind once, and all of them; return whether it can be said of all."""
    from rankfold.bench.estimates import estimate_runs
    from rankfold.report.format import seconds_text

    with progress_screen() as new_bar:
        planned = estimate_runs(requests, progress=new_bar())
    is_complete = all(each.estimate for each in planned)
    if as_json:
        print_json([_as_json(each) for each in planned])
        return is_complete
    print_table(
        ["method", "model", "task", "runs", "trainable", "learned bytes", "steps", "memory", "time"],
        [_cells(each) for each in planned],
        left=(0, 1, 2),
    )
    for reason in dict.fromkeys(each.reason for each in planned if each.reason):
        unknown = (f"{_named(each)} on {each.request.model}" for each in planned if each.reason == reason)
        note(f"{', '.join(dict.fromkeys(unknown))}: {reason}")
    too_large = [each for each in planned if each.estimate and each.estimate.fits is False]
    if too_large:
        names = ", ".join(dict.fromkeys(_named(each) for each in too_large))
        note(f"more memory than the device has: {names}.")
    runs, hours = sum(each.runs for each in planned), sum(each.hours or 0.0 for each in planned)
    device = next((each.estimate.device for each in planned if each.estimate), None)
    if device is not None:
        note(
            f"{runs} runs, about {seconds_text(3600 * hours)} on {device.name} at {device.assumption}, "
            "one at a time, every row at its full length and without evaluations."
        )
    return is_complete


def _cells(planned: "RunsEstimate") -> list[str]:
    from rankfold.report.format import bytes_text, seconds_text

    request, found = planned.request, planned.estimate
    named = [_named(planned), request.model, request.task or request.data or "", str(planned.runs)]
    if found is None:
        return [*named, *["–"] * 5]
    return [
        *named,
        f"{found.parameters.trainable:,}",
        bytes_text(found.stored_bytes),
        f"{found.steps:,}",
        bytes_text(found.memory.total),
        seconds_text(3600 * (planned.hours or 0.0)),
    ]


def _named(planned: "RunsEstimate") -> str:
    from rankfold.runs.records import label_with_all, reducer_settings

    request = planned.request
    options = {key: value for key, value in request.options.items() if key != "target_modules"}
    name = label_with_all(request.method, {**options, **reducer_settings(request.reducer)})
    return f"{name} (trials)" if request.hold_out else name


def _as_json(planned: "RunsEstimate") -> dict[str, object]:
    return {
        "command": planned.request.command(),
        "runs": planned.runs,
        "hours": planned.hours,
        "reason": planned.reason,
        "estimate": planned.estimate and planned.estimate.to_dict(),
    }
