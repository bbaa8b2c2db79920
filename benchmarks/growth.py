"""Growth of a training step's time and kept bytes with rank, heads, tokens and layers, against PEFT's LoRA.

A BERT of MiniLM's sizes with random weights, adapters on all linear layers, no dropout, one thread. Along an
axis the other values are those of the middle: r = 16, 4 heads, 8 rows of 64 tokens, 6 layers. The exponent is
the slope of the logarithm of the ratio along the axis: 0 where a method grows as PEFT's LoRA does.

    python benchmarks/growth.py --rounds 10 --out benchmarks/records/growth.json
    python benchmarks/growth.py --chart docs/assets/growth.svg --out benchmarks/records/growth.json
"""

import argparse
import copy
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import peft
import torch
from ratios import Ratio, interleave, ratios_of
from reducer_step import saved_bytes
from torch import nn
from training_step import REFERENCE, circumstances, step_of
from transformers import BertConfig, BertForSequenceClassification

import rankfold
from rankfold.progress import quiet_libraries


@dataclass(frozen=True)
class Point:
    """One setting; its rows hold 512 tokens together where a row is shorter than that."""

    rank: int = 16
    heads: int = 4
    tokens: int = 64
    layers: int = 6

    @property
    def rows(self) -> int:
        """Rows of a batch."""
        return max(1, min(8, 1024 // self.tokens))


AXES = {
    "rank": (4, 16, 64, 256),
    "heads": (2, 4, 8, 16),
    "tokens": (16, 64, 256, 1024),
    "layers": (6, 12, 24, 48),
}
METHODS = {"rank": ("lora", "relayed_lora", "effilora"), "heads": ("effilora", "hydra_lora")}
OTHER_METHODS = ("lora", "relayed_lora", "tlora", "effilora")


def adapted(base: nn.Module, method: str, point: Point) -> nn.Module:
    """Return a copy of the base, which shares its weights, with an adapter that changes nothing yet."""
    model = copy.deepcopy(base, {id(parameter): parameter for parameter in base.parameters()})
    common = {"task_type": "SEQ_CLS", "target_modules": "all-linear", "r": point.rank}
    if method == REFERENCE:
        config = peft.LoraConfig(lora_alpha=16, **common)
    else:
        heads = {"heads": point.heads} if method in ("effilora", "hydra_lora") else {}
        config = rankfold.config(method, dropout=0.0, **common, **heads)
    with quiet_libraries():
        return peft.get_peft_model(model, config).train()


def measure(axis: str, point: Point, arguments: argparse.Namespace) -> dict[str, Ratio]:
    """Return the ratios of every method at one setting."""
    sizes = {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 12, "vocab_size": 1000}
    plain = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = BertConfig(**sizes, **plain, num_hidden_layers=point.layers, max_position_embeddings=1024)
    base = BertForSequenceClassification(config)
    shape = point.rows, point.tokens
    batch = {"input_ids": torch.randint(0, 1000, shape), "labels": torch.randint(0, 2, shape[:1])}
    methods = (REFERENCE, *METHODS.get(axis, OTHER_METHODS))
    models = {method: adapted(base, method, point) for method in methods}
    kept = {method: saved_bytes(model, batch) for method, model in models.items()}
    steps = {method: step_of(model, batch) for method, model in models.items()}
    ratios = ratios_of(interleave(steps, arguments.rounds, arguments.seconds), REFERENCE)
    return {
        method: {**ratio, "bytes": kept[method] / kept[REFERENCE]}
        for method, ratio in ratios.items()
        if method != REFERENCE
    }


def exponents(ratios: dict[str, Ratio]) -> dict[str, dict[str, float]]:
    """Return the slope of log(ratio) over log(value) by axis and method, of a line of least squares."""
    found: dict[str, dict[str, float]] = {}
    for axis, values in AXES.items():
        xs = [math.log(value) for value in values]
        mean = sum(xs) / len(xs)
        for method in METHODS.get(axis, OTHER_METHODS):
            ys = [math.log(ratios[f"{axis} {value} {method}"]["time"]) for value in values]
            slope = sum((x - mean) * y for x, y in zip(xs, ys, strict=True)) / sum(
                (x - mean) ** 2 for x in xs
            )
            found.setdefault(axis, {})[method] = slope
    return found


def draw(ratios: dict[str, Ratio], path: Path) -> None:
    """Write the curves of time, with their intervals, and of bytes, as a picture."""
    import altair

    rows = [
        {"axis": axis, "value": int(value), "method": method, "time": ratio["time"], "low": ratio["low"]}
        | {"high": ratio["high"], "bytes": ratio["bytes"]}
        for name, ratio in ratios.items()
        for axis, value, method in [name.split()]
    ]
    charts: list[altair.HConcatChart] = []
    for axis in AXES:
        data = altair.Data(values=[row for row in rows if row["axis"] == axis])
        base = altair.Chart(data, width=260, height=180).encode(
            x=altair.X("value:Q", title=axis, scale=altair.Scale(type="log", base=2)), color="method:N"
        )
        zero = altair.Scale(zero=False)
        line = base.mark_line(point=True).encode(y=altair.Y("time:Q", title="time / PEFT's LoRA", scale=zero))
        band = base.mark_area(opacity=0.15).encode(y=altair.Y("low:Q", scale=zero), y2="high:Q")
        kept = base.mark_line(point=True).encode(
            y=altair.Y("bytes:Q", title="bytes / PEFT's LoRA", scale=zero)
        )
        charts.append(altair.hconcat(band + line, kept))
    path.parent.mkdir(parents=True, exist_ok=True)
    altair.vconcat(*charts).save(str(path))


def main() -> None:
    """Measure along every axis, print the ratios, write them down and draw them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, help="begin no round after so many, over all settings")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--chart", type=Path, help="SVG file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if arguments.seconds is not None:
        arguments.seconds /= sum(map(len, AXES.values()))
    ratios: dict[str, Ratio] = {}
    for axis, values in AXES.items():
        for value in values:
            for method, ratio in measure(axis, replace(Point(), **{axis: value}), arguments).items():
                ratios[f"{axis} {value} {method}"] = ratio
                interval = f"{ratio['low']:.3f} to {ratio['high']:.3f}"
                print(f"{axis:7} {value:5} {method:13} {ratio['time']:.3f}  {interval}  {ratio['bytes']:.3f}")
    if arguments.out is not None:
        record = {**circumstances(arguments), "exponents": exponents(ratios), "ratios": ratios}
        arguments.out.write_text(json.dumps(record, indent=2) + "\n")
    if arguments.chart is not None:
        draw(ratios, arguments.chart)


if __name__ == "__main__":
    main()
