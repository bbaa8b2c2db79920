"""Law of merging: the model is the base plus the merged adapters, or plus the active ones if none is."""

import random
import warnings
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import rankfold
from rankfold import SpecError
from tests.integration.models import FOLDABLE, METHODS
from tests.support.tolerance import assert_close

WIDTH, STEPS, PROGRAMS = 12, 14, 4
HEADS = {"one", "three"}
"""The adapters with a head of their own, of which one can act at a time."""


class Several(nn.Module):
    """Layers of several types, of which each adapter has some."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(20, WIDTH)
        self.query, self.value = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mixed = Conv1D(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens [batch, length] to [batch, length, 3]."""
        hidden = torch.tanh(self.query(self.tokens(x)))
        return self.head(torch.tanh(self.mixed(torch.tanh(self.value(hidden)))))


def several() -> Several:
    torch.manual_seed(0)
    return Several()


X = torch.arange(12).reshape(3, 4)


def configs(method: str) -> dict[str, rankfold.RankfoldConfig]:
    first = METHODS[method](init_weights=False, target_modules=["query", "value"], modules_to_save=["head"])
    first.target_modules = {"query", "value"}  # some presets would add layers of a BERT
    others = {
        "two": {"target_modules": ["value", "mixed"], "seed": 1},
        "three": {"target_modules": ["tokens"], "modules_to_save": ["head"], "seed": 2},
    }
    return {"one": first} | {
        name: rankfold.config("lora", r=3, init_weights=False, **options) for name, options in others.items()
    }


class Program:
    """A model, and beside it the names of the adapters that are there, active and merged."""

    def __init__(self, method: str, seed: int) -> None:
        self.draw = random.Random(seed)
        self.configs = configs(method)
        self.model: Any = peft.get_peft_model(several(), self.configs["one"], adapter_name="one").eval()
        for name in ("two", "three"):
            self.model.add_adapter(name, self.configs[name])
        with torch.no_grad():
            for number, name in enumerate(sorted(HEADS)):
                self.model.base_model.model.head.modules_to_save[name].weight.add_(number + 1)
        self.present, self.active, self.merged = ["one", "two", "three"], ["one"], list[str]()

    def some(self) -> list[str]:
        return self.draw.sample(self.present, self.draw.randint(1, len(self.present)))

    def merge(self) -> str:
        names = self.draw.choice([None, self.some()])
        wanted = list(dict.fromkeys([*self.merged, *(names or self.active)]))
        if len(HEADS & set(wanted)) > 1:
            with pytest.raises(SpecError, match="has a 'head' of its own"):
                self.model.merge_adapter(names)
        else:
            self.model.merge_adapter(names)
            self.merged = wanted
        return f"merge {names}"

    def unmerge(self) -> str:
        self.model.unmerge_adapter()
        self.merged = []
        return "unmerge"

    def activate(self) -> str:
        names = self.some()
        if len(HEADS & set(names)) < 2:
            self.model.base_model.set_adapter(names)
            self.active, self.merged = names, []
        return f"activate {names}"

    def disable(self) -> str:
        with self.model.disable_adapter():
            self.merged = []
            self.check("disabled", [])
            with pytest.raises(SpecError, match="disabled; enable them"):
                self.model.merge_adapter()
        return "disable"

    def delete(self) -> str:
        name = self.draw.choice(self.present)
        if name in self.merged:
            with pytest.raises(ValueError, match="merged"):
                self.model.delete_adapter(name)
        elif len(self.present) > 1:
            self.model.delete_adapter(name)
            self.present.remove(name)
            self.active = [other for other in self.active if other != name] or sorted(self.present)[:1]
            # Of several active adapters, PEFT's model goes on to look for one that is gone.
            self.model.active_adapter = self.active[0]
        return f"delete {name}"

    def check(self, what: str, acting: list[str]) -> None:
        base, layers = several(), self.model.base_model.model
        for path in ("tokens", "query", "value", "mixed"):
            layer = layers.get_submodule(path)
            for name in acting:
                if name in getattr(layer, "rankfold_adapters", {}):
                    base.get_submodule(path).weight.data += layer.get_delta_weight(name)
        for name in HEADS & set(acting):
            base.head = layers.head.modules_to_save[name]
        with torch.no_grad():
            assert_close(self.model(X), base(X), what=what)
        if not self.merged:
            untouched = several()
            for path in ("tokens", "query", "value", "mixed"):
                weight = getattr(layers.get_submodule(path), "base_layer", layers.get_submodule(path)).weight
                assert torch.equal(weight, untouched.get_submodule(path).weight), what


@pytest.mark.parametrize("method", FOLDABLE)
def test_model_is_the_base_plus_the_merged_adapters_or_the_active_ones(method):
    for seed in range(PROGRAMS):
        program, history = Program(method, seed), list[str]()
        steps = [program.merge, program.merge, program.unmerge, program.activate]
        steps += [program.disable, program.delete]
        for _ in range(STEPS):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                history.append(program.draw.choice(steps)())
                program.check("; ".join(history), program.merged or program.active)
        program.model.unmerge_adapter()
        program.check("; ".join(history), program.active)


@pytest.mark.parametrize("names", [["one"], ["two"], ["one", "two"], ["three", "two"]])
def test_merging_named_adapters_for_good_gives_the_base_plus_them(names):
    program = Program("relayed_lora", 0)
    plain = program.model.merge_and_unload(adapter_names=names)
    program = Program("relayed_lora", 0)
    program.model.base_model.set_adapter(names)
    with torch.no_grad():
        assert_close(plain(X), program.model(X))
