"""Presets as values: options that explain themselves, and refuse unknown values."""

import math
from typing import get_args

import numpy as np
import pytest

import rankfold
from rankfold import plugins
from rankfold.adapter.spec import AdapterSpec, Scaling
from rankfold.errors import RankfoldWarning, SpecError
from rankfold.presets import Preset, discover, find
from tests.support.type_checks import unchecked_types

EVERY_PRESET = pytest.mark.parametrize("preset", discover().values(), ids=lambda preset: preset.name)
OPTIONS = [(preset, option) for preset in discover().values() for option in preset.options.values()]
EVERY_OPTION = pytest.mark.parametrize(
    ("preset", "option"), OPTIONS, ids=[f"{preset.name}.{option.name}" for preset, option in OPTIONS]
)


def test_presets_of_this_version_are_found():
    assert set(discover()) == {
        "lora", "lora_fa", "share_lora", "relayed_lora", "tlora", "tlora_plus", "effilora",
        "hydra_lora", "mola", "lora_moe", "mole", "mix_lora", "nora", "graph_moe", "basis_core",
    }  # fmt: skip


@EVERY_PRESET
def test_preset_introduces_itself(preset):
    assert find(preset.name) is preset
    assert preset.title
    assert any(character.isdigit() for character in preset.paper)
    assert preset.summary.endswith(".")
    assert 1e-6 < preset.learning_rate < 1
    assert {"r", "dropout", "seed"} <= set(preset.options)


@EVERY_OPTION
def test_option_explains_itself_and_its_default_is_one_of_its_values(preset, option):
    assert option.help
    assert option.name == next(
        name for name, each in preset.options.items() if each is not None and each == option
    )
    assert all(isinstance(kind, type) for kind in option.types)
    assert option.type is option.types[0]
    assert option.convert(option.default, preset.name) == option.default
    assert isinstance(preset.spec(**{option.name: option.default}), AdapterSpec)


@EVERY_OPTION
def test_option_given_at_its_default_changes_nothing(preset, option):
    assert preset.spec(**{option.name: option.default}) == preset.spec()


@EVERY_OPTION
def test_option_accepts_each_choice_and_none_only_where_it_may_be_none(preset, option):
    for choice in option.choices or ():
        assert option.convert(choice, preset.name) == choice
    if type(None) in option.types:
        assert option.convert(None, preset.name) is None
    else:
        with pytest.raises(SpecError, match=option.name):
            option.convert(None, preset.name)


@pytest.mark.parametrize(
    ("options", "plain"),
    [
        ({"r": np.int64(4)}, {"r": 4}),
        ({"alpha": np.float32(8)}, {"alpha": 8.0}),
        ({"init_weights": np.bool_(False)}, {"init_weights": False}),
        ({"r": np.arange(3, 5)[1], "dropout": np.float64(0.25)}, {"r": 4, "dropout": 0.25}),
    ],
)
def test_numbers_of_an_array_are_read_as_plain_ones(options, plain, tmp_path):
    taken = rankfold.config("lora", **options)
    assert {name: type(getattr(taken, name)) for name in plain} == {
        name: type(value) for name, value in plain.items()
    }
    assert taken == rankfold.config("lora", **plain)
    direct = rankfold.RankfoldConfig(**options)
    direct.save_pretrained(tmp_path)
    read = rankfold.RankfoldConfig.from_pretrained(tmp_path)
    assert {name: getattr(read, name) for name in plain} == plain


@EVERY_OPTION
def test_option_refuses_a_value_of_another_kind(preset, option):
    if str in option.types and not option.choices:
        with pytest.raises(SpecError, match=f"there is no {option.name} 'of another kind'"):
            preset.spec(**{option.name: "of another kind"})
        return
    with pytest.raises(SpecError, match=rf"{option.name}.*'{preset.name}'"):
        preset.spec(**{option.name: "of another kind"})


@EVERY_OPTION
def test_option_refuses_a_truth_value_for_a_number(preset, option):
    if option.choices is None:
        with pytest.raises(
            SpecError, match=f"{option.name}=True of method '{preset.name}' cannot be read; give"
        ):
            preset.spec(**{option.name: True})


@EVERY_OPTION
def test_option_reads_an_integer_as_a_float_and_not_the_reverse(preset, option):
    if float in option.types:
        value = option.convert(1, preset.name)
        assert (value, type(value)) == (1.0, float)
    elif int in option.types:
        with pytest.raises(SpecError, match=rf"{option.name}=1.0 of method '{preset.name}'.* whole number"):
            option.convert(1.0, preset.name)


@EVERY_PRESET
def test_unknown_option_is_refused_with_the_nearest(preset):
    with pytest.raises(
        SpecError, match=rf"unknown option 'dropuot' of method '{preset.name}'\. Did you mean 'dropout'\?"
    ):
        preset.spec(dropuot=0.1)


def test_unknown_method_is_refused_with_the_nearest():
    with pytest.raises(SpecError, match=r"unknown method 'relaid_lora'\. Did you mean 'relayed_lora'\?"):
        find("relaid_lora")
    with pytest.raises(SpecError, match=r"unknown method 'xyz'\. Available: basis_core, effilora, graph_moe"):
        find("xyz")


def test_choices_are_those_of_the_spec():
    assert find("lora").options["scaling"].choices == get_args(Scaling)


def test_unknown_choice_is_refused_with_the_nearest():
    with pytest.raises(
        SpecError,
        match=r"unknown value 'stridden' of 'map' for method 'relayed_lora'\. Did you mean 'strided'\?",
    ):
        find("relayed_lora").spec(map="stridden")


def test_alpha_of_zero_is_refused_where_none_means_no_scaling():
    with pytest.raises(
        SpecError, match="alpha=0 makes an adapter that changes nothing; leave it out for no scaling"
    ):
        find("tlora_plus").spec(alpha=0)


def test_list_is_read_as_the_tuple_that_a_spec_holds():
    assert find("mola").spec(heads=[2, 3]).heads == (2, 3)
    assert find("mola").spec(heads=3).heads == 3


@EVERY_PRESET
def test_preset_takes_its_seed_rank_and_dropout(preset):
    spec = preset.spec(r=3, seed=11, dropout=0.25)
    assert (spec.rank, spec.seed, spec.dropout) == (3, 11, 0.25)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("lora", {"scaling": "none", "alpha": 64.0}, "alpha=64.0 has no effect with scaling='none'"),
        ("effilora", {"heads": 1, "router_reads": "input"}, "one head has no router"),
        ("effilora", {"heads": 1, "balance_loss": 0.5}, "one head has no router"),
        ("lora_moe", {"delta": 0.4}, "delta=0.4 is of the balance loss, which is off"),
        ("lora", {"r": "eight"}, "r='eight' of method 'lora' cannot be read; give a whole number"),
        ("lora", {"dropout": "no"}, "give a number"),
        ("mola", {"heads": ["2"]}, "heads=.* are no whole numbers"),
        ("relayed_lora", {"std": math.inf}, "std=inf must be positive and finite"),
    ],
)
def test_what_would_change_nothing_is_refused(method, options, message):
    with unchecked_types(), pytest.raises(SpecError, match=message):
        rankfold.config(method, **options)


class Entry:
    """The entry point of another package."""

    name, value = "theirs", "their.package:PRESET"

    def __init__(self, preset):
        self.load = preset


def imports_what_is_not_there():
    raise ImportError("no module named 'elsewhere'")


def has_an_option_without_words():
    return Preset("theirs", "Theirs", "2026", "One.", 1e-3, lambda *, r=8: AdapterSpec(rank=r))


@pytest.mark.parametrize("preset", [imports_what_is_not_there, has_an_option_without_words])
def test_broken_preset_of_another_package_is_left_out(monkeypatch, preset):
    monkeypatch.setattr(plugins, "entry_points", lambda group: [Entry(preset)])
    with pytest.warns(RankfoldWarning, match="the preset 'theirs' of their.package:PRESET is left out"):
        found = discover.__wrapped__()
    assert found.keys() == discover().keys()
