"""Which way of scoring a task is measured with."""

from rankfold.bench.tasks.task import TaskData
from rankfold.errors import SpecError
from rankfold.train.evaluation.metric_names import ANSWER_LOSS
from rankfold.train.evaluation.scoring import Scoring, check_scoring
from rankfold.train.kind import Kind


def scoring_of(name: str | None, data: TaskData) -> Scoring | None:
    """Return how the answers of a task are scored; None if it has no answers to choose from.

    Args:
        name: What was asked for; `likelihood` if None.
        data: The task.

    Raises:
        SpecError: If a way was asked for that is unknown, or that the task has no use for.
    """
    check_scoring(name)
    if data.kind is Kind.INSTRUCTION and data.task.metrics[0] != ANSWER_LOSS:
        return Scoring(name or Scoring.LIKELIHOOD)
    if name is not None:
        raise SpecError(
            f"the scoring '{name}' is for questions with choices that a model answers in text, but "
            f"'{data.task.name}' is measured as {data.kind} by {data.task.metrics[0]}; leave it out."
        )
    return None
