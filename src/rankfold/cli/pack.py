"""`rankfold pack`: a saved adapter as one file."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rankfold.cli.console import note, print_json
from rankfold.cli.options import dtype_option, json_option

if TYPE_CHECKING:
    from rankfold.store.rounding import Dtype


@click.command()
@click.argument("adapter", type=click.Path(path_type=Path))
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@dtype_option
@click.option("--overwrite", is_flag=True, help="Replace FILE, if it is a packed file.")
@json_option
def command(
    adapter: Path,
    file: Path,
    *,
    dtype: "Dtype | None",
    overwrite: bool,
    as_json: bool,
) -> None:
    """Pack ADAPTER, of any PEFT method, into one FILE.

    ADAPTER is a PEFT folder, or a record of a store as STORE#NAME. `rankfold unpack` gives the adapter's
    files back, without --dtype byte for byte.
    """
    from rankfold.store.saved import pack_adapter  # torch is slow to import, and --help can do without it

    result = pack_adapter(adapter, file, dtype=dtype, overwrite=overwrite)
    if as_json:
        print_json(asdict(result))
    else:
        overhead = result.file_bytes - result.learned_bytes
        click.echo(f"{result.file_bytes:,} bytes: {result.learned_bytes:,} learned, {overhead:,} of overhead")
    if dtype:
        note(f"rounded to {dtype}: relative error {result.relative_error:.2g}")
    if result.left_out:
        note(f"not carried: {', '.join(result.left_out)}")
    note(f"packed: {file}")
