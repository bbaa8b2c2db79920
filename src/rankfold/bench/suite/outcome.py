"""What became of the runs that were asked for, and whether that is enough to go on with."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from rankfold.errors import BusyError, RankfoldError, TrainingError
from rankfold.runs.record import RunRecord
from rankfold.runs.request import RunRequest


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request.

    Args:
        request: What was asked for.
        record: What is in its folder; None if it failed before anything was known of it, or if another
            process is making it.
        error: Why it failed; None if it did not.
        is_kept: Whether it had been done before.
    """

    request: RunRequest
    record: RunRecord | None
    error: Exception | None = None
    is_kept: bool = False

    @property
    def is_elsewhere(self) -> bool:
        """Whether another process is making it, so that it has neither been done nor failed."""
        return isinstance(self.error, BusyError)


def check_all_here(outcomes: Sequence[Outcome]) -> None:
    """Check that no other process is making some of the runs, for what takes the results of all.

    Raises:
        BusyError: If one is.
    """
    elsewhere = [outcome for outcome in outcomes if outcome.is_elsewhere]
    if elsewhere:
        verb = "is" if len(elsewhere) == 1 else "are"
        raise BusyError(
            f"{len(elsewhere)} of {len(outcomes)} runs {verb} made by another process "
            f"({', '.join(each.request.out.name for each in elsewhere)}); "
            "give the same command again when it has ended."
        ) from elsewhere[0].error


def check_all_began(outcomes: Sequence[Outcome]) -> None:
    """Check that some run of each model and task began: where none did there is no record to report.

    Raises:
        TrainingError: If none of one did.
    """
    if reasons := never_began(outcomes):
        listed = "; ".join(f"no run of {name} began ({reason})" for name, reason in reasons.items())
        raise TrainingError(f"{listed}; mend the cause and run it again.")


def never_began(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """Return why, for each model and task of which no run began: "minilm on mrpc"."""
    known = {_name(each.request) for each in outcomes if each.record or each.is_elsewhere}
    reasons: dict[str, str] = {}
    for each in outcomes:
        if each.error and (name := _name(each.request)) not in known:
            reasons.setdefault(name, str(each.error).rstrip("."))
    return reasons


def _name(request: RunRequest) -> str:
    return f"{request.model} on {request.task or request.data}"


def raise_shared(outcomes: Sequence[Outcome]) -> NoReturn:
    """Raise why all runs failed; a reason that all of them share is raised as itself.

    Raises:
        TrainingError: If they had different reasons.
    """
    errors = [outcome.error for outcome in outcomes if outcome.error]
    if len({str(error) for error in errors}) == 1 and isinstance(errors[0], RankfoldError):
        raise errors[0]
    reasons = "; ".join(f"{each.request.out.name}: {str(each.error).rstrip('.')}" for each in outcomes)
    raise TrainingError(
        f"all {len(outcomes)} runs failed ({reasons}); mend the causes and run it again."
    ) from errors[0]
