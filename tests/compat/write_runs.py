"""The part of the compatibility corpus that the commands of rankfold 0.1.0 wrote: runs of every kind."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.support.tiny_models import question_rows, review_rows

BUDGET = "--steps 8 --batch-size 8 --max-length 32 --threads 1 --learning-rate 0.03"
BERT, LLAMA = "--model bases/bert", "--model bases/llama"
REVIEWS = f"{BERT} --data data/reviews"
CHOICES = f"{LLAMA} --data data/choices"
LORA = "--method lora --set r=2"
CORES = "--method tlora_plus --set r=2"
RELAYS = "--method relayed_lora --set r=2 --set k=2 --set dropout=0.2"
HEADS = "--method effilora --set r=2 --set heads=2 --set dropout=0.2"
PEFT_LORA = "--method peft:lora --set r=2 --set target_modules=query,value"
REDUCER = "--reducer-set active_fraction=0.5 --reducer-set interval=2 --reducer-set start_step=2"
CSV = "--data data/people.csv --kind classification --text-column words --label-column liked"

# These are also stopped after a checkpoint in the middle of an epoch.
STOPPED = {
    "classification": f"{REVIEWS} {RELAYS}",
    "reducer": f"{REVIEWS} {HEADS} {REDUCER} --lr-group up=4 --lr-group router=0.5",
    "instruction": f"{LLAMA} --data data/questions {HEADS}",
}
RUNS = {
    **STOPPED,
    "regression": f"{BERT} --data data/ratings {LORA} --validate end",
    "choices": f"{CHOICES} {LORA}",
    "choices-generated": f"{CHOICES} {LORA} --scoring generated --max-length 48",
    "mixture": f"{BERT} --task few+many --data-root data --mixture all {LORA}",
    "peft-lora": f"{REVIEWS} {PEFT_LORA}",
    "head-only": f"{REVIEWS} --method head_only",
    "frozen-head": f"{REVIEWS} {LORA} --freeze-head --weight-decay 0.1 --scheduler cosine",
    "limited": f"{REVIEWS} {LORA} --train-rows 20 --eval-rows 7 --seed 3 --warmup 0.5",
    "tlora-plus": f"{REVIEWS} {CORES} --tlora-ratio 4 --lr-base-role core",
    "per-module": f"{REVIEWS} {CORES} --lr-per-module",
    "loraplus": f"{REVIEWS} {LORA} --loraplus-ratio 16",
    "people": f"{BERT} {CSV} --group-column person --hold-out {LORA}",
}
SUITE = """\
name = "compat"
seeds = [0, 1]
models = ["bases/bert"]

[base]
data = "data/reviews"
steps = 3
batch_size = 8
max_length = 32

[tuning]
space = { learning_rate = [1e-2, 3e-2] }
base = { steps = 2 }

[[methods]]
name = "lora"
options = { r = 2 }

[[methods]]
name = "peft:lora"
options = { r = 2, target_modules = ["query", "value"] }
"""
FIT = f"{REVIEWS} --methods lora,tlora --budget-params 500 --run --steps 4 --batch-size 8 --max-length 32"


def write_data() -> None:
    """Write one task of every kind, and two that are mixed."""
    for name, rows in {
        "reviews": review_rows,
        "ratings": _ratings,
        "questions": question_rows,
        "choices": _choices,
        "few": review_rows,
        "many": lambda count, *, seed: review_rows(count + 16, seed=seed + 5),
    }.items():
        _write_rows(Path("data") / name, train=rows(32, seed=0), validation=rows(12, seed=1))
    answers = ("no", "yes")
    lines = [
        f"{row['sentence']},{answers[row['label']]},{index // 2}" for index, row in enumerate(review_rows(40))
    ]
    Path("data/people.csv").write_text("\n".join(["words,liked,person", *lines]) + "\n", "utf-8")


def _ratings(count: int, *, seed: int) -> list[dict]:
    rows = enumerate(review_rows(count, seed=seed))
    return [{"text": row["sentence"], "label": row["label"] + index % 4 / 4} for index, row in rows]


def _choices(count: int, *, seed: int) -> list[dict]:
    return [
        {"question": row["sentence"], "choices": ["false", "true"], "answer": row["label"]}
        for row in review_rows(count, seed=seed)
    ]


def _write_rows(folder: Path, **splits: list[dict]) -> None:
    folder.mkdir(parents=True)
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def write_runs() -> None:
    """Write finished runs, stopped runs, a failed run, and the folders of a suite and of a choice."""
    for name, words in RUNS.items():
        _call(f"train {BUDGET} {words} --out runs/{name}")
    for name, words in STOPPED.items():
        _stop(name, f"train {BUDGET} {words} --checkpoint-every 5 --out stopped/{name}")
    _call(f"train {BUDGET} {REVIEWS} {LORA} --learning-rate 1e38 --out runs/failed", code=1)
    Path("suite.toml").write_text(SUITE, "utf-8")
    _call("compare --suite suite.toml --threads 1 --out suite")
    _call(f"fit {FIT} --threads 1 --out fit")
    for page in Path().glob("*/*.html"):  # large, and read by nobody
        page.unlink()


def _call(command: str, *, code: int = 0) -> None:
    done = subprocess.run(_program(command), check=False, capture_output=True, text=True)
    assert done.returncode == code, (command, done.stderr)


def _stop(name: str, command: str) -> None:
    """Kill a run as soon as its first checkpoint is whole."""
    folder = Path("stopped") / f"{name}.unfinished"
    seal = folder / "checkpoint-5" / "complete.json"
    child = subprocess.Popen(_program(command), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not seal.exists() and child.poll() is None:
        time.sleep(0.001)
    child.kill()
    assert child.wait() == -signal.SIGKILL, f"'{name}' ended before it was stopped"
    assert seal.exists()
    assert not (Path("stopped") / name).exists()
    shutil.rmtree(folder / ".new", ignore_errors=True)


def _program(command: str) -> list[str]:
    return [sys.executable, "-m", "rankfold", *command.split()]
