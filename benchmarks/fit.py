"""Does `rankfold fit` choose well: its choice against the best of all candidates, trained with other seeds.

MiniLM, 240 updates of 16 rows of similar length in bf16, on tasks that no rate was chosen on. For each task
and budget, `fit` chooses by successive halving on rows held out of the training split. Then every candidate
of its short list is trained on all rows with other seeds and measured on the validation split. The best of
many is flattered by having been picked, so it is picked on one half of the examples, and the choice is
compared with it on the other half, as it is stored.

A run that is done is not repeated: stopped at any time, the same command goes on.

    nice -n 19 python benchmarks/fit.py --data ../shared/data --work fit_runs
    rankfold bench archive fit_runs --out benchmarks/records/fit
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rankfold.bench.executors.processes import Processes
from rankfold.bench.fit.budget import Budget, parse_bytes
from rankfold.bench.fit.candidates import Space, propose
from rankfold.bench.fit.search import FitPlan, fit, plan_search
from rankfold.bench.statistics.comparison import (
    mean_metric,
    paired_difference,
    scores_of,
    shared_examples,
    verdicts,
)
from rankfold.bench.suites.runner import run_all
from rankfold.runs.record import RunRecord

TASKS = ("sst2", "qnli", "ag_news")
BUDGETS = ("3KiB", "12KiB", "48KiB")
STEPS, MARGIN = 240, 0.01
BASE: Mapping[str, Any] = {
    "model": "minilm",
    "max_length": 64,
    "group_by_length": True,
    "precision": "bf16",
    "eval_rows": 2000,
    "validate": "end",
    "checkpoint_every": 0,
    "keep_texts": False,
    "threads": 1,
}


def plan_of(task: str, budget: str, arguments: argparse.Namespace) -> FitPlan:
    """Return the choice on a task within a budget."""
    base = {**BASE, "task": task, "data_root": str(arguments.data)}
    space = Space(dtypes=("int4", "fp32"), most=arguments.candidates)
    proposal = propose(base, Budget(bytes=parse_bytes(budget)), space, reads_data=True)
    return plan_search(proposal, arguments.work / "choices" / f"{task}-{budget}", steps=STEPS, eta=5)


def train_all(plan: FitPlan, seeds: Sequence[int], folder: Path) -> dict[str, list[RunRecord]]:
    """Train every candidate with every seed on all rows, and return the runs of those that never failed."""
    requests = {
        label: [
            replace(
                plan.request(candidate, "unused", steps=STEPS),
                seed=seed,
                hold_out=False,
                out=folder / f"{plan.places()[label]}-seed{seed}",
            )
            for seed in seeds
        ]
        for candidate in plan.candidates
        for label in [candidate.label]
    }
    outcomes = run_all([request for row in requests.values() for request in row], executor=Processes())
    records = {outcome.request.out: outcome.record for outcome in outcomes if outcome.error is None}
    rows = {
        label: [record for request in row if (record := records.get(request.out))]
        for label, row in requests.items()
    }
    return {label: row for label, row in rows.items() if len(row) == len(seeds)}


def report(title: str, chosen: str, rows: Mapping[str, Sequence[RunRecord]]) -> None:
    """Print how far the choice is from the best of all, on examples that did not say which is best."""
    examples = shared_examples([record for row in rows.values() for record in row])
    metric = rows[chosen][0].task.metric
    known, fresh = examples[::2], examples[1::2]
    best = max(rows, key=lambda label: mean_metric(scores_of(rows[label], known, metric), metric))
    middle = sorted(mean_metric(scores_of(row, fresh, metric), metric) for row in rows.values())[
        len(rows) // 2
    ]
    ours = scores_of(rows[chosen], fresh, metric)
    score = mean_metric(ours, metric)
    print(f"{title}: chosen {chosen}, {score:.4f}; the median of {len(rows)} is {middle:.4f}")
    if best == chosen:
        print("    it is the best of all")
        return
    difference = paired_difference(ours, scores_of(rows[best], fresh, metric), metric)
    (verdict,), gap = verdicts([difference], margin=MARGIN), difference.interval
    interval = f"[{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]"
    print(f"    to the best, {best}: {100 * gap.value:+.1f} points {interval}, {verdict}")


def main() -> None:
    """Choose, train all candidates, and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with one subfolder per task")
    parser.add_argument("--work", type=Path, required=True, help="folder of all runs")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--candidates", type=int, default=12)
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--budgets", nargs="+", default=BUDGETS)
    arguments = parser.parse_args()
    for budget in arguments.budgets:
        for task in arguments.tasks:
            plan = plan_of(task, budget, arguments)
            choice = fit(plan, executor=Processes())
            print(f"{task} {budget}: {choice.winner.label}; {choice.reason()}", flush=True)
            folder = arguments.work / "all" / f"{task}-{budget}"
            rows = train_all(plan, range(1, 1 + arguments.seeds), folder)
            report(f"{task} {budget}", choice.winner.label, rows)


if __name__ == "__main__":
    main()
