"""Laws of the state of an adapter: parameters, files, dtypes."""

import copy
import json
import pickle
import tempfile
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors import safe_open
from torch import nn

import rankfold
from rankfold.adapter.module import adapters_in
from rankfold.factors import Factor, Seeded
from rankfold.peft_plugin.model import RankfoldModel
from tests.laws.law import law
from tests.support.toys import adapted, ids, preset_configs, toy


def _save(model: nn.Module, folder: str) -> dict[str, torch.Tensor]:
    model.save_pretrained(folder)
    with safe_open(Path(folder) / "adapter_model.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)


def _cost_predicts_the_built_module(config: rankfold.RankfoldConfig) -> None:
    """The parameters planned, built, counted and saved are as many."""
    plans: list[int] = []
    create = RankfoldModel._hook_passes

    def spy(self: RankfoldModel, *args: Any) -> None:
        plans.append(self._builder.parameter_count())
        create(self, *args)

    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(RankfoldModel, "_hook_passes", spy)
        model = adapted(config)
        count = rankfold.count_parameters(model)
        file_size = sum(tensor.numel() for tensor in _save(model, folder).values())
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert plans == [count.stored] == [count.trainable] == [count.active] == [file_size] == [trainable]
    assert sum(each.stored for each in count.by_factor.values()) == count.stored
    assert sum(each.stored for each in count.by_module.values()) == count.stored


def _spec_and_state_survive_a_round_trip(config: rankfold.RankfoldConfig) -> None:
    """A saved adapter, loaded under another name, has the same spec and output, bit for bit."""
    model = adapted(config)
    with tempfile.TemporaryDirectory() as folder:
        _save(model, folder)
        for options in ({}, {"low_cpu_mem_usage": True}):
            loaded = peft.PeftModel.from_pretrained(toy(), folder, adapter_name="renamed", **options).eval()
            assert torch.equal(loaded(ids()), model(ids()))
        saved_config = json.loads((Path(folder) / "adapter_config.json").read_text())
    read = loaded.peft_config["renamed"]
    assert read.spec_for("query") == config.spec_for("query")
    assert saved_config["peft_type"] == "RANKFOLD"


def _copies_are_equal_and_separate(config: rankfold.RankfoldConfig) -> None:
    """A deep copy and a pickle give the same output, and training the copy leaves the original alone."""
    model = adapted(config)
    before = model(ids())
    assert torch.equal(pickle.loads(pickle.dumps(model))(ids()), before)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(ids()), before)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter += 1
    assert torch.equal(model(ids()), before)
    assert not torch.equal(twin(ids()), before)


def _a_seeded_factor_is_equal_everywhere(config: rankfold.RankfoldConfig) -> None:
    """Frozen factors depend neither on the adapter's name, the dtype, nor the modules around the model."""
    wrapper = nn.ModuleDict({"somewhere": nn.ModuleDict({"deep": toy()})})
    other = adapted(copy.deepcopy(config), base=wrapper, adapter_name="other", dtype=torch.bfloat16)
    own_factors = [factor for _, _, adapter in adapters_in(adapted(config)) for factor in _factors(adapter)]
    other_factors = [
        factor
        for _, _, adapter in adapters_in(other.to(torch.bfloat16).to(torch.float64))
        for factor in _factors(adapter)
    ]
    assert [factor.is_frozen for factor in own_factors] == [factor.is_frozen for factor in other_factors]
    for mine, theirs in zip(own_factors, other_factors, strict=True):
        if isinstance(mine, Seeded):
            assert torch.equal(mine(), theirs())
            assert mine().dtype == torch.float32


def _dtype_follows_the_base_layer(config: rankfold.RankfoldConfig) -> None:
    """The adapter takes the base's dtype from float32 on, and the output always has the base's dtype."""
    for dtype in (torch.float32, torch.float64):
        model = adapted(copy.deepcopy(config), dtype=dtype)
        assert {p.dtype for _, _, adapter in adapters_in(model) for p in adapter.parameters()} == {dtype}
        assert model(ids()).dtype == dtype
    low = adapted(copy.deepcopy(config), dtype=torch.bfloat16)
    assert {p.dtype for _, _, adapter in adapters_in(low) for p in adapter.parameters()} == {torch.float32}
    assert low(ids()).dtype == torch.bfloat16
    assert low.to(torch.bfloat16)(ids()).dtype == torch.bfloat16


def _counting_needs_no_weights(config: rankfold.RankfoldConfig) -> None:
    """The counts on the meta device are those of the real model."""
    with torch.device("meta"):
        model = adapted(copy.deepcopy(config), base=toy().to("meta"))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert rankfold.count_parameters(model) == rankfold.count_parameters(adapted(config))


def _factors(adapter: nn.Module) -> list[Factor]:
    return [module for module in adapter.modules() if isinstance(module, Factor)]


test_cost_predicts_the_built_module = law(_cost_predicts_the_built_module)
test_spec_and_state_survive_a_round_trip = law(_spec_and_state_survive_a_round_trip, init_weights=False)
test_copies_are_equal_and_separate = law(_copies_are_equal_and_separate, init_weights=False, examples=10)
test_a_seeded_factor_is_equal_everywhere = law(_a_seeded_factor_is_equal_everywhere)
test_dtype_follows_the_base_layer = law(_dtype_follows_the_base_layer, init_weights=False)
test_counting_needs_no_weights = law(_counting_needs_no_weights)


def test_configurations_of_presets_survive_json() -> None:
    """A configuration written and read is the same configuration."""
    for name, config in preset_configs().items():
        with tempfile.TemporaryDirectory() as folder:
            config.save_pretrained(folder)
            assert peft.PeftConfig.from_pretrained(folder).to_dict() == config.to_dict(), name
