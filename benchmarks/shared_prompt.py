"""Multiple choice by likelihood: seconds with prompts read once for all choices, and once for each.

SmolLM2 on rows of a task, both ways one after the other, in rounds. The difference of the scores is that of
rounding in single precision.

    python benchmarks/shared_prompt.py --data-root data --task hellaswag --rows 20 --rounds 3
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence

from rankfold.models.base import resolve_model
from rankfold.tasks import TaskRequest, limit_rows, load_task
from rankfold.tasks.kinds import Learner
from rankfold.tasks.kinds.answers import Instruction, candidate_scores, encode_answers, log_likelihoods


def scores_alone(learner: Learner, questions: Sequence[Instruction]) -> list[list[float]]:
    """Return the scores of `candidate_scores`, each choice with its prompt in a row of its own."""
    pairs = [(item, candidate) for item in questions for candidate in item.candidates]
    rows = log_likelihoods(learner, encode_answers(learner, pairs, is_compared=True))
    means = iter([total / tokens for total, tokens in rows])
    return [[next(means) for _ in item.candidates] for item in questions]


def main() -> None:
    """Measure, and print seconds, their ratio and the largest difference of a score as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="arc_easy")
    parser.add_argument("--data-root")
    parser.add_argument("--rows", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    request = TaskRequest(task=options.task, data_root=options.data_root)
    data = limit_rows(load_task(request, is_causal=True), {"validation": options.rows})
    questions = data.examples.splits["validation"]
    base = data.kind.load(resolve_model("smollm2"))
    learner = Learner(base.model, base.processor, 256)
    ways = {"shared": candidate_scores, "alone": scores_alone}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    scores: dict[str, list[list[float]]] = {}
    for _ in range(options.rounds):
        for name, way in ways.items():
            began = time.perf_counter()
            scores[name] = way(learner, questions)
            seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    pairs = [pair for rows in zip(*scores.values(), strict=True) for pair in zip(*rows, strict=True)]
    choices = [[row.index(max(row)) for row in rows] for rows in scores.values()]
    result = {
        "task": options.task,
        "rows": len(questions),
        "choices": len(pairs),
        "seconds": medians,
        "ratio": medians["alone"] / medians["shared"],
        "largest_difference": max(abs(one - other) for one, other in pairs),
        "same_choices": choices[0] == choices[1],
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
