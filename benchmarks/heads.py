"""Adapters with several heads: time of a training step and bytes kept for the backward pass.

MiniLM, every linear layer, r = 16, against PEFT's own LoRA and against HydraLoRA as its authors publish it: a
loop over heads, each with its own product. Interleaved as in `training_step.py`; bytes are exact.

    python benchmarks/heads.py --rounds 20 --out benchmarks/records/heads.json
    python benchmarks/heads.py --rounds 20 --dropout 0.05 --out benchmarks/records/heads_dropout.json
"""

import argparse
import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ratios import Ratio, interleave, ratios_of
from reducer_step import saved_bytes
from torch import Tensor, nn
from torch.nn import functional
from training_step import REFERENCE, adapted, circumstances, step_of

from rankfold.models.base import resolve_model
from rankfold.tasks.kinds.classification import KIND as CLASSIFICATION

TARGETS: dict[str, Any] = {"target_modules": "all-linear", "r": 16}
HEADS = 4
HYDRA_LOOP = f"HydraLoRA's loop, {HEADS} heads"


class HydraLoop(nn.Module):
    """A linear layer with HydraLoRA as published: one product for each head, weighed on the full output.

    The published loop also drops its input out for each head anew.
    """

    def __init__(self, base: nn.Linear, rank: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.base = base.requires_grad_(requires_grad=False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.ups = nn.ModuleList(nn.Linear(rank, base.out_features, bias=False) for _ in range(heads))
        self.route = nn.Linear(base.in_features, heads, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Add every head's output, times its weight, to the base layer's."""
        result = self.base(x)
        weights = functional.softmax(self.route(x), dim=-1, dtype=torch.float32).to(result.dtype)
        for head, up in enumerate(self.ups):
            result = result + weights[..., head].unsqueeze(-1) * up(self.down(self.dropout(x))) * 2.0
        return result


def hydra_loop(dropout: float) -> nn.Module:
    """Return MiniLM with the published loop on every linear layer of its blocks."""
    model = CLASSIFICATION.load(resolve_model("minilm"), ("no", "yes")).model
    model.requires_grad_(requires_grad=False)
    for name, layer in [
        (name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear)
    ]:
        if ".layer." in name or ".pooler." in name:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, HydraLoop(layer, TARGETS["r"], HEADS, dropout))
    return model.train()


def variants(dropout: float) -> dict[str, Callable[[], nn.Module]]:
    """Return what makes the model of each variant."""
    methods: dict[str, tuple[str, dict[str, Any]]] = {
        REFERENCE: (REFERENCE, {}),
        "effilora, 1 head": ("effilora", {"heads": 1}),
        f"effilora, {HEADS} heads": ("effilora", {"heads": HEADS}),
        f"hydra_lora, {HEADS} heads": ("hydra_lora", {"heads": HEADS}),
        "mix_lora, 4 experts": ("mix_lora", {"heads": HEADS, "balance_loss": 0.0}),
    }
    ours = {
        name: partial(adapted, method, {**TARGETS, **options}, dropout)
        for name, (method, options) in methods.items()
    }
    return {**ours, HYDRA_LOOP: partial(hydra_loop, dropout)}


def measure(batch: dict[str, Tensor], arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return, by variant, the ratio of its time to the reference's, its seconds, and the bytes kept."""
    models = {name: build() for name, build in variants(arguments.dropout).items()}
    kept = {name: saved_bytes(model, batch) for name, model in models.items()}
    steps = {name: step_of(model, batch) for name, model in models.items()}
    times = interleave(steps, arguments.rounds, arguments.seconds)
    ratios = ratios_of(times, REFERENCE)
    return {
        name: {**ratios[name], "seconds": statistics.median(times[name]), "kept_bytes": kept[name]}
        for name in models
    }


def main() -> None:
    """Measure, print the ratios to PEFT's LoRA and to the loop, and write them down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, help="begin no round after so many")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--dropout", type=float, default=0.0, help="HydraLoRA's scripts have 0.05")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = arguments.rows
    batch = {
        "input_ids": torch.randint(1000, 30000, (rows, arguments.tokens)),
        "labels": torch.randint(0, 2, (rows,)),
    }
    measured = measure(batch, arguments)
    reference, loop = measured[REFERENCE], measured[HYDRA_LOOP]
    ratios: dict[str, Ratio] = {}
    for name, values in measured.items():
        values["time_to_reference"] = values.pop("time")
        values["time_to_loop"] = values["seconds"] / loop["seconds"]
        values["bytes_to_reference"] = values["kept_bytes"] / reference["kept_bytes"]
        time, bytes_kept = values["time_to_reference"], values["bytes_to_reference"]
        ratios[name] = {
            "time": time,
            "low": values.pop("low"),
            "high": values.pop("high"),
            "bytes": bytes_kept,
        }
        print(f"{name:32} {time:.3f} {values['time_to_loop']:.3f} {bytes_kept:.3f}")
    if arguments.out is not None:
        record = {**circumstances(arguments), "model": "minilm", "dropout": arguments.dropout}
        record |= {
            "batch": {"rows": rows, "tokens": arguments.tokens},
            "variants": measured,
            "ratios": ratios,
        }
        arguments.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
