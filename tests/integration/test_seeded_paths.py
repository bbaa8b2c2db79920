"""Frozen factors depend on seed and path alone, not on where the model hangs."""

import peft
import pytest
import torch
from torch import nn
from transformers import BertModel

from rankfold.adapter.module import hosts_in
from tests.integration.models import adapted, bert, config_of

FROZEN = pytest.mark.parametrize("method", ["lora_fa", "tlora", "seeded_down_relayed_up"])
LAYER = "encoder.layer.1.attention.self.value"


class Wrapper(nn.Module):
    """Any model inside any other."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.inner = inner


def frozen(model: nn.Module, name: str = "default") -> torch.Tensor:
    layers = [module for path, module in model.named_modules() if path.endswith(LAYER)]
    assert len(layers) == 1
    return layers[0].rankfold_adapters[name].down()


@FROZEN
def test_frozen_factors_do_not_depend_on_what_the_model_is_wrapped_in(method):
    config = config_of(method, task_type=None)
    expected = frozen(adapted(config))
    assert torch.equal(frozen(adapted(config, bert().bert)), expected)
    assert torch.equal(frozen(adapted(config, BertModel(bert().config))), expected)
    assert torch.equal(frozen(adapted(config, Wrapper(Wrapper(bert())))), expected)
    assert torch.equal(frozen(peft.inject_adapter_in_model(config, bert())), expected)


@FROZEN
def test_frozen_factors_do_not_depend_on_the_name_or_on_other_adapters(method):
    config = config_of(method, task_type=None)
    expected = frozen(adapted(config))
    model = adapted(config_of("lora", task_type=None), adapter_name="first")
    model.add_adapter("second", config)
    assert torch.equal(frozen(model, "second"), expected)


@FROZEN
def test_frozen_factors_depend_on_seed_and_layer(method):
    expected = frozen(adapted(config_of(method)))
    other_seed = frozen(adapted(config_of(method, seed=1)))
    assert not torch.equal(other_seed, expected)
    model = adapted(config_of(method))
    other_layer = model.base_model.model.bert.encoder.layer[0].attention.self.value
    assert not torch.equal(other_layer.rankfold_adapters["default"].down(), expected)


@FROZEN
def test_frozen_factors_are_the_same_when_built_without_weights(method):
    expected = frozen(adapted(config_of(method)))
    with torch.device("meta"):
        model = adapted(config_of(method))
    model.to_empty(device="cpu")
    assert torch.equal(frozen(model), expected)


def test_adapters_of_one_seed_have_one_matrix_between_them_as_long_as_one_uses_it():
    model = adapted(config_of("tlora"), adapter_name="first")
    model.add_adapter("second", config_of("tlora"))
    model.add_adapter("third", config_of("tlora", seed=1))
    matrices = [
        [host.rankfold_adapters[name].down() for _, host in hosts_in(model)]
        for name in ("first", "second", "third")
    ]
    for first, second, third in zip(*matrices, strict=True):
        assert first.data_ptr() == second.data_ptr()
        assert not torch.equal(first, third)
    model.delete_adapter("first")
    assert torch.equal(matrices[0][0], next(hosts_in(model))[1].rankfold_adapters["second"].down())
