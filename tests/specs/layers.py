"""A small model of odd sizes with every kind of base layer, and rankfold's adapters on it."""

from collections.abc import Callable
from typing import Any

import peft
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import rankfold
from rankfold.adapter.module import Adapter, adapters_in
from tests.reference import base_layers

KINDS = ("linear", "conv1d", "embedding", "conv2d")
TARGETS = ("query", "value", "narrow")

# (inputs, outputs) of each target. A convolution's inputs are a group's channels times the kernel's area.
SIZES = {"query": (7, 5), "value": (7, 3), "narrow": (4, 5)}
CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "query": {
        "in_channels": 4,
        "out_channels": 6,
        "kernel_size": (3, 2),
        "stride": (2, 1),
        "padding": (1, 0),
        "groups": 2,
    },
    "value": {"in_channels": 4, "out_channels": 5, "kernel_size": (2, 1), "dilation": (2, 1)},
    "narrow": {"in_channels": 2, "out_channels": 6, "kernel_size": (3, 2), "padding": (2, 1)},
}
CONVOLUTION_SIZES = {"query": (12, 6), "value": (8, 5), "narrow": (12, 6)}


class Block(nn.Module):
    """Three layers side by side; `narrow` reads a part of the input only."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.query, self.value, self.narrow = (base_layer(kind, target) for target in TARGETS)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the output of each layer."""
        return [self.query(x), self.value(x), self.narrow(narrowed(self.kind, x))]


class Layers(nn.Module):
    """Two blocks that read one input: x to the six outputs."""

    def __init__(self, kind: str = "linear") -> None:
        super().__init__()
        self.kind = kind
        self.blocks = nn.ModuleList(Block(kind) for _ in range(2))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the output of each layer, block by block."""
        return [output for block in self.blocks for output in block(x)]


def base_layer(kind: str, target: str) -> nn.Module:
    """Return one layer of a kind."""
    inputs, outputs = SIZES[target]
    match kind:
        case "linear":
            return nn.Linear(inputs, outputs)
        case "conv1d":
            return Conv1D(outputs, inputs)
        case "embedding":
            return nn.Embedding(inputs, outputs)
        case _:
            return nn.Conv2d(**CONVOLUTIONS[target])


def narrowed(kind: str, x: Tensor) -> Tensor:
    """Return the input of the layer `narrow`."""
    inputs = SIZES["narrow"][0]
    match kind:
        case "embedding":
            return x % inputs
        case "conv2d":
            return x[:, : CONVOLUTIONS["narrow"]["in_channels"]]
        case _:
            return x[..., :inputs]


def example_input(kind: str = "linear") -> Tensor:
    """Return a batch in float64 that asks for its gradient, or tokens."""
    generator = torch.Generator().manual_seed(1)
    if kind == "embedding":
        return torch.randint(0, SIZES["query"][0], (2, 3), generator=generator)
    shape = (2, 4, 5, 4) if kind == "conv2d" else (2, 3, SIZES["query"][0])
    return torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)


def sizes(kind: str = "linear") -> list[tuple[int, int]]:
    """Return (inputs, outputs) of each adapted layer."""
    of = CONVOLUTION_SIZES if kind == "conv2d" else SIZES
    return [of[target] for _ in range(2) for target in TARGETS]


def typed_sizes() -> list[tuple[str, int, int]]:
    """Return (type, inputs, outputs) of each adapted linear layer."""
    return [(target, *SIZES[target]) for _ in range(2) for target in TARGETS]


def adapted(method: str, kind: str = "linear", **options: Any) -> peft.PeftModel:
    """Return the small model in float64 with adapters on all its layers."""
    torch.manual_seed(0)
    config = rankfold.config(method, **{"target_modules": list(TARGETS), **options})
    return peft.get_peft_model(Layers(kind).double(), config)


def adapters(model: nn.Module) -> dict[str, Adapter]:
    """Return the adapters by the path of their layer in `Layers`."""
    return {path.removeprefix("base_model.model."): adapter for path, _, adapter in adapters_in(model)}


def layer_outputs(
    model: peft.PeftModel, x: Tensor, forward_of: Callable[[Tensor, Tensor, Tensor, Adapter], Tensor]
) -> list[Tensor]:
    """Return the outputs of the six linear layers: `forward_of` their inputs, W, b and adapters."""
    is_transposed = model.get_base_model().kind == "conv1d"
    outputs = []
    for path, adapter in adapters(model).items():
        base = model.get_submodule(f"base_model.model.{path}").get_base_layer()
        seen = narrowed("linear", x) if path.endswith("narrow") else x
        weight = base.weight.T if is_transposed else base.weight
        outputs.append(forward_of(seen, weight, base.bias, adapter))
    return outputs


def reference_output(model: peft.PeftModel, x: Tensor, delta_of: Callable[[Adapter], Tensor]) -> list[Tensor]:
    """Return the outputs of the six layers if `delta_of` their adapter were in their weights."""
    kind = model.get_base_model().kind
    outputs = []
    for path, adapter in adapters(model).items():
        base = model.get_submodule(f"base_model.model.{path}").get_base_layer()
        seen = narrowed(kind, x) if path.endswith("narrow") else x
        change = delta_of(adapter)
        if kind == "embedding":
            outputs.append(base_layers.embedding(seen, base.weight, change))
        elif kind == "conv2d":
            geometry = {name: getattr(base, name) for name in ("stride", "padding", "dilation", "groups")}
            outputs.append(base_layers.conv2d(seen, base.weight, base.bias, change, **geometry))
        else:
            formula = base_layers.conv1d if kind == "conv1d" else base_layers.linear
            outputs.append(formula(seen, base.weight, base.bias, change))
    return outputs
