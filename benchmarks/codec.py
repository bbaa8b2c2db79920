"""Scores of adapters that are rounded after training: int8, int4, int3 and int2 against float32.

Every preset, and PEFT's LoRA, trains MiniLM on each task with several seeds. Each trained adapter is measured
once as it is and once in each type, on the same held-out rows, so that differences are the codec's alone. The
record is written after each run, and a run that is in it is not done again; run the same command to go on.

    python benchmarks/codec.py --data-root data --out benchmarks/records/codec.json
    python benchmarks/codec.py --out benchmarks/records/codec.json --report
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import peft
import scipy.stats
import torch
import transformers

import rankfold
from rankfold import presets
from rankfold.files import write_whole
from rankfold.runs.methods import PEFT_LORA
from rankfold.runs.prepare import RunSetup, prepare
from rankfold.runs.request import RunRequest
from rankfold.store.adapter import SavedAdapter
from rankfold.store.rounding import GRIDS, restore, round_adapter
from rankfold.train.trainer import train_model

TASKS = ("stsb", "sst2", "qnli")
EXACT = "fp32"
BAR = {"int4": 0.3}
"""The most points that a type may cost."""

Run = dict[str, Any]


def requests(arguments: argparse.Namespace) -> Iterator[RunRequest]:
    """Yield the runs; all methods and tasks with the first seed come first."""
    methods = arguments.method or [PEFT_LORA, *presets.discover()]
    for seed, method, task in product(range(arguments.seeds), methods, TASKS):
        yield RunRequest(
            model="minilm",
            method=method,
            task=task,
            data_root=arguments.data_root,
            steps=arguments.steps,
            eval_rows=arguments.rows,
            seed=seed,
            group_by_length=True,
            precision="bf16",
            max_length=64,
            out=Path("unused"),
            device="cpu",
        )


def measure(request: RunRequest) -> Run:
    """Train one adapter, and return its score and bytes in each type."""
    setup = prepare(request)
    collate = setup.data.kind.collate(setup.learner)
    train_model(
        setup.model,
        setup.rows,
        setup.schedule,
        collate=collate,
        kind=setup.data.kind,
        device=setup.device,
        groups=setup.groups,
    )
    with tempfile.TemporaryDirectory() as folder:
        setup.model.save_pretrained(folder)
        exact = rankfold.open_adapter(folder)
    forms = {EXACT: exact, **{name: round_adapter(exact, name) for name in GRIDS}}
    return {
        **identity(request),
        "metric": setup.data.task.metrics[0],
        "learning_rate": setup.schedule.learning_rate,
        "numbers": sum(tensor.numel() for tensor in exact.tensors.values()),
        "bytes": {name: form.learned_bytes for name, form in forms.items()},
        "score": {name: score(setup, restore(form)) for name, form in forms.items()},
    }


def score(setup: RunSetup, adapter: SavedAdapter) -> float:
    """Return the primary metric with the numbers of an adapter."""
    peft.set_peft_model_state_dict(setup.model, dict(adapter.tensors))
    return setup.data.evaluate(setup.learner, "validation").metrics[setup.data.task.metrics[0]]


def identity(request: RunRequest) -> Run:
    """Return the values that tell the runs of a record apart."""
    names = ("method", "task", "seed", "steps", "eval_rows")
    return {name: getattr(request, name) for name in names}


def differences(runs: Sequence[Run], name: str) -> dict[str, float]:
    """Return the mean difference of a type from float32 in points, with its 95 % interval, and the worst."""
    points = 100 * np.array([run["score"][name] - run["score"][EXACT] for run in runs])
    reach = 0.0
    if len(points) > 1:
        reach = float(scipy.stats.t.ppf(0.975, len(points) - 1) * scipy.stats.sem(points))
    mean = float(points.mean())
    return {
        "runs": len(points),
        "mean": mean,
        "low": mean - reach,
        "high": mean + reach,
        "worst": points.min(),
    }


def report(runs: Sequence[Run]) -> str:
    """Return a table of the differences for each method, and for all of them."""
    groups = {
        method: [run for run in runs if run["method"] == method] for run in runs for method in [run["method"]]
    }
    lines = [
        "| method | runs | fp32 | " + " | ".join(GRIDS) + " |",
        "| --- | ---: | ---: |" + " ---: |" * len(GRIDS),
    ]
    for method, group in {**groups, "all": list(runs)}.items():
        cells = [f"{100 * np.mean([run['score'][EXACT] for run in group]):.1f}"]
        for name in GRIDS:
            found = differences(group, name)
            cells.append(f"{found['mean']:+.2f} [{found['low']:+.2f}, {found['high']:+.2f}]")
        lines.append(f"| {method} | {len(group)} | {' | '.join(cells)} |")
    verdicts = [
        f"{name} costs less than {bar} points: {differences(runs, name)['low'] > -bar}"
        for name, bar in BAR.items()
    ]
    return "\n".join([*lines, "", *verdicts])


def main() -> None:
    """Do the runs that the record lacks, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file, which is continued if it exists")
    parser.add_argument("--data-root", help="folder with one subfolder per task")
    parser.add_argument("--method", action="append", help="only this method; may be repeated")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--report", action="store_true", help="print the table of the record, run nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runs: list[Run] = json.loads(arguments.out.read_text())["runs"] if arguments.out.is_file() else []
    for request in () if arguments.report else requests(arguments):
        if any(identity(request).items() <= run.items() for run in runs):
            continue
        runs.append(measure(request))
        write_whole(arguments.out, f"{json.dumps(record(runs), indent=1)}\n".encode())
        print(json.dumps(runs[-1]), flush=True)
    print(report(runs))


def record(runs: Sequence[Run]) -> Mapping[str, Any]:
    """Return the record of runs."""
    modules = (rankfold, torch, peft, transformers)
    return {"versions": {module.__name__: module.__version__ for module in modules}, "runs": list(runs)}


if __name__ == "__main__":
    main()
