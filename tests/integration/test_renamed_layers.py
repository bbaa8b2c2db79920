"""Adapters of models whose layers had other names in an older transformers, as PEFT's LoRA loads them."""

import peft
import pytest
import torch
from torch import nn

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

    def forward(self, x):
        return self.value(torch.tanh(self.query(x)))


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


@pytest.mark.parametrize("load", [peft.PeftModel.from_pretrained, load_adapter], ids=["peft", "rankfold"])
@pytest.mark.parametrize("targets", [{"query", "value"}, "all-linear"], ids=["names", "all"])
@pytest.mark.parametrize("method", FOLDABLE)
def test_adapter_of_the_old_names_gives_the_same_under_the_new_ones(method, targets, load, tmp_path):
    config = METHODS[method](init_weights=False, task_type=None)
    config.target_modules = targets
    model = adapted(config, Old())
    model.save_pretrained(tmp_path)
    loaded = load(New(), tmp_path).eval()
    with torch.no_grad():
        assert_close(loaded(X), model(X))
