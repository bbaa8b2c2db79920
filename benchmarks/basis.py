"""Learned bases: r x r numbers a layer on sides learned from other tasks, against LoRA on all linear layers.

MiniLM, 200 updates of 16 rows of similar length in bf16, as in the suite `per-byte`. The sources are adapters
of PEFT's LoRA, r=8 on all linear layers, of nine tasks, each with a seed of its own: LoRA's down factor keeps
much of its random start, which sources of one seed would have in common. For each scored task a basis is
learned from the sources of all others, and cores of rank 18, 9 and 4 are trained on learned, half learned and
seeded directions, beside LoRA itself. Cores are scored as they are stored, in int4; LoRA is in float32.

Rates: a ladder of factor 2 on rows held out of the training splits of all three tasks, one seed each, climbed
until the best mean has a worse one on both sides; one for LoRA, and one for each rank of the core on learned
directions, which the other directions share. A rate that fits one task alone does not leave the majority of
another in some seeds. The trials are among the records.

The learned directions and LoRA go seed by seed before the others. A run that is done is not repeated: stopped
at any time, the same command goes on. `--report` runs nothing and prints what there is: each difference to
LoRA, on each task and on their mean, with its interval, verdict, and the smallest difference that the design
shows with 80 % power. Stated before the runs: the margin is one point, and the comparisons of learned
directions are corrected together (Holm), apart from the others. With `--per-byte`, the records of that suite,
the smallest cores also stand against the best of PEFT's methods in 12 KiB.

    nice -n 19 python benchmarks/basis.py --data ../shared/data --work basis_runs
    python benchmarks/basis.py --work basis_runs --report --per-byte benchmarks/records/per-byte
    rankfold bench archive basis_runs/runs --out benchmarks/records/basis
"""

import argparse
import gzip
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

from rankfold.bench.executors.processes import Processes
from rankfold.bench.statistics.claims import Claim, Rules, judge
from rankfold.bench.statistics.comparison import goodness
from rankfold.bench.suites.runner import run_all
from rankfold.bench.suites.search import Ladder
from rankfold.runs.record import RunRecord
from rankfold.runs.records import find_records
from rankfold.runs.request import RunRequest
from rankfold.store.basis import find_basis

MODEL = "minilm"
SOURCES = {
    "sst2": 100, "easy_vqa": 101, "qnli": 102, "ag_news": 104, "stsb": 105, "same_topic": 108,
    "arc_pairs": 106, "bbc_news": 107, "mrpc": 103,
}  # fmt: skip
SCORED: Mapping[str, Mapping[str, Any]] = {
    "stsb": {},
    "sst2": {"train_rows": 3200},
    "qnli": {"train_rows": 3200},
}
TUNED: Mapping[str, int] = {"stsb": 0, "sst2": 1, "qnli": 2}
"""The tasks whose mean chooses a rate, with the seeds of their trials."""

TUNING_ROWS = 500
SOURCE_STEPS = {"mrpc": 600}  # it does not leave its majority in fewer
PAIR_SEED = 7
LORA = "lora-r8"
LORA_OPTIONS = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}
RATES = {LORA: 1e-3, "r18": 1e-2, "r9": 2e-2, "r4": 2e-2}
"""Where the ladders begin."""

RANKS = (18, 9, 4)
SHARES = {"learned": 0.0, "half": 0.5, "seeded": 1.0}
"""The share of seeded directions, by the name of a kind of basis."""

BASE: Mapping[str, Any] = {
    "model": MODEL,
    "steps": 200,
    "max_length": 64,
    "group_by_length": True,
    "precision": "bf16",
    "validate": "end",
    "checkpoint_every": 0,
    "threads": 1,
}
ROWS, MARGIN = 2000, 0.01
TWELVE_KIB = 12 * 1024


def columns(task: str) -> list[str]:
    """Return the options of the tasks that rankfold does not know by name."""
    match task:
        case "easy_vqa":
            return ["--kind", "classification", "--text-column", "question", "--label-column", "answer"]
        case "arc_pairs" | "same_topic":
            return [
                "--kind",
                "classification",
                "--text-column",
                "a",
                "--pair-column",
                "b",
                "--label-column",
                "label",
            ]
        case _:
            return []


def pairs(task: str, rows: Sequence[dict[str, object]]) -> Iterator[dict[str, object]]:
    """Yield labelled pairs of texts: a question and an answer, right or not; news of one topic, or not."""
    draw = random.Random(PAIR_SEED)
    for row in rows:
        if task == "arc_pairs":
            choices = list(row["choices"])  # pyright: ignore[reportArgumentType]
            right = choices.pop(int(str(row["answer"])))
            yield {"a": row["question"], "b": right, "label": "right"}
            yield {"a": row["question"], "b": draw.choice(choices), "label": "wrong"}
        else:
            other = draw.choice(
                [one for one in draw.sample(rows, 40) if draw.random() < 0.5 or one["label"] == row["label"]]
            )
            label = "same" if other["label"] == row["label"] else "different"
            yield {"a": row["text"], "b": other["text"], "label": label}


def read(file: Path) -> list[dict[str, object]]:
    """Return the rows of a gzipped JSONL file."""
    with gzip.open(file, "rt") as lines:
        return [json.loads(line) for line in lines]


def source_data(task: str, data: Path, work: Path) -> list[str]:
    """Return the options that name the data of a source, which is written first where it is derived."""
    if task == "easy_vqa":
        folder = work / "data" / task
        for split in ("train", "validation"):
            rows = read(data / task / f"{split}.jsonl.gz")
            answers = ({"question": row["question"], "answer": f"answer {row['answer']}"} for row in rows)
            write(folder / f"{split}.jsonl", answers)
        return ["--data", str(folder)]
    if task in ("arc_pairs", "same_topic"):
        folder, origin = work / "data" / task, {"arc_pairs": "arc_easy", "same_topic": "ag_news"}[task]
        for split in ("train", "validation"):
            write(folder / f"{split}.jsonl", pairs(task, read(data / origin / f"{split}.jsonl.gz")))
        return ["--data", str(folder)]
    return ["--task", task, "--data-root", str(data)]


def write(file: Path, rows: Iterator[dict[str, object]]) -> None:
    """Write rows as JSONL, unless they are there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def rankfold(*words: str) -> None:
    """Run a command of rankfold on one core."""
    subprocess.run(
        [sys.executable, "-m", "rankfold", *words], env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True
    )


def train_source(task: str, data: Path, work: Path) -> None:
    """Train the adapter of a source, unless it is there."""
    out = work / "sources" / task
    if (out / "run.json").exists():
        return
    steps, seed = SOURCE_STEPS.get(task, 300), SOURCES[task]
    options = [word for key, value in LORA_OPTIONS.items() for word in ("--set", f"{key}={value}")]
    rankfold(
        "train", "--model", MODEL, *source_data(task, data, work), *columns(task), "--method", "peft:lora",
        *options, "--learning-rate", "1e-3", "--steps", str(steps), "--seed", str(seed), "--max-length", "64",
        "--group-by-length", "--precision", "bf16", "--eval-rows", "200", "--out", str(out),
    )  # fmt: skip


@dataclass(frozen=True)
class Benchmark:
    """What is run, and where.

    Args:
        data: The folder of tasks.
        work: Gets sources, bases and runs.
        sources: The tasks that bases are learned from.
        seeds: Of every row.
        jobs: Runs at once.
    """

    data: Path
    work: Path
    sources: Sequence[str]
    seeds: range
    jobs: int = 1

    def learn(self, task: str, kind: str) -> str:
        """Return the digest of a basis for a scored task, learned from the sources of all other tasks."""
        file = self.work / "bases" / f"{task}-{kind}-{len(self.sources)}.basis"
        if not file.exists():
            adapters = [
                word for name in self.sources if name != task
                for word in ("--from", str(self.work / "sources" / name))
            ]  # fmt: skip
            share = str(SHARES[kind])
            rankfold("basis", "learn", *adapters, "--rank", "32", "--seeded", share, "--out", str(file))
        return find_basis(str(file)).digest

    def request(self, task: str, row: str, seed: int, rate: float, *, is_trial: bool = False) -> RunRequest:
        """Return a run of a row on a task, or a trial of a rate."""
        place = f"trials/{task}-{row}-{rate:g}" if is_trial else f"{task}/{row}/seed{seed}"
        kind, _, rank = row.rpartition("-r")
        core = row != LORA
        return RunRequest(
            **{**BASE, **SCORED[task]},
            method="basis_core" if core else "peft:lora",
            options={"basis": self.learn(task, kind), "r": int(rank)} if core else LORA_OPTIONS,
            store="int4" if core and not is_trial else None,
            task=task,
            data_root=str(self.data),
            learning_rate=rate,
            seed=seed,
            eval_rows=TUNING_ROWS if is_trial else ROWS,
            hold_out=is_trial,
            out=self.work / "runs" / place,
        )

    def tune(self, name: str) -> float:
        """Return the best rate of LoRA, or of the core of a rank on learned directions."""
        ladder = Ladder({"learning_rate": {"center": RATES[name], "factor": 2.0}})
        curve: dict[float, float] = {}
        while rates := [values["learning_rate"] for values in ladder.suggest()]:
            row = name if name == LORA else f"learned-{name}"
            for rate in rates:
                trials = [self.request(task, row, seed, rate, is_trial=True) for task, seed in TUNED.items()]
                curve[rate] = mean(map(goodness, run(trials, self.jobs)))
            ladder.report([curve[rate] for rate in rates])
        best = max(curve, key=lambda rate: curve[rate])
        print(f"{name}: rate {best:g} of {dict(sorted(curve.items()))}", flush=True)
        return best

    def run(self) -> None:
        """Do everything that is not done."""
        for task in self.sources:
            train_source(task, self.data, self.work)
        rates = {name: self.tune(name) for name in RATES}
        first = [LORA, *(f"learned-r{rank}" for rank in RANKS)]
        others = [f"{kind}-r{rank}" for kind in SHARES for rank in RANKS if kind != "learned"]
        for rows in (first, others):
            for seed in self.seeds:
                requests = [
                    self.request(task, row, seed, rates.get(row) or rates[row.split("-")[1]])
                    for task, row in product(SCORED, rows)
                ]
                for record in run(requests, self.jobs):
                    out = record.request.out
                    print(
                        f"{record.task.name} {out.parent.name} {out.name}: {goodness(record):.4f}", flush=True
                    )


def run(requests: Sequence[RunRequest], jobs: int) -> list[RunRecord]:
    """Do runs, each in a process, unless they are done."""
    outcomes = run_all(requests, executor=Processes(jobs))
    for outcome in outcomes:
        if outcome.record is None:
            raise SystemExit(f"'{outcome.request.out}' failed: {outcome.error}")
    return [outcome.record for outcome in outcomes if outcome.record]


Studies = dict[tuple[str, str], dict[str, list[RunRecord]]]


def best_of_peft(folder: Path) -> dict[str, list[RunRecord]]:
    """Return the runs by task of the best method of PEFT in 12 KiB of float32 in a suite's records."""
    groups: dict[str, list[RunRecord]] = {}
    for record in find_records(folder):
        is_small = record.method.name.startswith("peft:") and record.bytes.learned <= TWELVE_KIB
        if is_small and record.status == "done" and not (record.request.store or record.request.hold_out):
            options = json.dumps(dict(record.request.options), sort_keys=True)
            groups.setdefault(f"{record.method.name} {options}", []).append(record)
    by_task = {
        name: {task: [record for record in records if record.task.name == task] for task in SCORED}
        for name, records in groups.items()
    }
    complete = {name: tasks for name, tasks in by_task.items() if all(tasks.values())}
    name = max(complete, key=lambda name: mean(mean(map(goodness, runs)) for runs in complete[name].values()))
    print(f"The best of PEFT's in 12 KiB: {name}\n")
    return complete[name]


def report(work: Path, per_byte: Path | None) -> None:
    """Print scores, curves of rates, differences to LoRA and verdicts."""
    studies: Studies = {(MODEL, task): {} for task in SCORED}
    for record in find_records(work / "runs"):
        if record.request.hold_out:
            print(f"trial {record.name}: {goodness(record):.4f}")
        elif record.status == "done":
            row = record.request.out.parent.name
            studies[MODEL, record.task.name].setdefault(row, []).append(record)
    print_scores(studies)
    rows = [f"{kind}-r{rank}" for kind in SHARES for rank in RANKS]
    for title, names in (("Learned directions", rows[:3]), ("Other directions", rows[3:])):
        print_claims(title, studies, [(name, LORA) for name in names], "not inferior")
    print_claims(
        "Learned against seeded", studies, [(f"learned-r{rank}", f"seeded-r{rank}") for rank in RANKS],
        "greater",
    )  # fmt: skip
    if per_byte is not None:
        for task, records in best_of_peft(per_byte).items():
            studies[MODEL, task]["PEFT's best in 12 KiB"] = records
        print_claims("In 1 KiB", studies, [("learned-r4", "PEFT's best in 12 KiB")], "greater")


def print_scores(studies: Studies) -> None:
    """Print the mean of every row, as it is and as it is stored."""
    print("\n| task | row | seeds | numbers | bytes | float32 | as stored |\n|" + " --- |" * 7)
    for (_, task), rows in studies.items():
        for row, records in sorted(rows.items()):
            stored = [record.stored.get("int4") for record in records]
            learned = stored[0].bytes if stored[0] else records[0].bytes.learned
            scores = [part.score for part in stored if part]
            print(
                f"| {task} | {row} | {len(records)} | {records[0].parameters.stored:,} | {learned:,} | "
                f"{mean(map(goodness, records)):.4f} | {f'{mean(scores):.4f}' if scores else ''} |"
            )


def print_claims(title: str, studies: Studies, pairs: Sequence[tuple[str, str]], expect: Any) -> None:
    """Print differences in points, on each task and on their mean, with verdicts corrected together."""
    claims = [
        Claim(
            first, "", f"{first} against {second}", expect, ((first, second),), MARGIN * (expect != "greater")
        )
        for first, second in pairs
    ]
    print(f"\n{title}\n\n| difference | task | seeds | points | verdict | could show |\n|" + " --- |" * 6)
    for tasks in ("each", "mean"):
        for judged in judge(claims, studies, rules=Rules(MARGIN, tasks), reference=LORA):
            for finding in judged.findings:
                if finding.difference is None or (tasks == "mean" and not finding.parts):
                    continue
                gap, relation = finding.difference.interval, finding.note or finding.relation(judged.claim)
                print(
                    f"| {judged.claim.text} | {finding.task} | {finding.seeds} | {100 * gap.value:+.1f} "
                    f"[{100 * gap.low:+.1f}, {100 * gap.high:+.1f}] | {relation} | "
                    f"{100 * (finding.detectable or 0):.1f} |"
                )


def main() -> None:
    """Train the sources, tune, learn the bases, and train and score what is compared."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with one subfolder per task")
    parser.add_argument("--work", type=Path, required=True, help="folder of sources, bases and runs")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--sources", nargs="+", default=list(SOURCES), choices=list(SOURCES))
    parser.add_argument("--report", action="store_true", help="print what there is, run nothing")
    parser.add_argument("--per-byte", type=Path, help="of --report: the records of that suite")
    arguments = parser.parse_args()
    if arguments.report:
        report(arguments.work, arguments.per_byte)
        return
    if arguments.data is None:
        parser.error("--data is needed to run")
    os.environ["RANKFOLD_HOME"] = str(arguments.work.resolve() / "home")  # where bases are kept by digest
    seeds = range(arguments.seeds)
    Benchmark(arguments.data, arguments.work, arguments.sources, seeds, arguments.jobs).run()


if __name__ == "__main__":
    main()
