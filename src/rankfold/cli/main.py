"""The door of the command line: finds a command, imports it only then, and turns errors into exit codes."""

import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext
from importlib import import_module
from itertools import pairwise, takewhile
from typing import Any, TextIO, final

import click

from rankfold import __version__
from rankfold.errors import (
    AdapterFileError,
    DataError,
    NoStoreError,
    OutputExistsError,
    RankfoldError,
    RankfoldWarning,
    SpecError,
    nearest,
    unknown_name,
)

COMMANDS = {
    "train": "Fine-tune a model with one method.",
    "data": "Show what a run would learn from data.",
    "evaluate": "Evaluate a trained adapter on held-out data.",
    "predict": "Answer new texts with a trained adapter.",
    "serve": "Serve a model with many adapters over HTTP.",
    "chat": "Converse with an instruction adapter in the terminal.",
    "compare": "Train several methods with the same budget and compare them.",
    "fit": "List the compositions that fit a budget, and choose one on your data.",
    "report": "Write the comparison page from finished runs.",
    "bench": "Estimate runs, measure their steps, compare and archive their records.",
    "export": "Write an adapter as plain LoRA, for llama.cpp or merged, with a certificate.",
    "methods": "List the methods, or the options of one.",
    "params": "Count the parameters of a method on a model, without loading weights.",
    "lr": "List the learning rate of each part of an adapter, without loading weights.",
    "size": "Explain every byte of a saved adapter.",
    "pack": "Pack a saved adapter into one file.",
    "unpack": "Unpack a packed adapter into a directory.",
    "store": "Keep many adapters in one file.",
    "basis": "Learn directions from adapters of several tasks, for small adapters of later ones.",
    "push": "Upload an adapter with a model card to the Hugging Face hub.",
}

EXIT_FAILURE, EXIT_MISUSE, EXIT_INTERRUPT = 1, 2, 130

_DEBUG = "rankfold.debug"


def _remember_debug(context: click.Context, _parameter: click.Parameter, value: bool) -> None:  # noqa: FBT001
    if value:
        context.find_root().obj[_DEBUG] = True


def _debug_option() -> click.Option:
    return click.Option(
        ["--debug"],
        is_flag=True,
        expose_value=False,
        callback=_remember_debug,
        help="Show the traceback when something fails.",
    )


@final
class Program(click.Group):
    """The group of all commands; each lives in `rankfold.cli.<name>` as `command`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order of the help page."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command and return it; None if there is none of this name."""
        if cmd_name not in COMMANDS:
            return None
        if cmd_name not in self.commands:
            command: click.Command = import_module(f"rankfold.cli.{cmd_name}").command
            command.params.append(_debug_option())
            self.commands[cmd_name] = command
        return self.commands[cmd_name]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that the words name.

        Raises:
            SpecError: If there is none, with the nearest name.
        """
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            raise unknown_name("command", args[0], COMMANDS)
        name, command, words = super().resolve_command(ctx, args)
        _check_values(ctx, command, words)
        return name, command, words

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        # click would import every command to read its first line.
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def main(self, args: Sequence[str] | None = None, *more: Any, **extra: Any) -> Any:
        """Run the program and leave with 0 (done), 1 (failed), 2 (wrong use) or 130 (interrupted)."""
        words = list(sys.argv[1:] if args is None else args)
        if words[:1] == ["--help"] and len(words) > 1:
            words = [*words[1:], "--help"]  # `rankfold --help train` asks for the page of `train`
        state: dict[str, bool] = {}
        extra.update(standalone_mode=False, obj=state)
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            try:
                with nullcontext() if _starts_processes(words) else _exit_when_terminated():
                    sys.exit(super().main(words, *more, **extra) or 0)
            except Exception as error:  # the one place that answers for every failure
                sys.exit(_explain(error, debug=state.get(_DEBUG, False)))


def _check_values(context: click.Context, command: click.Command | None, words: Sequence[str]) -> None:
    """Refuse an option as the value of the one before it, which click would take it for.

    Raises:
        SpecError: If an option that needs a value is followed by another option of the command.
    """
    while isinstance(command, click.Group) and words:
        command, words = command.get_command(context, words[0]), words[1:]
    if command is None:
        return
    options = [item for item in command.params if isinstance(item, click.Option)]
    flags = {flag: item for item in options for flag in (*item.opts, *item.secondary_opts)}
    for word, value in pairwise(takewhile("--".__ne__, words)):
        option = flags.get(word)
        needs_value = option is not None and not option.is_flag and not option.count
        if needs_value and value.partition("=")[0] in {*flags, "--help"}:
            raise SpecError(f"{word} needs a value, but '{value}' is an option; give {word} its value.")


def _starts_processes(words: Sequence[str]) -> bool:
    """Whether a command has processes of its own to end, or is one of those that torchrun started."""
    return "RANK" in os.environ or not {"compare", "fit", "bench"}.isdisjoint(words)


@contextmanager
def _exit_when_terminated() -> Generator[None]:
    """Turn SIGTERM into an exit, which removes unfinished files; by default Python would leave them."""

    def leave(number: int, _frame: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # a second one must not stop the removal
        sys.exit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _explain(error: Exception, *, debug: bool) -> int:
    """Print an error on stderr and return the exit code."""
    if debug and not isinstance(error, click.ClickException | click.Abort):
        traceback.print_exception(error)
    match error:
        case click.Abort():
            click.echo("interrupted.", err=True)
            return EXIT_INTERRUPT
        case click.ClickException():
            (_with_suggestion(error) if isinstance(error, click.NoSuchOption) else error).show()
            return EXIT_MISUSE if isinstance(error, click.UsageError) else EXIT_FAILURE
        case SpecError() | DataError() | AdapterFileError() | NoStoreError() | OutputExistsError():
            click.echo(f"error: {error}", err=True)
            return EXIT_MISUSE
        case RankfoldError():
            click.echo(f"error: {error}", err=True)
            return EXIT_FAILURE
        case ModuleNotFoundError(name=str(name)) if not name.startswith(__name__.partition(".")[0]):
            click.echo(
                f"error: this takes the package '{name.partition('.')[0]}', which is not installed; "
                "install it with `pip install 'rankfold[bench,report]'`.",
                err=True,
            )
            return EXIT_FAILURE
        case _:
            words = " ".join(f"{type(error).__name__}: {error}".split())
            hint = "" if debug else " Run again with --debug for the traceback."
            click.echo(f"unexpected error: {words.rstrip('.')}.{hint}", err=True)
            return EXIT_FAILURE


def _with_suggestion(error: click.NoSuchOption) -> click.UsageError:
    """Return the error for an unknown option with the one that is meant."""
    parameters = [] if error.ctx is None else error.ctx.command.get_params(error.ctx)
    near = nearest(error.option_name, (flag for parameter in parameters for flag in parameter.opts))
    hint = f" Did you mean '{near}'?" if near else ""
    return click.UsageError(f"No such option '{error.option_name}'.{hint}", error.ctx)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print our own warnings as one line; a library's with its place, as Python does."""
    if issubclass(category, RankfoldWarning):
        click.echo(f"warning: {message}", err=True)
    else:
        click.echo(warnings.formatwarning(message, category, filename, lineno, line), err=True, nl=False)


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="rankfold")
def cli() -> None:
    """Low-rank adaptation, factored further: train, compare and measure adapters."""


cli.params.append(_debug_option())


def main() -> None:
    """Entry point of the command `rankfold`."""
    cli()
