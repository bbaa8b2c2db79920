"""Time of a training step against PEFT's own LoRA: interleaved, one thread, medians of process time.

Each method is a model of its own in one process. A round runs every method once, in a random order, so that
whatever else the machine does hits all of them alike; only the ratios to PEFT's LoRA in the same rounds mean
anything.

    python benchmarks/training_step.py --rounds 30 --out benchmarks/records/training_step.json
"""

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import peft
import torch
import transformers
from ratios import Ratio, interleave, ratios_of
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


def measure(
    targets: dict[str, object], arguments: argparse.Namespace
) -> tuple[dict[str, float], dict[str, Ratio]]:
    """Return, by method, the median processor time of a step in seconds, and its ratio to the reference's."""
    torch.manual_seed(0)
    rows = arguments.rows
    batch = {
        "input_ids": torch.randint(1000, 30000, (rows, arguments.tokens)),
        "labels": torch.randint(0, 2, (rows,)),
    }
    steps = {method: step_of(adapted(method, targets), batch) for method in (REFERENCE, *METHODS)}
    times = interleave(steps, arguments.rounds, arguments.seconds and arguments.seconds / len(SETTINGS))
    return {method: statistics.median(of) for method, of in times.items()}, ratios_of(times, REFERENCE)


def circumstances(arguments: argparse.Namespace, reference: str = REFERENCE) -> dict[str, object]:
    """Return the command, versions and hardware that the figures depend on."""
    libraries = {each.__name__: each.__version__ for each in (rankfold, torch, peft, transformers)}
    return {
        "command": ["python", *sys.argv],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **libraries},
        "hardware": {"cpu": cpu_name(), "threads": torch.get_num_threads()},
        "rounds": arguments.rounds,
        "reference": reference,
    }


def main() -> None:
    """Measure every setting, and write down the times and their ratios to the reference's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seconds", type=float, help="begin no round after so many")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings: dict[str, object] = {}
    ratios: dict[str, Ratio] = {}
    for name, targets in SETTINGS.items():
        seconds, measured = measure(targets, arguments)
        settings[name] = {
            "seconds": seconds,
            "ratio": {method: of["time"] for method, of in measured.items()},
        }
        for method, ratio in measured.items():
            ratios[f"{name} {method}"] = ratio
            print(f"{name:16} {method:14} {ratio['time']:.3f}   {ratio['low']:.3f} to {ratio['high']:.3f}")
    if arguments.out:
        batch = {"rows": arguments.rows, "tokens": arguments.tokens}
        record = {**circumstances(arguments), "model": "minilm", "batch": batch, "settings": settings}
        record["ratios"] = ratios
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
