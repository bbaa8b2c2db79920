"""A small model with MLPs, named as Llama's or BERT's, and rankfold's adapters on all its linear layers."""

from typing import Any

import peft
import torch
from torch import Tensor, nn
from torch.nn import functional

import rankfold
from rankfold.adapter.module import Adapter
from tests.reference import lora
from tests.reference.base_layers import linear
from tests.reference.experts import Layer, Mlp
from tests.specs import layers
from tests.specs.checks import Parts

STYLES = ("llama", "bert")
WIDTH, INNER, OUTPUTS, ATTENTION = 7, 6, 5, 3
TARGETS = {"llama": ["q_proj", "gate_proj", "up_proj", "down_proj"], "bert": ["dense"]}

# (inputs, outputs) of the layers of an MLP, those that read its input first.
MLP_SIZES = {
    "llama": [(WIDTH, INNER), (WIDTH, INNER), (INNER, OUTPUTS)],
    "bert": [(WIDTH, INNER), (INNER, OUTPUTS)],
}
MLP_LAYERS = {
    "llama": ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
    "bert": ("intermediate.dense", "output.dense"),
}
ATTENTION_LAYER = {"llama": "self_attn.q_proj", "bert": "attention.output.dense"}
BLOCKS = 2


class LlamaMlp(nn.Module):
    """A gated MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(WIDTH, INNER)
        self.up_proj = nn.Linear(WIDTH, INNER)
        self.down_proj = nn.Linear(INNER, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        """Map [*batch, WIDTH] to [*batch, OUTPUTS]."""
        return self.down_proj(llama_hidden(self.gate_proj(x), self.up_proj(x)))


class LlamaBlock(nn.Module):
    """A projection of attention beside an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn = nn.ModuleDict({"q_proj": nn.Linear(WIDTH, ATTENTION)})
        self.mlp = LlamaMlp()

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the outputs of attention's layer and of the MLP."""
        return [self.self_attn["q_proj"](x), self.mlp(x)]


class BertBlock(nn.Module):
    """The same with BERT's names, where attention has an `output.dense` too."""

    def __init__(self) -> None:
        super().__init__()
        output = nn.ModuleDict({"dense": nn.Linear(WIDTH, ATTENTION)})
        self.attention = nn.ModuleDict({"output": output})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(WIDTH, INNER)})
        self.output = nn.ModuleDict({"dense": nn.Linear(INNER, OUTPUTS)})

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the outputs of attention's layer and of the MLP."""
        hidden = bert_hidden(self.intermediate["dense"](x))
        return [self.attention["output"]["dense"](x), self.output["dense"](hidden)]


class Blocks(nn.Module):
    """Two blocks that read one input: x to the four outputs."""

    def __init__(self, style: str = "llama") -> None:
        super().__init__()
        self.style = style
        self.blocks = nn.ModuleList({"llama": LlamaBlock, "bert": BertBlock}[style]() for _ in range(BLOCKS))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the outputs of attention and MLP, block by block."""
        return [output for block in self.blocks for output in block(x)]


def llama_hidden(gate: Tensor, up: Tensor) -> Tensor:
    """Activation between the layers of a gated MLP."""
    return functional.silu(gate) * up


def bert_hidden(intermediate: Tensor) -> Tensor:
    """Activation between the two layers of an MLP."""
    return functional.gelu(intermediate)


HIDDEN = {"llama": llama_hidden, "bert": bert_hidden}


def adapted_blocks(
    method: str, style: str = "llama", *, dtype: torch.dtype = torch.float64, **options: Any
) -> peft.PeftModel:
    """Return the small model with adapters on all its linear layers; those of a bfloat16 base are float32."""
    torch.manual_seed(0)
    config = rankfold.config(method, **{"target_modules": TARGETS[style], **options})
    return peft.get_peft_model(Blocks(style).to(dtype), config)


def times_asked(model: peft.PeftModel, x: Tensor) -> list[int]:
    """Return how often each router is asked in one pass over x."""
    asked = dict.fromkeys({each.router for each in layers.adapters(model).values() if each.router}, 0)

    def count(router: nn.Module, *_: Any) -> None:
        asked[router] += 1

    handles = [router.register_forward_hook(count) for router in asked]
    model(x)
    for handle in handles:
        handle.remove()
    return list(asked.values())


def counted_sizes(style: str) -> dict[str, list[Any]]:
    """Return (inputs, outputs) of attention's layers, and of the layers of each MLP."""
    return {"attention": [(WIDTH, ATTENTION)] * BLOCKS, "mlps": [MLP_SIZES[style]] * BLOCKS}


def attention_output(model: peft.PeftModel, block: int, x: Tensor, parts_of: Any, alpha: float) -> Tensor:
    """Return the output of the layer in attention with plain LoRA."""
    base, adapter = _layer(model, block, ATTENTION_LAYER[model.get_base_model().style])
    parts = parts_of(adapter)
    delta = lora.delta(parts.trained("up.weight"), parts.trained("down.weight"), alpha)
    return linear(x, base.weight, base.bias, delta)


def mlp_of(model: peft.PeftModel, block: int, parts_of: Any) -> tuple[Mlp, Parts]:
    """Return a block's MLP for a reference, and the parts of its first layer, which has the router."""
    style = model.get_base_model().style
    found = [_layer(model, block, name) for name in MLP_LAYERS[style]]
    parts = [parts_of(adapter) for _, adapter in found]
    *entries, exit_layer = (
        Layer(base.weight, base.bias, each.downs, each.ups)
        for (base, _), each in zip(found, parts, strict=True)
    )
    return Mlp(entries, HIDDEN[style], exit_layer), parts[0]


def _layer(model: peft.PeftModel, block: int, name: str) -> tuple[nn.Linear, Adapter]:
    path = f"blocks.{block}.{name}"
    base = model.get_submodule(f"base_model.model.{path}").get_base_layer()
    return base, layers.adapters(model)[path]
