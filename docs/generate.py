"""What the generated parts of the pages say; cog calls these functions and `make docs` runs cog."""

from collections.abc import Iterator
from textwrap import indent

import click

from benchmarks.predicted import compared
from rankfold.cli.main import cli
from rankfold.presets import discover
from rankfold.presets._preset import Option


def method_table() -> str:
    """Return the methods as a table: name, what it is, paper."""
    rows = (f"| `{preset.name}` | {preset.summary} | {preset.paper} |" for preset in discover().values())
    return "\n".join(["| method | what it is | paper |", "| --- | --- | --- |", *rows])


def method_pages() -> str:
    """Return a section for each method with its options and their defaults."""
    return "\n\n".join(_method_page(name) for name in discover())


def _method_page(name: str) -> str:
    preset = discover()[name]
    rows = [
        f"| `{option}` | `{value.default!r}` | {_option_text(value)} |"
        for option, value in preset.options.items()
    ]
    return "\n".join(
        [
            f"## {preset.title} {{ #{preset.name} }}",
            "",
            f'`rankfold.config("{preset.name}")` · {preset.paper}',
            "",
            preset.summary,
            "",
            f"Learning rate to begin with, for AdamW: {preset.learning_rate:g}. "
            f"`target_modules` if none are given: {preset.targets or 'the usual ones of the model'}.",
            "",
            "| option | default | meaning |",
            "| --- | --- | --- |",
            *rows,
        ]
    )


def _option_text(option: Option) -> str:
    if not option.choices:
        return option.help
    return f"{option.help} ({', '.join(f'`{choice}`' for choice in option.choices)})"


def cost_table() -> str:
    """Return the predicted times of a training step beside the measured ones."""
    rows = (
        f"| {each.setting} | {each.variant} | {each.predicted:.2f} | {each.measured:.2f} |"
        for each in compared()
    )
    heads = ["| layers, rank | method | predicted | measured |", "| --- | --- | --- | --- |"]
    return "\n".join([*heads, *rows])


def command_reference() -> str:
    """Return the help text of every command, as the program prints it."""
    sections = (f"## {path}\n\n{indent(text, '    ')}" for path, text in _help_texts(cli, "rankfold"))
    return "\n\n".join(sections)


def _help_texts(
    command: click.Command, name: str, parent: click.Context | None = None
) -> Iterator[tuple[str, str]]:
    context = click.Context(command, parent, name, terminal_width=100, **command.context_settings)
    yield context.command_path, command.get_help(context)
    if isinstance(command, click.Group):
        for member_name in command.list_commands(context):
            member = command.get_command(context, member_name)
            assert member is not None
            yield from _help_texts(member, member_name, context)
