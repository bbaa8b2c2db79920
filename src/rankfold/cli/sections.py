"""Help pages whose options stand in sections."""

from collections.abc import Callable
from typing import Any, TypeVar, final

import click

_Function = TypeVar("_Function", bound=Callable[..., Any])


@final
class SectionedOption(click.Option):
    """An option that knows its section.

    Args:
        *args: As for `click.Option`.
        section: The heading it stands under.
        **kwargs: As for `click.Option`.
    """

    def __init__(self, *args: Any, section: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


@final
class SectionedCommand(click.Command):
    """A command whose help lists its options by section, in the order in which sections first appear."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one list of options for each section."""
        sections: dict[str, list[tuple[str, str]]] = {}
        others: list[tuple[str, str]] = []
        for parameter in self.get_params(ctx):
            line = parameter.get_help_record(ctx)
            if line is not None:
                is_sectioned = isinstance(parameter, SectionedOption)
                lines = sections.setdefault(parameter.section, []) if is_sectioned else others
                lines.append(line)
        for name, lines in [*sections.items(), ("Other options", others)]:
            with formatter.section(name):
                formatter.write_dl(lines)


def section(name: str) -> Callable[..., Callable[[_Function], _Function]]:
    """Return `click.option` for one section."""

    def option(*flags: str, **settings: Any) -> Callable[[_Function], _Function]:
        return click.option(*flags, cls=SectionedOption, section=name, **settings)

    return option
