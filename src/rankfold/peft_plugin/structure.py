"""The structure of a model: its towers, its MLPs, and the layers that adapters usually get in it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import cast, final

from peft.tuners.tuners_utils import BaseTuner
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn
from transformers import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from rankfold.adapter.layout import tower_of
from rankfold.adapter.site import MlpPosition
from rankfold.errors import SpecError
from rankfold.peft_plugin.config import RankfoldConfig
from rankfold.peft_plugin.layer import layer_sizes

USUAL_TARGETS = cast("Mapping[str, list[str] | str]", TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING)
"""By model type, the layers that are adapted where a configuration names none: those of PEFT's LoRA."""

_VISION_MODELS = ("vit", "deit", "dinov2", "dinov2_with_registers", "clip", "siglip", "siglip2")
"""Types of models, and beginnings of those of their towers, of which PEFT knows no usual layers."""

_QUERY_AND_VALUE = (("q_proj", "v_proj"), ("query", "value"), ("query_proj", "value_proj"), ("q", "v"))
"""Names of the layers of queries and values; releases of transformers name them differently."""

_DENOISER_ATTENTION = (
    *("to_q", "to_k", "to_v", "to_out.0"),
    *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
)
"""Attention layers of diffusers' models; the second line reads the text beside the image (SD3, Flux)."""


def usual_targets(model: nn.Module, config: RankfoldConfig) -> set[str] | str:
    """Return the layers that are adapted in a model of this type where a configuration names none.

    Those of PEFT's LoRA where PEFT knows the type; else the attention: queries and values of an image encoder
    or of the language model of a vision-language model, all of the attention of a denoiser of diffusers. No
    layers where the type is unknown and the configuration names parameters.

    Raises:
        SpecError: If the type is unknown.
    """
    model_type = str(BaseTuner.get_model_config(model).get("model_type"))
    names = [name for name, _ in model.named_modules()]
    if model_type in USUAL_TARGETS:
        usual = USUAL_TARGETS[model_type]
        # BLIP-2 has the names of one of two language models, and a saved adapter may name no others.
        return (
            usual
            if isinstance(usual, str)
            else {leaf for leaf in usual if _has_leaf(names, leaf)} or {*usual}
        )
    if config.target_parameters:
        return set()
    if type(model).__module__.startswith("diffusers."):
        attention = {leaf for leaf in _DENOISER_ATTENTION if _has_leaf(names, leaf)}
        model_type = type(model).__name__
    elif model_type.removesuffix("_text_model").removesuffix("_vision_model") in _VISION_MODELS:
        attention = _query_and_value(names)
    else:
        attention = _language_attention(model, names)
    if not attention:
        raise SpecError(
            "Please specify `target_modules` in `peft_config`, such as 'all-linear': no usual layers are "
            f"known of a model of type '{model_type}'."
        )
    return attention


def _language_attention(model: nn.Module, names: Collection[str]) -> set[str] | str:
    """Return a pattern of the attention in the language model of a vision-language model; empty if none."""
    text_config: PreTrainedConfig | None = getattr(getattr(model, "config", None), "text_config", None)
    tower = next((path for path, tower in _towers(model).items() if tower.config is text_config), None)
    if text_config is None or tower is None:
        return set()
    usual = USUAL_TARGETS.get(text_config.model_type)
    if not usual or isinstance(usual, str):
        usual = sorted(_query_and_value([name for name in names if name.startswith(f"{tower}.")]))
    # From the tower's own name on, which stands behind another prefix in other classes of the same model.
    return rf"(.*\.)?{tower.rpartition('.')[2]}\..*\.({'|'.join(usual)})" if usual else set()


def _query_and_value(names: Collection[str]) -> set[str]:
    return next(
        (set(pair) for pair in _QUERY_AND_VALUE if all(_has_leaf(names, leaf) for leaf in pair)), set()
    )


def _has_leaf(names: Collection[str], leaf: str) -> bool:
    return any(name.endswith(f".{leaf}") for name in names)


def tower_paths(model: nn.Module) -> list[str]:
    """Return the paths of a model's towers: models inside it that have a configuration of another class.

    The vision encoder and the language model of a vision-language model are towers. An encoder and a decoder
    with one configuration, or the blocks of a UNet, are parts of a single one.
    """
    return list(_towers(model))


def _towers(model: nn.Module) -> dict[str, PreTrainedModel]:
    towers: dict[str, PreTrainedModel] = {}
    root = getattr(model, "config", None)
    for name, module in model.named_modules():
        if name and isinstance(module, PreTrainedModel):
            outer = towers.get(tower_of(name, towers))
            if type(module.config) is not type(root if outer is None else outer.config):
                towers[name] = module
    return towers


MLP_TARGETS = "mlp"
"""As `target_modules`: the linear layers of every MLP."""


@final
@dataclass(frozen=True, slots=True)
class MlpNames:
    """Names of the linear layers of an MLP in an architecture, below the MLP's root.

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
    MlpNames(("net.0.proj",), "net.2"),  # transformer blocks of diffusers: UNet, SD3, Flux, PixArt
)


def mlp_positions(modules: Mapping[str, nn.Module]) -> dict[str, MlpPosition]:
    """Return the position of every linear layer of every known MLP, by the layer's name."""
    positions: dict[str, MlpPosition] = {}
    for name, module in modules.items():
        for mlp in KNOWN_MLPS:
            if not f".{name}".endswith(f".{mlp.entries[0]}"):
                continue
            root = name[: -len(mlp.entries[0])]
            layers = [*mlp.entries, mlp.exit]
            width, _ = layer_sizes(module)
            if width is not None and all(f"{root}{layer}" in modules for layer in layers):
                positions |= {
                    f"{root}{layer}": MlpPosition(
                        root.removesuffix("."), "exit" if layer == mlp.exit else "entry", width
                    )
                    for layer in layers
                }
    return positions
