"""Every family of transformers with experts: what all-linear cannot reach is said, and can be targeted."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D

import rankfold
from rankfold.peft_plugin.parameter_targets import NOTABLE_SHARE, left_out
from rankfold.peft_plugin.targets import find_targets, modules_outside_of_adapters

_EXPERT_PARAMETER = re.compile(r"nn\.Parameter\(\s*torch\.(empty|zeros)\(\(?\s*(self|config)\.\w*experts")
_LAYERS = (nn.Linear, Conv1D, nn.Embedding, nn.modules.conv._ConvNd)
_BLOCKS = 4
_NOTABLE = 0.02


def families() -> Iterator[str]:
    """Yield the model types whose source has a parameter with an axis of experts."""
    types = {name.replace("-", "_"): name for name in CONFIG_MAPPING_NAMES}
    for source in sorted((Path(transformers.__file__).parent / "models").glob("*/modeling_*.py")):
        if _EXPERT_PARAMETER.search(source.read_text("utf-8")) and source.parent.name in types:
            yield types[source.parent.name]


def without_weights(model_type: str) -> nn.Module | None:
    """Return a model of a type in its default sizes with a few blocks; None if they do not make one."""
    try:
        config = AutoConfig.for_model(model_type)
        for part in (config, getattr(config, "text_config", None)):
            if hasattr(part, "num_hidden_layers"):
                part.num_hidden_layers = _BLOCKS
                for name in ("layer_types", "mlp_layer_types"):
                    if getattr(part, name, None):
                        setattr(part, name, getattr(part, name)[:_BLOCKS])
        with torch.device("meta"):
            try:
                return AutoModelForCausalLM.from_config(config)
            except ValueError:
                return AutoModel.from_config(config)
    except (TypeError, AttributeError, ValueError, ImportError):
        return None


@pytest.mark.filterwarnings("ignore")
def test_weights_that_no_layer_has_are_named_and_can_be_targeted():
    models = {name: without_weights(name) for name in families()}
    built = {name: model for name, model in models.items() if model is not None}
    assert len(built) >= 0.75 * len(models)
    assert {"mixtral", "qwen3_moe", "olmoe", "gpt_oss", "deepseek_v3", "llama4"} <= set(built)
    for name, model in built.items():
        if not any(".experts." in path for path, _ in model.named_parameters()):
            continue  # a family whose default sizes have none
        share, parameters = left_out(model, modules_outside_of_adapters(model))
        assert share > NOTABLE_SHARE, name
        config = rankfold.config("lora", target_modules=[], target_parameters=parameters)
        reached = {target.weight for target in find_targets(model, config).values()}
        in_layers = {
            p for m in model.modules() if isinstance(m, _LAYERS) for p in m.parameters(recurse=False)
        }
        total = sum(parameter.numel() for parameter in model.parameters())
        for path, parameter in model.named_parameters():
            if parameter.numel() > _NOTABLE * total:
                assert parameter in reached | in_layers, f"{name}: {path}"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    ["bert", "gpt2", "llama", "t5", "vit", "clip", "whisper", "mamba", "deberta-v2", "roberta"],
)
def test_models_without_experts_give_no_warning(name):
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.for_model(name))
    share, parameters = left_out(model, modules_outside_of_adapters(model))
    assert share < NOTABLE_SHARE, parameters
