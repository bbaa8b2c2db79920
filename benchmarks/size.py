"""Bytes of PEFT's adapters: learned, copied, frozen; and the size of the packed file, exact and rounded.

MiniLM, query and value of every layer, no task head. Each method takes some steps of training on news and is
saved by PEFT, explained, packed and unpacked. Bytes are exact. The script stops if an adapter that was packed
without rounding does not come back byte for byte.

    python benchmarks/size.py --out benchmarks/records/size.json
"""

import argparse
import json
import platform
import sys
import tempfile
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import peft
import safetensors
import torch
import transformers
from peft.optimizers import create_lorafa_optimizer

import rankfold
from rankfold.models.base import LoadedModel, resolve_model
from rankfold.models.hardware import cpu_name
from rankfold.progress import quiet_libraries
from rankfold.store.rounding import GRIDS, Dtype
from rankfold.store.size import explain
from rankfold.tasks.embedded import read_bbc_news
from rankfold.tasks.kinds.classification import KIND as CLASSIFICATION

TARGETS: dict[str, Any] = {"target_modules": ["query", "value"]}
STEPS = 5
ROWS = 4
TOKENS = 64
FILES = ("adapter_config.json", "adapter_model.safetensors")
LORA_FA = "LoRA-FA, r = 8"

METHODS: dict[str, Callable[[], peft.PeftConfig]] = {
    "LoRA, r = 8": lambda: peft.LoraConfig(r=8, **TARGETS),
    LORA_FA: lambda: peft.LoraConfig(r=8, **TARGETS),
    "DoRA, r = 8": lambda: peft.LoraConfig(r=8, use_dora=True, **TARGETS),
    "AdaLoRA, r = 12": lambda: peft.AdaLoraConfig(init_r=12, total_step=100, **TARGETS),
    "LoKr, r = 8": lambda: peft.LoKrConfig(r=8, **TARGETS),
    "LoHa, r = 8": lambda: peft.LoHaConfig(r=8, **TARGETS),
    "MiSS, r = 8": lambda: peft.MissConfig(r=8, **TARGETS),
    "FourierFT, 1,000 frequencies": lambda: peft.FourierFTConfig(n_frequency=1000, **TARGETS),
    "Lily, r = 8, A shared by 2": lambda: peft.LilyConfig(r=8, stride_A=2, num_B=2, **TARGETS),
    "Lily, r = 32, A shared by 3": lambda: peft.LilyConfig(r=32, stride_A=3, num_B=2, **TARGETS),
    "VeRA, r = 64": lambda: peft.VeraConfig(r=64, **TARGETS),
    "VeRA, r = 256": lambda: peft.VeraConfig(r=256, **TARGETS),
    "PVeRA, r = 64": lambda: peft.PveraConfig(r=64, **TARGETS),
    "RandLoRA, r = 32": lambda: peft.RandLoraConfig(r=32, **TARGETS),
    "RandLoRA, r = 32, sparse": lambda: peft.RandLoraConfig(r=32, sparse=True, **TARGETS),
    "TinyLoRA, r = 2, u = 64": lambda: peft.TinyLoraConfig(r=2, u=64, **TARGETS),
    "UniLoRA, d = 1,024, with indices": lambda: peft.UniLoraConfig(
        r=4, theta_d_length=1024, save_indices=True, **TARGETS
    ),
    "UniLoRA, d = 1,024": lambda: peft.UniLoraConfig(r=4, theta_d_length=1024, **TARGETS),
    "SHiRA, r = 8, seeded": lambda: peft.ShiraConfig(r=8, random_seed=0, **TARGETS),
    "FRoD": lambda: peft.FrodConfig(progressbar=False, **TARGETS),
}


def save(name: str, folder: Path) -> None:
    """Train a method for a few steps and let PEFT save it."""
    torch.manual_seed(0)
    loaded = CLASSIFICATION.load(resolve_model("minilm"), tuple("01234"))
    with quiet_libraries(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's advice about its own methods
        model = peft.get_peft_model(loaded.model, METHODS[name]()).train()
        if name == LORA_FA:
            optimizer = create_lorafa_optimizer(model, r=8, lora_alpha=8, lr=1e-3)
        else:
            optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        for step in range(STEPS):
            model(**batch(loaded, step)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.save_pretrained(folder)
    (folder / "README.md").unlink()


def batch(loaded: LoadedModel, step: int) -> dict[str, torch.Tensor]:
    """Return some articles as a model takes them."""
    rows = read_bbc_news()["train"].rows[step::STEPS][:ROWS]
    texts = [str(row["text"]) for row in rows]
    tokens = loaded.processor(texts, truncation=True, max_length=TOKENS, padding=True, return_tensors="pt")
    return {**tokens, "labels": torch.tensor([int(row["label"]) for row in rows])}


def measure(name: str, scratch: Path) -> dict[str, object]:
    """Return the bytes of one method's adapter by type, and those of its packed files."""
    folder = scratch / "adapter"
    save(name, folder)
    explanation = explain(folder)
    types = explanation.bytes_by_type
    assert sum(types.values()) == explanation.file_bytes == (folder / FILES[1]).stat().st_size
    return {
        "peft_type": explanation.method,
        "weights_bytes": explanation.file_bytes,
        "config_bytes": (folder / FILES[0]).stat().st_size,
        "bytes_by_type": dict(types),
        "packed": {
            dtype or "exact": pack(folder, scratch, dtype) for dtype in (None, "bf16", "int8", "int4")
        },
    }


def pack(folder: Path, scratch: Path, dtype: Dtype | None) -> dict[str, float]:
    """Pack, unpack, compare, and return size and error."""
    file, again = scratch / f"{dtype}.rankfold", scratch / f"{dtype}"
    options = {"weights_only": True} if dtype in GRIDS else {}
    packed = rankfold.pack_adapter(folder, file, dtype=dtype, **options)
    rankfold.unpack_adapter(file, again)
    assert dtype or all((again / name).read_bytes() == (folder / name).read_bytes() for name in FILES)
    before = sum((folder / name).stat().st_size for name in FILES)
    return {
        "bytes": packed.file_bytes,
        "ratio": packed.file_bytes / before,
        "relative_error": packed.relative_error,
    }


def environment() -> dict[str, object]:
    """Return versions, hardware and the command that repeats the figures."""
    modules = (rankfold, torch, peft, transformers, safetensors, np)
    libraries = {module.__name__: module.__version__ for module in modules}
    return {
        "command": ["python", *sys.argv],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **libraries},
        "hardware": {"cpu": cpu_name(), "instructions": torch.backends.cpu.get_cpu_capability()},
        "model": "minilm",
        "targets": TARGETS["target_modules"],
        "steps": STEPS,
    }


def main() -> None:
    """Measure every method, print a line for each, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    methods: dict[str, Any] = {}
    for name in METHODS:
        with tempfile.TemporaryDirectory() as scratch:
            methods[name] = measure(name, Path(scratch))
        files = methods[name]["packed"]
        sizes = " ".join(f"{files[dtype]['bytes']:>10,}" for dtype in files)
        print(f"{name:34} {methods[name]['weights_bytes']:>10,} {sizes}", flush=True)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps({**environment(), "methods": methods}, indent=2) + "\n")


if __name__ == "__main__":
    main()
