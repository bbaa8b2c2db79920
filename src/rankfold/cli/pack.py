"""`rankfold pack`: a saved adapter as one file."""

from dataclasses import asdict
from pathlib import Path
from typing import Literal

import click

from rankfold.cli.console import note, print_json
from rankfold.cli.options import json_option


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--dtype", type=click.Choice(["fp32", "fp16", "bf16"]), help="Round the values to this type.")
@click.option("--overwrite", is_flag=True, help="Replace FILE.")
@json_option
def command(
    directory: Path,
    file: Path,
    *,
    dtype: Literal["fp32", "fp16", "bf16"] | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write the adapter in DIR, of any PEFT method, as the one FILE.

    `rankfold unpack` gives both files of the directory back byte for byte; without --dtype nothing is lost.
    """
    from rankfold.store.saved import pack_adapter  # torch is slow to import, and --help can do without it

    packed = pack_adapter(directory, file, dtype=dtype, overwrite=overwrite)
    if as_json:
        print_json(asdict(packed))
    else:
        beside = packed.file_bytes - packed.learned_bytes
        click.echo(f"{packed.file_bytes:,} bytes: {packed.learned_bytes:,} learned, {beside:,} beside")
    if dtype:
        note(f"rounded to {dtype}: relative error {packed.relative_error:.2g}; unpacking gives {dtype}")
    if packed.left_out:
        note(f"not carried: {', '.join(packed.left_out)}")
    note(f"packed: {file}")
