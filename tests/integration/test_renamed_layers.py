"""Adapters of models whose layers had other names in an older transformers, as PEFT's LoRA loads them."""

import peft
import pytest
import torch
from torch import nn

import rankfold
from rankfold.export.layers import needs_base_weights
from rankfold.store.loading import load_adapter
from tests.integration.models import FOLDABLE, METHODS, adapted
from tests.support.tolerance import assert_close

WIDTH = 16
X = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(3))


class Tower(nn.Module):
    """Two layers."""

    def __init__(self):
        super().__init__()
        self.query, self.value = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.scale = nn.Parameter(torch.randn(8, WIDTH) / WIDTH)

    def forward(self, x):
        return self.value(torch.tanh(self.query(x)))[..., :8] @ self.scale


class Old(nn.Module):
    """Two towers at the top, under their old names."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.visual, self.model = Tower(), Tower()

    def forward(self, x):
        return self.model(self.visual(x))


class New(nn.Module):
    """The same towers, one module deeper and under other names."""

    _checkpoint_conversion_mapping = {  # noqa: RUF012 (as transformers has it)
        "^visual": "model.vision_tower",
        r"^model(?!\.(language_model|vision_tower))": "model.language_model",
    }

    def __init__(self):
        super().__init__()
        old = Old()
        self.model = nn.ModuleDict({"vision_tower": old.visual, "language_model": old.model})

    def forward(self, x):
        return self.model["language_model"](self.model["vision_tower"](x))


def in_peft(model, folder):
    return peft.PeftModel.from_pretrained(model, folder)


def beside_another(model, folder):
    loaded = peft.get_peft_model(
        model, METHODS["lora"](target_modules=["query"], target_parameters=[], task_type=None)
    )
    loaded.load_adapter(folder, "other")
    loaded.set_adapter("other")
    return loaded


def by_function(model, folder):
    loaded = peft.get_peft_model(model, peft.PeftConfig.from_pretrained(folder))
    peft.set_peft_model_state_dict(loaded, peft.load_peft_weights(str(folder)))
    return loaded


WAYS = pytest.mark.parametrize("load", [in_peft, load_adapter, beside_another, by_function])
CHOICES = {
    "names": {},
    "all": {"target_modules": "all-linear"},
    "expression": {"target_modules": r"(visual|model)\.query"},
    "one": {"target_modules": ["visual.query", "model.value"]},
    "rank": {"rank_pattern": {"visual.query": 2}},
    "rank_by_expression": {"rank_pattern": {"^visual.*": 2}},
    "alpha": {"alpha_pattern": {"^model.query": 99.0}},
    "excluded": {"exclude_modules": ["visual.query"]},
    "excluded_by_expression": {"exclude_modules": r"visual\..*"},
    "parameter": {"target_modules": [], "target_parameters": ["visual.scale", "model.scale"]},
}


def make_config(method, choice):
    options = {"target_modules": ["query", "value"], "target_parameters": [], **CHOICES[choice]}
    return METHODS[method](init_weights=False, task_type=None, **options)


def assert_loads(model, folder, load):
    """The adapter of a folder gives a model with the new names the same outputs, and so do its copies."""
    loaded = load(New(), folder).eval()
    with torch.no_grad():
        assert_close(loaded(X), model(X))
    name = loaded.active_adapters[0]
    again = folder / "again"
    loaded.save_pretrained(again, selected_adapters=[name])
    again = again if name == "default" else again / name
    for base in (New(), Old()):
        copy = peft.PeftModel.from_pretrained(base, again).eval()
        with torch.no_grad():
            assert_close(copy(X), model(X))
    if needs_base_weights(model.peft_config["default"]):
        return
    plain = folder / "plain"
    rankfold.export_lora(again, plain)
    with torch.no_grad():
        assert_close(peft.PeftModel.from_pretrained(Old(), plain).eval()(X), model(X))


@WAYS
@pytest.mark.parametrize("choice", CHOICES)
def test_choices_of_the_old_names_hold_under_the_new_ones(choice, load, tmp_path):
    model = adapted(make_config("lora_fa", choice), Old())
    model.save_pretrained(tmp_path)
    assert_loads(model, tmp_path, load)


@pytest.mark.parametrize("method", FOLDABLE)
def test_adapter_of_the_old_names_gives_the_same_under_the_new_ones(method, tmp_path):
    config = METHODS[method](init_weights=False, task_type=None, target_parameters=[])
    config.target_modules = "all-linear"
    model = adapted(config, Old())
    model.save_pretrained(tmp_path)
    assert_loads(model, tmp_path, load_adapter)


@pytest.mark.parametrize("load", [in_peft, load_adapter])
def test_module_saved_whole_is_found_under_its_new_name(load, tmp_path):
    config = METHODS["lora"](
        target_modules=["query"], target_parameters=[], modules_to_save=["value"], task_type=None
    )
    model = adapted(config, Old())
    with torch.no_grad():
        model.base_model.model.model.value.weight.add_(1.0)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        assert_close(load(New(), tmp_path).eval()(X), model(X))
