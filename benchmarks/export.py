"""Folding against PEFT's own conversion: time, and how far each is from what the adapter computes.

MiniLM, the linear layers of its blocks, every preset that folds. Both get the built model and give the
tensors of a plain LoRA of the adapter's rank: ours by algebra, PEFT's `convert_to_lora` by a singular value
decomposition of every layer's change. Interleaved as in `training_step.py`. Then the certificate of the
exported folder says how far the logits of plain PEFT are on real text; beside it stands how far the adapter's
own logits are from those in double precision, which no export can better.

    python benchmarks/export.py --rounds 5 --out benchmarks/records/export.json
"""

import argparse
import copy
import json
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import peft
import torch
from peft.tuners.lora.conversion import convert_to_lora
from torch import Tensor

import rankfold
from rankfold.adapter.module import adapters_in
from rankfold.export.fold import (
    LowRankUpdate,
    exact_rank,
    fold,
    folding_obstacle,
    relative_error,
    unfolded_update,
)
from rankfold.export.formats.plain_lora import lora_tensors
from rankfold.export.layers import PREFIX
from rankfold.export.logits import read_texts, text_logits
from rankfold.models.base import resolve_model
from rankfold.models.hardware import cpu_name
from rankfold.presets import discover
from rankfold.tasks.kinds.classification import KIND as CLASSIFICATION

RANK, STRENGTH = 8, 0.3
OPTIONS: dict[str, Any] = {
    "r": RANK,
    "target_modules": ["query", "key", "value", "dense"],
    "init_weights": False,
    "task_type": "SEQ_CLS",
}
FOLDABLE = [name for name, preset in discover().items() if folding_obstacle(preset.spec()) is None]

Convert = Callable[[], dict[str, Tensor]]


def adapted(method: str) -> tuple[Any, Any]:
    """Return MiniLM with an adapter about as strong as training makes it: random, and made weaker."""
    loaded = CLASSIFICATION.load(resolve_model("minilm"), ("no", "yes"))
    model = peft.get_peft_model(loaded.model, rankfold.config(method, **OPTIONS)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".rankfold_" in name:
                parameter.mul_(STRENGTH)
    return model, loaded.processor


def folding(model: Any) -> Convert:
    """Return what folds every adapter of a model."""

    def convert() -> dict[str, Tensor]:
        layers = {path.removeprefix(PREFIX): fold(adapter) for path, _, adapter in adapters_in(model)}
        return lora_tensors(layers, torch.float32)

    return convert


def decomposing(model: Any, rank: int) -> Convert:
    """Return PEFT's own conversion."""
    return lambda: convert_to_lora(model, rank)[1]


def worst_error(model: Any, tensors: dict[str, Tensor]) -> float:
    """Return the largest relative error of a layer."""
    errors = [
        relative_error(
            LowRankUpdate(tensors[f"{path}.lora_A.weight"], tensors[f"{path}.lora_B.weight"], exact.geometry),
            exact,
        )
        for path, _, adapter in adapters_in(model)
        for exact in [unfolded_update(adapter)]
    ]
    return max(errors)


def rounding(model: Any, tokenizer: Any) -> float:
    """Return how far the adapter's own logits in float32 are from its logits in float64."""
    texts = read_texts(None)
    single, double = (text_logits(each, tokenizer, texts) for each in (model, copy.deepcopy(model).double()))
    size = torch.cat(double).square().mean().sqrt()
    return max(
        ((one - two).square().mean().sqrt() / size).item() for one, two in zip(single, double, strict=True)
    )


def measure(method: str, rounds: int) -> dict[str, float]:
    """Return the median processor time of both ways, their ratio, and their errors."""
    model, tokenizer = adapted(method)
    rank = exact_rank(discover()[method].spec(r=RANK))
    ways = {"fold": folding(model), "svd": decomposing(model, rank)}
    errors = {f"{name}_error": worst_error(model, convert()) for name, convert in ways.items()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name in random.sample(list(ways), len(ways)):
            start = time.process_time()
            ways[name]()
            times[name].append(time.process_time() - start)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(f"{folder}/adapter")
        logits = rankfold.export_lora(f"{folder}/adapter", f"{folder}/lora", model="minilm").logits
    assert logits is not None, "base and texts are at hand"
    errors["logits_error"] = logits.largest
    errors["logits_rounding"] = rounding(model, tokenizer)
    seconds = {f"{name}_seconds": statistics.median(each) for name, each in times.items()}
    return {**seconds, "ratio": seconds["fold_seconds"] / seconds["svd_seconds"], **errors}


def main() -> None:
    """Measure, print and write down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    methods = {method: measure(method, arguments.rounds) for method in FOLDABLE}
    for method, each in methods.items():
        print(f"{method:14}", *(f"{name} {value:.2g}" for name, value in each.items()))
    if arguments.out is not None:
        record = {
            "command": ["python", *sys.argv],
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {each.__name__: each.__version__ for each in (rankfold, torch, peft)},
            "hardware": {"cpu": cpu_name(), "threads": torch.get_num_threads()},
            "model": "minilm",
            "rounds": arguments.rounds,
            "reference": "peft's convert_to_lora",
            "rank": RANK,
            "methods": methods,
        }
        arguments.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
