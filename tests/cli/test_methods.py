"""`rankfold methods` shows every preset and every option, from the presets themselves."""

import json
from dataclasses import fields

import pytest
from click.testing import CliRunner
from peft import LoraConfig

from rankfold.cli.main import cli
from rankfold.presets import discover
from rankfold.runs.methods import peft_methods


def test_every_method_is_listed_with_its_paper():
    result = CliRunner().invoke(cli, ["methods"])
    assert result.exit_code == 0
    for preset in discover().values():
        assert preset.name in result.stdout
        assert preset.paper in result.stdout


def test_list_as_json_has_every_method_and_stable_keys():
    listed = json.loads(CliRunner().invoke(cli, ["methods", "--json"]).stdout)
    assert [entry["name"] for entry in listed] == list(discover())
    for entry in listed:
        about = {"name", "title", "paper", "summary"}
        recipe = {"learning_rate", "target_modules", "rate_range", "record"}
        assert set(entry) == about | recipe | {"options"}


@pytest.mark.parametrize("name", discover())
def test_one_method_shows_every_option_with_its_choices_and_help(name):
    shown = CliRunner().invoke(cli, ["methods", name]).stdout
    data = json.loads(CliRunner().invoke(cli, ["methods", name, "--json"]).stdout)
    for option in discover()[name].options.values():
        assert option.name in shown
        assert option.help in shown
        assert data["options"][option.name]["default"] == json.loads(json.dumps(option.default))
        assert all(str(choice) in shown for choice in option.choices or ())


@pytest.mark.parametrize("name", sorted(peft_methods()))
def test_a_method_of_peft_shows_the_options_that_it_takes(name):
    data = json.loads(CliRunner().invoke(cli, ["methods", name, "--json"]).stdout)
    assert data["name"] == name
    known = {each.name for each in fields(peft_methods()[name].build.args[1])}
    assert set(data["options"]) <= known
    assert "task_type" not in data["options"]


def test_defaults_of_a_method_of_peft_are_those_of_peft():
    shown = CliRunner().invoke(cli, ["methods", "peft:lora"]).stdout
    assert "lora_alpha" in shown
    data = json.loads(CliRunner().invoke(cli, ["methods", "peft:lora", "--json"]).stdout)
    assert data["options"]["r"]["default"] == LoraConfig().r


def test_unknown_method_is_wrong_use_with_a_suggestion():
    result = CliRunner().invoke(cli, ["methods", "lroa"])
    assert result.exit_code == 2
    assert "Did you mean 'lora'?" in result.stderr
