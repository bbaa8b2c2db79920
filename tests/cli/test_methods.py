"""`rankfold methods` shows every preset and every option, from the presets themselves."""

import json

import pytest
from click.testing import CliRunner

from rankfold.cli.main import cli
from rankfold.presets import discover


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
        assert set(entry) == about | {"learning_rate", "target_modules", "options"}


@pytest.mark.parametrize("name", discover())
def test_one_method_shows_every_option_with_its_choices_and_help(name):
    shown = CliRunner().invoke(cli, ["methods", name]).stdout
    data = json.loads(CliRunner().invoke(cli, ["methods", name, "--json"]).stdout)
    for option in discover()[name].options.values():
        assert option.name in shown
        assert option.help in shown
        assert data["options"][option.name]["default"] == json.loads(json.dumps(option.default))
        assert all(str(choice) in shown for choice in option.choices or ())


def test_unknown_method_is_wrong_use_with_a_suggestion():
    result = CliRunner().invoke(cli, ["methods", "lroa"])
    assert result.exit_code == 2
    assert "Did you mean 'lora'?" in result.stderr
