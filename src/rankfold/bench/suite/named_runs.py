"""What the runs and trials of a suite are called, and of which model and task they are."""

from rankfold.bench.suite.rows import Place
from rankfold.bench.suite.suite import Suite


def named_runs(suite: Suite) -> dict[str, tuple[Place, str]]:
    """Return the place and the label of every run by its name, in the order of the suite."""
    return {
        suite.run_name(place, row.label, f"seed{seed}"): (place, row.label)
        for place in suite.places()
        for row in suite.rows(place)
        for seed in suite.seeds
    }


def named_trials(suite: Suite) -> list[str]:
    """Return the names of the first trials of a suite; a search without its first has no others."""
    return [
        trial_name(suite, place, row.label, 1)
        for place in suite.places()
        for row in suite.rows(place)
        if row.label == row.tuned_as
    ]


def trial_name(suite: Suite, place: Place, label: str, number: int) -> str:
    """Return the name of a trial of a row."""
    return suite.run_name(place, label, f"trial{number}")


def model_of(suite: Suite, place: Place) -> str:
    """Return the model of a place, which is the suite's where the place has none of its own."""
    return place.model or str(suite.base.get("model", ""))


def task_of(suite: Suite, place: Place) -> str:
    """Return the task or the data of a place, which is the suite's where the place has none of its own."""
    return place.task or str(suite.base.get("task") or suite.base.get("data") or "")
