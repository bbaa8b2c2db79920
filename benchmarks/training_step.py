"""Time of a training step against PEFT's own LoRA: interleaved, one thread, medians of process time.

Each method is a model of its own in one process. A round runs every method once, in a random order, so that
whatever else the machine does hits all of them alike; only the ratios to PEFT's LoRA in the same rounds mean
anything.

    python benchmarks/training_step.py --rounds 30 --out benchmarks/records/training_step.json
"""

import argparse
import json
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import peft
import torch
import transformers
from torch import nn

import rankfold
from rankfold.models.base import resolve_model
from rankfold.models.hardware import cpu_name
from rankfold.progress import quiet_libraries
from rankfold.tasks.kinds.classification import KIND as CLASSIFICATION

SETTINGS = {
    "q,v r8": {"target_modules": ["query", "value"], "r": 8},
    "all-linear r16": {"target_modules": "all-linear", "r": 16},
}
METHODS = ("lora", "relayed_lora", "tlora", "tlora_plus", "lora_fa", "share_lora")
REFERENCE = "peft:lora"


def adapted(method: str, targets: dict[str, object], dropout: float = 0.0) -> nn.Module:
    """Return MiniLM with an adapter, in training mode."""
    base = CLASSIFICATION.load(resolve_model("minilm"), ("no", "yes")).model
    if method == REFERENCE:
        config = peft.LoraConfig(lora_alpha=16, lora_dropout=dropout, task_type="SEQ_CLS", **targets)
    else:
        config = rankfold.config(method, task_type="SEQ_CLS", dropout=dropout, **targets)
    with quiet_libraries():
        return peft.get_peft_model(base, config).train()


def step_of(model: nn.Module, batch: dict[str, torch.Tensor]) -> Callable[[], None]:
    """Return a function that does one training step."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)

    def step() -> None:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def measure(targets: dict[str, object], rounds: int, rows: int, tokens: int) -> dict[str, float]:
    """Return, for each method, the median over the rounds of the processor time of a step, in seconds."""
    torch.manual_seed(0)
    batch = {"input_ids": torch.randint(1000, 30000, (rows, tokens)), "labels": torch.randint(0, 2, (rows,))}
    steps = {method: step_of(adapted(method, targets), batch) for method in (REFERENCE, *METHODS)}
    for step in steps.values():
        step()
    times: dict[str, list[float]] = {method: [] for method in steps}
    for _ in range(rounds):
        for method in random.sample(list(steps), len(steps)):
            start = time.process_time()
            steps[method]()
            times[method].append(time.process_time() - start)
    return {method: statistics.median(each) for method, each in times.items()}


def circumstances(arguments: argparse.Namespace) -> dict[str, object]:
    """Return what the figures depend on, and what repeats them."""
    libraries = {each.__name__: each.__version__ for each in (rankfold, torch, peft, transformers)}
    return {
        "command": ["python", *sys.argv],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **libraries},
        "hardware": {"cpu": cpu_name(), "threads": torch.get_num_threads()},
        "model": "minilm",
        "batch": {"rows": arguments.rows, "tokens": arguments.tokens},
        "rounds": arguments.rounds,
        "reference": REFERENCE,
    }


def main() -> None:
    """Measure every setting, and write down the times and their ratios to the reference's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings: dict[str, object] = {}
    for name, targets in SETTINGS.items():
        seconds = measure(targets, arguments.rounds, arguments.rows, arguments.tokens)
        ratios = {method: each / seconds[REFERENCE] for method, each in seconds.items()}
        settings[name] = {"seconds": seconds, "ratio": ratios}
        for method, ratio in ratios.items():
            print(f"{name:16} {method:14} {ratio:.3f}")
    if arguments.out:
        record = {**circumstances(arguments), "settings": settings}
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
