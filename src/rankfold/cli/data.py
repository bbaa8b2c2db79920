"""The options that say which data is read; the same in every command that reads some."""

from collections.abc import Callable
from typing import Any

from rankfold.cli.sections import section

Decorated = Callable[..., Any]

TASK_HELP = "A task whose metric is known: bbc_news (embedded), mrpc, stsb, boolq, ...; several as mrpc+sst2."


def source_options(heading: str, *, task_help: str = TASK_HELP) -> Callable[[Decorated], Decorated]:
    """Decorator: add the options that name data.

    Args:
        heading: The section of the help page that they stand under.
        task_help: What the task is here.
    """
    option = section(heading)

    def add(command: Decorated) -> Decorated:
        for each in (
            option(
                "--data-root",
                envvar="RANKFOLD_DATA",
                show_envvar=True,
                metavar="DIR",
                help="Folder with a folder a task.",
            ),
            option(
                "--data",
                metavar="PATH|HUB_ID",
                help="Folder of splits, a JSONL, CSV or Parquet file, or a hub dataset.",
            ),
            option("--task", help=task_help),
        ):
            command = each(command)
        return command

    return add


def column_options(heading: str) -> Callable[[Decorated], Decorated]:
    """Decorator: add the options that name columns.

    Args:
        heading: The section of the help page that they stand under.
    """
    option = section(heading)

    def add(command: Decorated) -> Decorated:
        for each in (
            option(
                "--group-column",
                help="Column of the speaker, person or document, of which none is on both sides of a split.",
            ),
            option("--label-column", help="Column of the label."),
            option("--pair-column", help="Column of the second text."),
            option("--text-column", help="Column of the text."),
        ):
            command = each(command)
        return command

    return add


def scoring_option(heading: str, default: str = "likelihood if left out") -> Callable[[Decorated], Decorated]:
    """Decorator: add --scoring.

    Args:
        heading: The section of the help page that it stands under.
        default: What holds without it, in words.
    """
    return section(heading)(
        "--scoring",
        help="How a model that writes text chooses: likelihood (a token's, on average), total_likelihood, or "
        f"generated (what it answers is read); {default}.",
    )
