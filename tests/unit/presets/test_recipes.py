"""The table of recipes: complete, the only one, and honest about its records."""

from pathlib import Path

import pytest

import rankfold
from benchmarks.recipes import variations
from rankfold.presets import RECIPES, Preset, discover, recommend
from rankfold.runs.methods import BASELINES, find_method
from rankfold.runs.request import PEFT_PREFIX
from tests.architecture.sources import ROOT

RECORDS = ROOT / "benchmarks" / "records"
EVERY_RECIPE = pytest.mark.parametrize("method", RECIPES)


def test_the_table_has_every_preset_and_the_presets_read_their_rates_off_it():
    own = {name for name in RECIPES if name not in BASELINES and not name.startswith(PEFT_PREFIX)}
    assert own == discover().keys()
    assert {name: preset.learning_rate for name, preset in discover().items()} == {
        name: recommend(name).learning_rate for name in own
    }


@EVERY_RECIPE
def test_a_recommended_rate_is_in_the_range_that_learned_and_its_record_exists(method):
    recipe = recommend(method)
    assert 1e-6 < recipe.learning_rate < 1
    if recipe.rate_range is not None:
        low, high = recipe.rate_range
        assert low <= recipe.learning_rate <= high
        assert recipe.record is not None
    if recipe.record is not None:
        assert (RECORDS / recipe.record).is_file()


@EVERY_RECIPE
def test_only_a_rate_far_outside_the_range_is_doubted(method):
    recipe = recommend(method)
    low, high = recipe.rate_range or (recipe.learning_rate, recipe.learning_rate)
    assert recipe.doubt(method, low) is recipe.doubt(method, high) is None
    for rate in (low / 100, high * 100):
        message = recipe.doubt(method, rate)
        assert f"'{method}'" in message
        assert f"{rate:g}" in message
        assert f"{recipe.learning_rate:g}" in message


def test_a_preset_of_another_package_is_recommended_as_it_says(monkeypatch):
    preset = Preset("theirs", "Theirs", "2026", "One.", 0.25, discover()["lora"].build, targets="mlp")
    monkeypatch.setattr("rankfold.presets.discover", lambda: {"theirs": preset})
    recipe = recommend("theirs")
    assert (recipe.learning_rate, recipe.targets, recipe.record) == (0.25, "mlp", None)


@pytest.mark.parametrize("method", discover())
def test_layers_of_a_training_are_those_of_the_recipe_unless_some_are_named(method):
    own = rankfold.config(method).target_modules
    usual = find_method(method).config({}, "SEQ_CLS", seed=0)
    assert usual.target_modules == (recommend(method).targets or own)
    # Null is PEFT's own choice, as in runs of 0.1.0 whose default was that.
    for targets in (None, ["query"]):
        config = find_method(method).config({"target_modules": targets}, "SEQ_CLS", seed=0)
        assert config.target_modules == (targets and set(targets))
    of_parameters = find_method(method).config({"target_parameters": ["x"]}, "SEQ_CLS", seed=0)
    assert of_parameters.target_modules == own


@pytest.mark.parametrize(
    ("method", "options"), [("tlora", {"r": 9}), ("tlora_plus", {"train": "core"})], ids=str
)
def test_a_smaller_core_has_a_larger_rate(method, options):
    assert recommend(method, options=options).learning_rate > recommend(method).learning_rate
    assert recommend(method, options=options).targets == "all-linear"


@pytest.mark.parametrize(
    "options", [{"zero": "down"}, {"reading": "paper"}, {"zero": "down", "reading": "paper"}]
)
def test_the_start_that_takes_larger_steps_has_a_smaller_rate(options):
    usual = recommend("relayed_lora")
    assert recommend("relayed_lora", options=options).learning_rate <= usual.learning_rate / 2
    assert recommend("relayed_lora", options={**options, "zero": "up"}) == usual


@pytest.mark.parametrize("method", discover())
def test_a_recipe_is_checked_in_twenty_variations(method):
    trials = [*variations(method)]
    assert len({trial.key() for trial in trials}) == len(trials) >= 20
    for trial in trials:
        if trial.label_scale == 1:
            assert trial.request(Path("out")).learning_rate == recommend(method).learning_rate
