"""`rankfold unpack`: the directory of a packed adapter."""

from pathlib import Path

import click

from rankfold.cli.console import note


@click.command()
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
def command(file: Path, directory: Path) -> None:
    """Unpack FILE, written by `rankfold pack`, into the new directory DIR."""
    from rankfold.store.saved import unpack_adapter  # torch is slow to import, and --help can do without it

    unpack_adapter(file, directory)
    note(f"unpacked: {directory}")
