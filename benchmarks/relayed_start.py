"""Why Relayed LoRA with its zero on the down side fails by chance: its first steps, measured.

STS-B, query and value, r = k = 8, rate 2e-3, batches of 16, gradients clipped at norm 1. For each start it
prints, from step to step: the norm of the gradient before clipping, by how much the outputs of the adapted
layers have changed (norm of the change over the norm of the output, mean over layers, on one batch), and the
standard deviation of the predictions over its rows, which is 0 once a model answers the same to everything.

    RANKFOLD_DATA=DIR python benchmarks/relayed_start.py --out benchmarks/records/relayed_start.json
"""

import argparse
import json
import logging
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from rankfold.runs.prepare import prepare
from rankfold.runs.request import RunRequest

# What both small matrices of the up factor are multiplied by, so that its standard deviation is not LoRA's
# 1 / sqrt(3 r) of an up factor but 1 / sqrt(3 n), that of the down factor which is fixed in the other start.
SMALL = (8 / 384) ** 0.25
STARTS: dict[str, tuple[str, float, float]] = {
    "up": ("up", 0.06, 1.0),
    "down": ("down", 0.06, 1.0),
    "down, no warm-up": ("down", 0.0, 1.0),
    "down, warm-up 30 %": ("down", 0.3, 1.0),
    "down, small up": ("down", 0.06, SMALL),
}
SHOWN = (1, 2, 5, 10, 20, 40, 80, 120)
RATE = 2e-3


def measure(
    zero: str, warmup: float, factor: float, seed: int, steps: int, total: int
) -> list[dict[str, float]]:
    """Return the figures of the first steps of a training that is planned for `total`."""
    request = RunRequest(
        model="minilm",
        task="stsb",
        method="relayed_lora",
        options={"zero": zero, "target_modules": ["query", "value"]},
        max_length=64,
        train_rows=16 * total,
        eval_rows=400,
        steps=total,
        seed=seed,
        out=Path("unwritten"),
    )
    setup = prepare(request)
    model: nn.Module = setup.model
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".rankfold_up." in name:
                parameter.mul_(factor)
    collate = setup.data.kind.collate(setup.learner)
    generator = torch.Generator().manual_seed(seed)
    loader = DataLoader(setup.rows, batch_size=16, shuffle=True, generator=generator, collate_fn=collate)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
    warm_steps = max(1, round(warmup * total))
    probe = collate([*setup.rows[:64]])
    before, _ = outputs(model, probe)
    figures: list[dict[str, float]] = []
    for step, batch in enumerate(loader, start=1):
        rate = RATE * min(step / warm_steps, (total - step + 1) / total if step > warm_steps else 1)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = model(**batch).loss
        loss.backward()
        norm = float(nn.utils.clip_grad_norm_(parameters, 1.0))
        optimizer.step()
        optimizer.zero_grad()
        if step in SHOWN:
            after, predictions = outputs(model, probe)
            changes = [float((new - old).norm() / old.norm()) for old, new in zip(before, after, strict=True)]
            figures.append(
                {
                    "step": step,
                    "loss": round(float(loss.detach()), 4),
                    "gradient": round(norm, 3),
                    "change": round(sum(changes) / len(changes), 4),
                    "spread": round(float(predictions.std()), 4),
                }
            )
        if step == steps:
            break
    return figures


@torch.no_grad()
def outputs(model: nn.Module, batch: dict[str, Tensor]) -> tuple[list[Tensor], Tensor]:
    """Return the outputs of the adapted layers, and the predictions, on a batch."""
    values: list[Tensor] = []
    layers = [layer for name, layer in model.named_modules() if name.endswith(("self.query", "self.value"))]
    hooks = [layer.register_forward_hook(lambda _m, _i, output: values.append(output)) for layer in layers]
    model.eval()
    predictions = model(**batch).logits
    model.train()
    for hook in hooks:
        hook.remove()
    return values, predictions


def main() -> None:
    """Measure every start with every seed, and write the figures down."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--total", type=int, default=120)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    logging.disable()
    torch.set_num_threads(1)
    measured: dict[str, list[list[dict[str, float]]]] = {}
    for seed in range(arguments.seeds):
        for name, start in STARTS.items():
            figures = measure(*start, seed, arguments.steps, arguments.total)
            measured.setdefault(name, []).append(figures)
            for row in figures:
                print(
                    f"{name:20} seed {seed}",
                    *(f"{key} {value:<7g}" for key, value in row.items()),
                    flush=True,
                )
            if arguments.out is not None:
                arguments.out.write_text(
                    json.dumps({"rate": RATE, "total": arguments.total, "starts": measured}, indent=1) + "\n"
                )


if __name__ == "__main__":
    main()
