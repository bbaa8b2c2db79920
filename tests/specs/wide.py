"""One wide layer, large enough for statistics of a start and for ranks."""

from typing import Any

import peft
from torch import nn

import rankfold
from rankfold.adapter.module import Adapter, adapters_in

INPUTS, OUTPUTS = 1024, 768


def wide_adapter(method: str, inputs: int = INPUTS, outputs: int = OUTPUTS, **options: Any) -> Adapter:
    """Return the fresh adapter of one linear layer."""
    base = nn.Sequential(nn.Linear(inputs, outputs, bias=False))
    model = peft.get_peft_model(base, rankfold.config(method, target_modules=["0"], **options))
    [(_, _, adapter)] = adapters_in(model)
    return adapter.requires_grad_(requires_grad=False)
