"""What `rankfold bench estimate` says of a step of MiniLM, held against a step on the CPU.

Two classes, every linear layer adapted; the largest sum of what torch's allocator has handed out during one
update, beyond the model itself.

    python benchmarks/estimates.py --out benchmarks/records/estimates.json
"""

import argparse
import json
import sys
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from torch.profiler import ProfilerActivity, profile

import rankfold
from rankfold.bench.estimates import estimate
from rankfold.models.base import resolve_model
from rankfold.runs.methods import find_method
from rankfold.runs.request import RunRequest
from rankfold.tasks.kinds.classification import KIND as CLASSIFICATION

ROWS, LENGTH = 16, 64
METHODS = ("lora", "relayed_lora", "tlora_plus", "effilora", "peft:lora")
OPTIONS: dict[str, Any] = {"target_modules": "all-linear"}


def measured(method: str, precision: str) -> int:
    """Return the most bytes that an update takes at once."""
    base = CLASSIFICATION.load(resolve_model("minilm"), ("no", "yes")).model
    config = find_method(method).config(OPTIONS, "SEQ_CLS", seed=0)
    model: Any = peft.get_peft_model(base, config).train()
    tokens = torch.randint(1000, 20000, (ROWS, LENGTH))
    labels = torch.zeros(ROWS, dtype=torch.long)
    optimizer = torch.optim.AdamW(each for each in model.parameters() if each.requires_grad)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), labels=labels).loss
        loss.backward()
        optimizer.step()
    results: Any = profiled.profiler
    taken = most = 0
    for event in results.kineto_results.events():
        if event.name() == "[memory]":
            taken += event.nbytes()
            most = max(most, taken)
    return most


def predicted(method: str, precision: str) -> int:
    """Return the same as it is estimated: without the weights, and the trained numbers, which were there."""
    request = RunRequest(
        model="minilm",
        method=method,
        options=OPTIONS,
        steps=1,
        batch_size=ROWS,
        max_length=LENGTH,
        precision=precision,
        out=Path(),
    )
    found = estimate(request)
    return (
        found.memory.total - found.memory.weights - 4 * (found.parameters.trainable + found.parameters.head)
    )


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="JSON file to write")
    out: Path | None = parser.parse_args().out
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    for method, precision in product(METHODS, ("fp32", "bf16")):
        said, found = predicted(method, precision), measured(method, precision)
        rows.append({"method": method, "precision": precision, "predicted": said, "measured": found})
        print(f"{method:14} {precision} predicted {said:>12,} measured {found:>12,} ratio {said / found:.3f}")
    if out is not None:
        record = {
            "command": ["python", *sys.argv],
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {each.__name__: each.__version__ for each in (rankfold, torch, peft, transformers)},
            "model": "minilm",
            "rows": ROWS,
            "length": LENGTH,
            "bytes": rows,
        }
        out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
