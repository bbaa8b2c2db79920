"""`rankfold pack`: a saved adapter as one file."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rankfold.cli.console import note, print_checks, print_json, shown_notes
from rankfold.cli.options import SectionedCommand, check_rounding, json_option, rounding_options, section
from rankfold.errors import SpecError

if TYPE_CHECKING:
    from rankfold.store.rounding import Dtype

_output = section("Output")


@click.command(cls=SectionedCommand)
@click.argument("adapter", type=click.Path(path_type=Path))
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@rounding_options
@_output("--overwrite", is_flag=True, help="Replace FILE, if it is a packed file.")
@_output(
    "--verify",
    is_flag=True,
    help="Write nothing: measure the change from ADAPTER to FILE, or to a record STORE#NAME, again.",
)
@json_option
def command(
    adapter: Path,
    file: Path,
    *,
    dtype: "Dtype | None",
    overwrite: bool,
    verify: bool,
    as_json: bool,
    **measurement: Any,
) -> None:
    """Pack ADAPTER, of any PEFT method, into one FILE.

    ADAPTER is a PEFT folder, or a record of a store as STORE#NAME. `rankfold unpack` gives the adapter's
    files back, without --dtype byte for byte.
    """
    if verify:
        if dtype or overwrite:
            raise SpecError("--verify writes nothing; leave --dtype and --overwrite out.")
        _verify(adapter, file, measurement, as_json=as_json)
        return
    check_rounding(dtype, measurement)
    from rankfold.runs.rounding import pack_adapter  # torch is slow to import, and --help can do without it

    with shown_notes():
        result = pack_adapter(adapter, file, dtype=dtype, overwrite=overwrite, **measurement)
    if as_json:
        certificate = result.certificate
        print_json({**asdict(result), "certificate": certificate and certificate.to_dict()})
    else:
        overhead = result.file_bytes - result.learned_bytes
        click.echo(f"{result.file_bytes:,} bytes: {result.learned_bytes:,} learned, {overhead:,} of overhead")
    if dtype:
        error = result.certificate or f"relative error {result.relative_error:.2g}"
        note(f"rounded to {dtype}: {error}")
    if result.left_out:
        note(f"not carried: {', '.join(result.left_out)}")
    note(f"packed: {file}")


def _verify(adapter: Path, file: Path, measurement: dict[str, Any], *, as_json: bool) -> None:
    from rankfold.export.verify import has_difference
    from rankfold.runs.rounding import Measurement, verify_rounding

    with shown_notes():
        checks = verify_rounding(adapter, file, Measurement(**measurement))
    if as_json:
        print_json([asdict(check) for check in checks])
    else:
        print_checks(checks, str(file))
    if has_difference(checks):
        note(f"'{file}' differs from its certificate; pack the adapter again.")
        raise click.exceptions.Exit(1)
