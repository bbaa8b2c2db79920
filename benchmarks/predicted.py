"""The cost model of a training step against the measured records beside it; nothing is measured here.

Each ratio is to LoRA, ours, of the same rank on the same layers, in the same record. The models of the
records were MiniLM in float32 with 8 rows of 64 tokens.

    python benchmarks/predicted.py
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

import rankfold
from rankfold.adapter.cost import adapter_work, base_work
from rankfold.adapter.geometry import Linear
from rankfold.peft_plugin.targets import plan_adapters

RECORDS = Path(__file__).parent / "records"
MINILM = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 12}
TOKENS = 8 * 64
ALL_LINEAR: dict[str, Any] = {"target_modules": "all-linear", "r": 16}
SETTINGS: dict[str, dict[str, Any]] = {
    "q,v r8": {"target_modules": ["query", "value"], "r": 8},
    "all-linear r16": ALL_LINEAR,
}
# What the variants of `heads.py` are; one head is LoRA with a shared down factor.
HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "effilora, 4 heads": ("effilora", {"heads": 4}),
    "hydra_lora, 4 heads": ("hydra_lora", {"heads": 4}),
    "mix_lora, 4 experts": ("mix_lora", {"heads": 4}),
}
ONE_HEAD = "effilora, 1 head"


@dataclass(frozen=True, slots=True)
class Compared:
    """One figure of the model beside the measured one."""

    setting: str
    variant: str
    predicted: float
    measured: float


class Predictor:
    """MiniLM's structure, without weights."""

    def __init__(self) -> None:
        with torch.device("meta"):
            self.model = BertForSequenceClassification(BertConfig(**MINILM))
        layers = [each for each in self.model.modules() if isinstance(each, nn.Linear)]
        self.base = base_work((Linear(each.in_features, each.out_features) for each in layers), TOKENS)

    def time(self, method: str, **options: Any) -> float:
        """Return the predicted time of a step, in the time of one operation."""
        config = rankfold.config(method, task_type="SEQ_CLS", dropout=0.0, **options)
        return (self.base + adapter_work(plan_adapters(self.model, config), TOKENS)).time


def compared() -> list[Compared]:
    """Return every figure of the records that the model has an answer to."""
    predictor, found = Predictor(), list[Compared]()
    steps = json.loads((RECORDS / "training_step.json").read_text())["settings"]
    for setting, options in SETTINGS.items():
        lora = predictor.time("lora", **options)
        ratios = steps[setting]["ratio"]
        for method in sorted(ratios.keys() - {"lora", "peft:lora"}):
            predicted = predictor.time(method, **options) / lora
            found.append(Compared(setting, method, predicted, ratios[method] / ratios["lora"]))
    first, second = (predictor.time("lora", **options) for options in SETTINGS.values())
    seconds = [steps[setting]["seconds"]["lora"] for setting in SETTINGS]
    found.append(Compared("all-linear r16", "lora, to q,v r8", second / first, seconds[1] / seconds[0]))
    variants = json.loads((RECORDS / "heads.json").read_text())["variants"]
    lora = predictor.time("effilora", heads=1, **ALL_LINEAR)
    for name, (method, options) in HEADS.items():
        predicted = predictor.time(method, **options, **ALL_LINEAR) / lora
        measured = variants[name]["seconds"] / variants[ONE_HEAD]["seconds"]
        found.append(Compared("all-linear r16", name, predicted, measured))
    return found


if __name__ == "__main__":
    for each in compared():
        print(f"{each.setting:16} {each.variant:32} {each.predicted:.3f} {each.measured:.3f}")
