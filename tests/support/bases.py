"""Learned bases of random directions for the layers of any model."""

from pathlib import Path
from typing import Any

import peft
import torch
from torch import nn

import rankfold
from rankfold.adapter.layout import layers_in
from rankfold.factors import Basis, BasisLayer
from rankfold.store.basis import BasisInfo, write_basis


def random_layers(model: nn.Module, targets: Any, rank: int, seed: int = 0) -> dict[str, BasisLayer]:
    """Return directions for the target layers of a model, by name, in half precision."""
    config = rankfold.config("lora", r=1, target_modules=targets)
    peft.inject_adapter_in_model(config, model)
    generator = torch.Generator().manual_seed(seed)
    return {
        name: BasisLayer(
            torch.randn(rank, geometry.in_features, generator=generator).half(),
            torch.randn(geometry.out_features, rank, generator=generator).half(),
        )
        for name, geometry in layers_in(config.layers).items()
    }


def random_basis(file: Path, model: nn.Module, targets: Any, rank: int = 8, seed: int = 0) -> Basis:
    """Write a basis of random directions for the target layers of a model, which is of no use afterwards."""
    info = BasisInfo(name=file.stem, base=None, sources=(), seeded_share=1.0, seed=seed, update_shares=())
    return write_basis(file, info, random_layers(model, targets, rank, seed))
