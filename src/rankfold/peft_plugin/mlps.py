"""The MLPs of a model, and what each linear layer is in its own.

Models call the parts of their MLPs by many names. An MLP is recognised by all of its linear layers being
there under one root, so a name alone, such as `output.dense`, which attention has too, misleads nobody.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from torch import nn

from rankfold.adapter.site import MlpPlace
from rankfold.peft_plugin.kinds import sizes_of

MLP_TARGETS = "mlp"
"""As `target_modules`: the linear layers of every MLP."""


@final
@dataclass(frozen=True, slots=True)
class MlpNames:
    """What an architecture calls the linear layers of an MLP, below its root.

    Args:
        entries: The layers that read the MLP's input.
        exit: The layer that writes its output.
    """

    entries: tuple[str, ...]
    exit: str


KNOWN_MLPS = (
    MlpNames(("gate_proj", "up_proj"), "down_proj"),  # Llama, Mistral, Qwen, Gemma, SmolLM
    MlpNames(("gate_up_proj",), "down_proj"),  # Phi-3
    MlpNames(("intermediate.dense",), "output.dense"),  # BERT, RoBERTa, DeBERTa, ELECTRA, ViT
    MlpNames(("c_fc",), "c_proj"),  # GPT-2, GPT-Neo
    MlpNames(("fc1",), "fc2"),  # OPT, BART, Phi, CLIP
    MlpNames(("lin1",), "lin2"),  # DistilBERT
    MlpNames(("dense_h_to_4h",), "dense_4h_to_h"),  # GPT-NeoX, BLOOM, Falcon
    MlpNames(("wi_0", "wi_1"), "wo"),  # T5 1.1, mT5
    MlpNames(("wi",), "wo"),  # T5
    MlpNames(("fc_in",), "fc_out"),  # GPT-J
)


def mlp_places(modules: Mapping[str, nn.Module]) -> dict[str, MlpPlace]:
    """Return the place of every linear layer of every known MLP, by the layer's name."""
    places: dict[str, MlpPlace] = {}
    for name, module in modules.items():
        for known in KNOWN_MLPS:
            if not f".{name}".endswith(f".{known.entries[0]}"):
                continue
            root = name[: -len(known.entries[0])]
            layers = [*known.entries, known.exit]
            width, _ = sizes_of(module)
            if width is not None and all(f"{root}{layer}" in modules for layer in layers):
                places |= {
                    f"{root}{layer}": MlpPlace(
                        root.removesuffix("."), "exit" if layer == known.exit else "entry", width
                    )
                    for layer in layers
                }
    return places
