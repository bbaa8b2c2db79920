"""Runs that the recommended values of presets rest on: does a preset learn from them, and at which rates.

Every run is one line of JSON in the records, with all its values; a run that is there already is not done
again, so the program can be stopped at any time. MiniLM, rows of at most 64 tokens, batches of 16 rows of
similar length, 400 held-out rows, one thread.

`--check` varies task, seed and the scale of the labels, then layers and the head's rate, around the
recommended values, the first variations of all presets before the next ones, and counts the runs that stayed
at their start: those whose score is less than `MARGINS` above that of a head alone. Its first eight are the
defaults.
`--rates` tries rates a factor of two apart, on both sides of the recommended one, until a worse one stands
on both sides of the best. `--summary` runs nothing and prints the verdict on every preset.

Without a flag it does all of this, the defaults before the rates; that takes some three hours of a core. It
ends with 1 if a run stayed at its start.

    RANKFOLD_DATA=DIR OMP_NUM_THREADS=1 nice -n 19 python benchmarks/recipes.py
    RANKFOLD_DATA=DIR python benchmarks/recipes.py --rates --methods relayed_lora tlora
"""

import argparse
import json
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from rankfold.errors import RankfoldError
from rankfold.presets import discover, recommend
from rankfold.runs.request import HEAD_ONLY_NAME, RunRequest
from rankfold.runs.run import run
from rankfold.tasks import load_task
from rankfold.tasks.task import TaskRequest

RECORDS = Path(__file__).parent / "records" / "recipes.jsonl"
FIRST = ("relayed_lora", "tlora", "tlora_plus", "effilora", "lora")
STEPS = {"mrpc": 300}
USUAL_STEPS = 120
VARIATIONS, DEFAULTS = 20, 8
QUERY_VALUE = ("query", "value")
ALL_LINEAR = "all-linear"
IN_MLPS = ("lora_moe", "mix_lora", "mole")
FEWEST_RATES, MOST_COST = 3, 0.02
# A run has left its start if its score is this much above the one of a head alone, trained as long.
MARGINS = {"stsb": 0.2, "sst2": 0.08, "qnli": 0.05, "mrpc": 0.01}
SIZE: Mapping[str, Any] = {"model": "minilm", "eval_rows": 400, "max_length": 64, "threads": 1}
QUIET: Mapping[str, Any] = {
    "group_by_length": True,
    "precision": "bf16",
    "validate": "end",
    "checkpoint_every": 0,
    "keep_texts": False,
}


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run: the values that differ from trial to trial.

    Args:
        method: The preset.
        learning_rate: Of the adapter.
        head_learning_rate: Of the head.
        targets: `target_modules`; None leaves them to the preset.
        options: Other options of the preset.
        task: The task.
        seed: Of everything.
        label_scale: What every label is multiplied by.
        steps: Updates.
    """

    method: str
    learning_rate: float
    head_learning_rate: float
    targets: str | tuple[str, ...] | None
    options: Mapping[str, Any]
    task: str = "stsb"
    seed: int = 0
    label_scale: float = 1.0
    steps: int = USUAL_STEPS

    def key(self) -> str:
        """Return the values as a text."""
        return json.dumps(asdict(self), sort_keys=True)

    def request(self, out: Path) -> RunRequest:
        """Return the request of the run."""
        options = dict(self.options)
        if self.targets is not None:
            options["target_modules"] = self.targets if isinstance(self.targets, str) else [*self.targets]
        return RunRequest(
            method=self.method,
            options=options,
            learning_rate=self.learning_rate,
            lr_groups={"head": self.head_learning_rate / self.learning_rate},
            seed=self.seed,
            steps=self.steps,
            train_rows=16 * self.steps,
            out=out,
            **_data(self.task, self.label_scale),
            **SIZE,
            **QUIET,
        )


@cache
def _scaled_data(task: str, scale: float) -> tempfile.TemporaryDirectory[str]:
    """Write a regression task with other labels."""
    folder = tempfile.TemporaryDirectory()
    for split, examples in load_task(TaskRequest(task), is_causal=False).examples.splits.items():
        rows = [
            {"sentence1": item.text, "sentence2": item.pair, "label": float(item.label) * scale}
            for item in examples
        ]
        (Path(folder.name) / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _data(task: str, scale: float) -> dict[str, Any]:
    if scale == 1:
        return {"task": task}
    return {"data": _scaled_data(task, scale).name, "kind": "regression", "metric": "pearson"}


class Records:
    """Finished runs, a line each in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.scores: dict[str, float | None] = {}
        for line in lines:
            record = json.loads(line)
            self.scores[json.dumps(record["trial"], sort_keys=True)] = record["score"]

    def __contains__(self, trial: Trial) -> bool:
        """Whether a run is done."""
        return trial.key() in self.scores

    def score(self, trial: Trial) -> float | None:
        """Return the score of a run, after doing it if it has to be; None if it diverged."""
        if trial not in self:
            with tempfile.TemporaryDirectory() as folder:
                record: dict[str, Any] = {"trial": json.loads(trial.key())}
                try:
                    result = run(trial.request(Path(folder) / "run"))
                except RankfoldError as error:
                    record |= {"score": None, "error": str(error)}
                else:
                    metric = result.task.metric
                    record |= {
                        "score": round(result.metrics[metric], 4),
                        "metric": metric,
                        "numbers": result.parameters.trainable,
                        "seconds": round(result.seconds.train, 1),
                    }
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")
            self.scores[trial.key()] = record["score"]
            print(f"{record['score']}  {trial.key()}", flush=True)
        return self.scores[trial.key()]


def recommended(method: str, **changes: Any) -> Trial:
    """Return the trial of a preset's recommended values."""
    recipe = recommend(method)
    trial = Trial(
        method=method,
        learning_rate=recipe.learning_rate,
        head_learning_rate=recipe.head_learning_rate,
        targets=recipe.targets,
        options={},
    )
    return replace(trial, **changes)


def variations(method: str) -> Iterator[Trial]:
    """Yield the trials of a preset, in their order."""
    usual = recommended(method)
    # Experts in the MLPs have nothing to do on query and value.
    layers = usual.targets if method in IN_MLPS else QUERY_VALUE if usual.targets else ALL_LINEAR
    head = usual.head_learning_rate
    for seed, (task, targets, head_factor, scale) in enumerate(
        (
            # The defaults: what `rankfold train` does without an option.
            ("stsb", usual.targets, 1, 1),
            ("sst2", usual.targets, 1, 1),
            ("qnli", usual.targets, 1, 1),
            ("stsb", usual.targets, 1, 0.2),
            ("stsb", usual.targets, 1, 20),
            ("stsb", usual.targets, 1, 1),
            ("sst2", usual.targets, 1, 1),
            ("qnli", usual.targets, 1, 1),
            # Other layers, and other rates of the head.
            ("stsb", layers, 1, 1),
            ("stsb", usual.targets, 2, 1),
            ("stsb", usual.targets, 0.5, 1),
            ("stsb", layers, 2, 1),
            ("stsb", layers, 0.5, 1),
            ("sst2", layers, 1, 1),
            ("qnli", layers, 1, 1),
            ("stsb", layers, 1, 0.2),
            ("sst2", usual.targets, 2, 1),
            ("qnli", usual.targets, 0.5, 1),
            ("stsb", layers, 2, 20),
            ("mrpc", usual.targets, 1, 1),
        )
    ):
        yield replace(
            usual,
            task=task,
            targets=targets,
            head_learning_rate=head * head_factor,
            label_scale=scale,
            seed=seed,
            steps=STEPS.get(task, USUAL_STEPS),
        )


def head_alone(task: str) -> Trial:
    """Return the trial of a head alone on a task, as long as those of the presets."""
    rate = recommend(HEAD_ONLY_NAME).learning_rate
    return Trial(
        method=HEAD_ONLY_NAME,
        learning_rate=rate,
        head_learning_rate=rate,
        targets=None,
        options={},
        task=task,
        steps=STEPS.get(task, USUAL_STEPS),
    )


def check(records: Records, methods: Sequence[str], count: int) -> None:
    """Do the first variations of every preset, four at a time."""
    for first in range(0, count, 4):
        for method in methods:
            for trial in [*variations(method)][first : min(first + 4, count)]:
                records.score(head_alone(trial.task))
                records.score(trial)


def rates(records: Records, methods: Iterable[str], task: str) -> None:
    """Try rates around the recommended one of every preset until the best has a worse one on both sides."""
    for method in methods:
        usual = recommended(method, task=task)
        curve = {factor: records.score(scaled(usual, factor)) for factor in (1.0, 0.5, 2.0)}
        while (best := max(curve, key=lambda factor: curve[factor] or -1.0)) in {min(curve), max(curve)}:
            factor = best / 2 if best == min(curve) else best * 2
            curve[factor] = records.score(scaled(usual, factor))


def scaled(trial: Trial, factor: float) -> Trial:
    """Return a trial with all rates multiplied, as `--learning-rate` does."""
    return replace(
        trial,
        learning_rate=trial.learning_rate * factor,
        head_learning_rate=trial.head_learning_rate * factor,
    )


def summary(records: Records, methods: Sequence[str]) -> int:
    """Print the verdict on every preset's defaults, and return how many runs stayed at their start."""
    count = 0
    for method in methods:
        done = [
            trial for trial in variations(method) if trial in records and head_alone(trial.task) in records
        ]
        stuck = [trial for trial in done if has_stayed(records, trial)]
        count += len(stuck)
        ended = "robust" if len(done) >= VARIATIONS else "robust so far" if done else "not run"
        verdict = "fails" if stuck else ended
        print(f"{method:14} {verdict}: {len(stuck)} of {len(done)} runs stayed at their start")
        for trial in stuck:
            print(f"    {records.score(trial)}  {trial.key()}")
        for task in MARGINS:
            if verdict := verdict_on_rate(records, method, task):
                print(f"    {task}: {verdict}")
    return count


def has_stayed(records: Records, trial: Trial) -> bool:
    """Return whether a run that is done is no better than a head alone."""
    least = (records.score(head_alone(trial.task)) or 0.0) + MARGINS[trial.task]
    return (records.score(trial) or -1.0) < least


def verdict_on_rate(records: Records, method: str, task: str) -> str:
    """Return how far the recommended rate is from the best that was tried; empty with too few."""
    curve = {rate: score or -1.0 for rate, score in sorted(curve_of(records, method, task).items())}
    rate = recommend(method).learning_rate
    if len(curve) < FEWEST_RATES or rate not in curve:
        return ""
    best = max(curve, key=lambda rate: curve[rate])
    cost, bar = curve[best] - curve[rate], f"within {100 * MOST_COST:g} points of the best"
    inside = "" if min(curve) < best < max(curve) else ", at the edge of those tried"
    tried = "  ".join(f"{tried_rate:g} {score:.3f}" for tried_rate, score in curve.items())
    verdict = bar if cost <= MOST_COST else f"not {bar}"
    return f"the default rate {rate:g} is {verdict}, {best:g}{inside} (by {100 * cost:.1f}): {tried}"


def curve_of(records: Records, method: str, task: str) -> dict[float, float | None]:
    """Return the score by rate, of the trials that differ from the recommended one in the rate alone."""
    trials = [json.loads(key) for key in records.scores]
    usual = recommended(method, task=task)
    return {
        trial["learning_rate"]: records.scores[json.dumps(trial, sort_keys=True)]
        for trial in trials
        if json.dumps(trial, sort_keys=True)
        == scaled(usual, trial["learning_rate"] / usual.learning_rate).key()
    }


def main() -> None:
    """Do the runs that are missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", type=int, nargs="?", const=VARIATIONS, metavar="VARIATIONS")
    parser.add_argument("--rates", action="store_true")
    parser.add_argument("--summary", action="store_true")
    parser.add_argument(
        "--methods", nargs="+", default=[*FIRST, *(name for name in discover() if name not in FIRST)]
    )
    parser.add_argument("--task", default="stsb", help="of --rates")
    parser.add_argument("--records", type=Path, default=RECORDS)
    arguments = parser.parse_args()
    logging.disable()
    records = Records(arguments.records)
    does_all = not (arguments.rates or arguments.check or arguments.summary)
    if does_all:
        check(records, arguments.methods, DEFAULTS)
    if does_all or arguments.rates:
        rates(records, arguments.methods, arguments.task)
    if does_all or arguments.check:
        check(records, arguments.methods, arguments.check or VARIATIONS)
    if summary(records, arguments.methods):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
