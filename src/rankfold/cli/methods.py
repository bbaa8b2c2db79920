"""`rankfold methods`: the methods, and the options of one."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from rankfold.cli.console import note, print_json, print_table
from rankfold.cli.options import json_option
from rankfold.runs.check import check_method_name

if TYPE_CHECKING:
    from rankfold.presets import Preset


@click.command()
@click.argument("name", required=False)
@json_option
def command(name: str | None, *, as_json: bool) -> None:
    """List the methods, or the options of one: NAME is one of the list, or of PEFT's as peft:NAME."""
    if name is not None:
        check_method_name(name)
    from rankfold.presets import discover, find  # seconds of imports that --help can do without

    if name is None:
        _show_all(discover(), as_json=as_json)
    elif name.startswith("peft:"):
        _show_one_of_peft(name, as_json=as_json)
    else:
        _show_one(find(name), as_json=as_json)


def _show_all(presets: "Mapping[str, Preset]", *, as_json: bool) -> None:
    if as_json:
        print_json([_preset_as_json(preset) for preset in presets.values()])
        return
    rows = [
        [preset.name, preset.title, preset.paper, _defaults_text(preset), preset.summary]
        for preset in presets.values()
    ]
    print_table(["name", "title", "paper", "defaults", "what is trained"], rows, left=range(5))
    note(
        "`rankfold methods NAME` explains the options of one. PEFT's own methods work too, as peft:NAME, and "
        "two baselines: head_only and full."
    )


def _show_one(preset: "Preset", *, as_json: bool) -> None:
    from rankfold.presets import recommend

    if as_json:
        print_json(_preset_as_json(preset))
        return
    rows = [
        [name, _value_text(option.default), _choices_text(option.choices), option.help]
        for name, option in preset.options.items()
    ]
    title = f"{preset.name}: {preset.title} ({preset.paper})"
    print_table(
        ["option", "default", "choices", "meaning"], rows, left=range(4), title=title, caption=preset.summary
    )
    note(
        f"Trained with, where nothing else is given: {recommend(preset.name).describe()}. "
        "Beside these: target_modules, target_parameters, exclude_modules, layers_to_transform, "
        "layers_pattern, rank_pattern, alpha_pattern, modules_to_save; and other parts than the method's: "
        "down, up (such as down=seeded), share_down, share_up, scaling."
    )


def _show_one_of_peft(name: str, *, as_json: bool) -> None:
    from rankfold.runs.methods import peft_options

    options = peft_options(name)
    if as_json:
        option_table = {key: {"default": default, "help": words} for key, (default, words) in options.items()}
        print_json({"name": name, "options": option_table})
        return
    rows = [[key, _value_text(default), words] for key, (default, words) in options.items()]
    print_table(["option", "default", "meaning, as PEFT has it"], rows, left=range(3), title=name)


def _preset_as_json(preset: "Preset") -> dict[str, Any]:
    from rankfold.presets import recommend

    recipe = recommend(preset.name)
    return {
        "name": preset.name,
        "title": preset.title,
        "paper": preset.paper,
        "summary": preset.summary,
        "learning_rate": recipe.learning_rate,
        "target_modules": recipe.targets,
        "rate_range": recipe.rate_range,
        "record": recipe.record,
        "options": {
            name: {
                "default": option.default,
                "choices": None if option.choices is None else list(option.choices),
                "help": option.help,
            }
            for name, option in preset.options.items()
        },
    }


def _defaults_text(preset: "Preset") -> str:
    return " ".join(f"{name}={_value_text(option.default)}" for name, option in preset.options.items())


def _value_text(value: object) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return str(value)


def _choices_text(choices: tuple[object, ...] | None) -> str:
    return "" if choices is None else " | ".join(_value_text(choice) for choice in choices)
