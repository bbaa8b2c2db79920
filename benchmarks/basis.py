"""Learned bases: r x r numbers a layer on sides learned from other tasks, against LoRA on all linear layers.

MiniLM. The sources are adapters of PEFT's LoRA, r=8 on all linear layers, of nine tasks, each with a seed of
its own: LoRA's down factor keeps much of its random start, which sources of one seed would have in common.
For each scored task a basis is learned from the sources of all others, and cores of rank 18, 9 and 4 are
trained on learned, half learned and seeded directions, beside LoRA itself. The runs go seed by seed, so that
every comparison grows at the same pace. A run whose record is there is not repeated: stopped at any time, the
same command goes on. `--sources` limits the sources, for a first look.

    nice -n 19 python benchmarks/basis.py --data ../shared/data --work basis_runs \
        --out benchmarks/records/basis.jsonl
"""

import argparse
import gzip
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

MODEL = "minilm"
SOURCES = {
    "sst2": 100, "easy_vqa": 101, "qnli": 102, "ag_news": 104, "stsb": 105, "same_topic": 108,
    "arc_pairs": 106, "bbc_news": 107, "mrpc": 103,
}  # fmt: skip
SCORED = ("stsb", "sst2", "qnli")
LORA = (
    "--method",
    "peft:lora",
    "--set",
    "r=8",
    "--set",
    "lora_alpha=16",
    "--set",
    "target_modules=all-linear",
)
SOURCE_STEPS = {"mrpc": 600}  # it does not leave its majority in fewer
PAIR_SEED = 7
RANKS = (18, 9, 4)
SHARES = {"learned": 0.0, "half": 0.5, "seeded": 1.0}
"""The share of seeded directions, by the name of a kind of basis."""

STEPS, ROWS = 300, 2000


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
    rankfold(
        "train", "--model", MODEL, *source_data(task, data, work), *columns(task), *LORA,
        "--learning-rate", "1e-3", "--steps", str(steps), "--seed", str(seed), "--max-length", "64",
        "--eval-rows", "200", "--out", str(out),
    )  # fmt: skip


def learn(task: str, kind: str, sources: Sequence[str], work: Path) -> Path:
    """Return the basis of a kind for a scored task, learned from the sources of all other tasks."""
    file = work / "bases" / f"{task}-{kind}-{len(sources)}.basis"
    if not file.exists():
        adapters = [
            word for one in sources if one != task for word in ("--from", str(work / "sources" / one))
        ]
        rankfold(
            "basis", "learn", *adapters, "--rank", "32", "--seeded", str(SHARES[kind]), "--out", str(file)
        )
    return file


def score(
    task: str, name: str, seed: int, method: Sequence[str], rate: str, arguments: argparse.Namespace
) -> None:
    """Train and evaluate one run, and add its line to the records, unless it is there."""
    key = {"task": task, "method": name, "seed": seed, "sources": len(set(arguments.sources) - {task})}
    known = arguments.out.read_text().splitlines() if arguments.out.exists() else []
    if any(key.items() <= json.loads(line).items() for line in known):
        return
    out = arguments.work / "runs" / f"{task}-{name}-{seed}-{key['sources']}"
    rankfold(
        "train", "--model", MODEL, "--task", task, "--data-root", str(arguments.data), *method,
        "--learning-rate", rate, "--steps", str(STEPS), "--seed", str(seed), "--eval-rows", str(ROWS),
        "--validate", "end", "--out", str(out), "--overwrite",
    )  # fmt: skip
    run = json.loads((out / "run.json").read_text())
    metric = run["task"]["metric"]
    record = {
        **key, "metric": metric, "score": run["metrics"][metric], "numbers": run["parameters"]["stored"],
        "learning_rate": float(rate), "steps": STEPS, "seconds": run["seconds"]["train"],
        "cpu": run["hardware"]["cpu"],
    }  # fmt: skip
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with arguments.out.open("a") as records:
        records.write(f"{json.dumps(record)}\n")


def main() -> None:
    """Train the sources, learn the bases, and train and score what is compared."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sources", nargs="+", default=list(SOURCES), choices=list(SOURCES))
    arguments = parser.parse_args()
    for task in arguments.sources:
        train_source(task, arguments.data, arguments.work)
    for seed in range(arguments.seeds):
        for task in SCORED:
            score(task, "lora-r8", seed, LORA, "1e-3", arguments)
            for kind in SHARES:
                basis = learn(task, kind, arguments.sources, arguments.work)
                for r in RANKS:
                    core = ("--method", "basis_core", "--set", f"basis={basis}", "--set", f"r={r}")
                    score(task, f"{kind}-r{r}", seed, core, "1e-2", arguments)


if __name__ == "__main__":
    main()
