"""`rankfold store`: many adapters in one file."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rankfold.cli.console import note, print_json, print_table, shown_notes
from rankfold.cli.options import SectionedCommand, check_rounding, json_option, rounding_options
from rankfold.errors import SpecError, StoreError

if TYPE_CHECKING:
    from rankfold.store.rounding import Dtype

CommandFunction = Callable[..., None]

_store = click.argument("path", metavar="STORE", type=click.Path(path_type=Path, dir_okay=False))


def _search_options(command: CommandFunction) -> CommandFunction:
    """Decorator: add the options that select records."""
    for option in (
        click.option(
            "--where",
            "-w",
            multiple=True,
            metavar="CONDITION",
            help="Only with such a metric, as 'accuracy>=0.9'.",
        ),
        click.option("--tag", "-t", "tags", multiple=True, metavar="KEY=VALUE", help="Only with this tag."),
        click.option("--method", help="Only of this method, such as tlora."),
        click.option("--base", help="Only of this base model."),
    ):
        command = option(command)
    return command


@click.group()
def command() -> None:
    """Keep many adapters, of any PEFT method, in the one file STORE."""


@command.command(cls=SectionedCommand)
@_store
@click.argument("name")
@click.argument("adapter", type=click.Path(path_type=Path))
@click.option(
    "--tag",
    "-t",
    "tags",
    multiple=True,
    metavar="KEY=VALUE",
    help="A text to search by, such as customer=a; may be repeated.",
)
@click.option(
    "--metric",
    "-m",
    "metrics",
    multiple=True,
    metavar="NAME=NUMBER",
    help="A metric, such as accuracy=0.93; may be repeated.",
)
@rounding_options
@click.option("--replace", is_flag=True, help="Replace an adapter of this name.")
def put(
    path: Path,
    name: str,
    adapter: Path,
    *,
    tags: Sequence[str],
    metrics: Sequence[str],
    dtype: "Dtype | None",
    replace: bool,
    **measurement: Any,
) -> None:
    """Store ADAPTER, a PEFT folder or a packed file, under NAME; STORE is created if it does not exist.

    Metrics are those of the folder's run.json, if there is one, unless --metric gives others.
    """
    check_rounding(dtype, measurement)
    from rankfold.runs.rounding import Measurement, certify  # torch is slow to import, and --help needs none
    from rankfold.store.rounding import relative_error
    from rankfold.store.saved import open_adapter
    from rankfold.store.store import AdapterStore

    exact = open_adapter(adapter)
    with shown_notes():
        certificate = certify(adapter, dtype, Measurement(**measurement))
    numbers = {key: _number(key, text) for key, text in _pairs(metrics).items()} or _metrics_of_run(adapter)
    with AdapterStore(path) as store:
        record = store.put(
            name,
            exact,
            tags=_pairs(tags),
            metrics=numbers,
            dtype=dtype,
            certificate=certificate,
            replace=replace,
        )
        error = relative_error(exact, store.get(name)) if dtype else 0.0
    if dtype:
        note(f"rounded to {dtype}: {certificate or f'relative error {error:.2g}'}")
    note(f"stored: {record.name}, {record.bytes:,} bytes of {record.method}")


@command.command()
@_store
@click.argument("name")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
def get(path: Path, name: str, directory: Path) -> None:
    """Write the adapter NAME into the new folder DIR, byte for byte as it was put."""
    from rankfold.store.store import AdapterStore

    with AdapterStore(path, "read") as store:
        store.get(name).write(directory)
    note(f"written: {directory}")


@command.command()
@_store
@click.argument("name")
@json_option
def info(path: Path, name: str, *, as_json: bool) -> None:
    """Print the record of the adapter NAME, and the measured change if it is rounded."""
    from rankfold.store.saved import RECORD_SIGN, open_stored
    from rankfold.store.store import AdapterStore

    with AdapterStore(path, "read") as store:
        record = store.record(name)
    certificate = open_stored(f"{path}{RECORD_SIGN}{name}").certificate
    if as_json:
        print_json({**record.to_dict(), "certificate": certificate and certificate.to_dict()})
        return
    labels = {"tags": _words(record.tags), "metrics": _words(record.metrics)}
    values = {**record.to_dict(), **labels}
    lines = [[key, str(value)] for key, value in values.items() if value not in ("", {})]
    if certificate is not None:
        lines.append(["rounded to", f"{certificate.dtype}: {certificate}"])
    print_table(["", ""], lines, left=(0, 1))


def _words(labels: Mapping[str, object]) -> str:
    return " ".join(f"{key}={value}" for key, value in labels.items())


@command.command(name="list")
@_store
@_search_options
@json_option
def list_(
    path: Path,
    *,
    base: str | None,
    method: str | None,
    tags: Sequence[str],
    where: Sequence[str],
    as_json: bool,
) -> None:
    """List adapters by name: all, or those that meet every condition."""
    from rankfold.store.store import AdapterStore

    with AdapterStore(path, "read") as store:
        records = list(store.list(base=base, method=method, tags=_pairs(tags), where=where))
    if as_json:
        print_json([record.to_dict() for record in records])
        return
    rows = [
        [
            record.name,
            record.method,
            record.base,
            " ".join(f"{key}={text}" for key, text in record.tags.items()),
            " ".join(f"{key}={number:.4g}" for key, number in record.metrics.items()),
            f"{record.bytes:,}",
            record.created,
        ]
        for record in records
    ]
    print_table(
        ["name", "method", "base", "tags", "metrics", "bytes", "created"],
        rows,
        left=(0, 1, 2, 3, 4),
        caption=f"adapters: {len(rows):,}",
    )


@command.command()
@_store
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def delete(path: Path, names: Sequence[str]) -> None:
    """Delete adapters, all of the named ones or none; `gc` frees their disk space."""
    from rankfold.store.store import AdapterStore

    with AdapterStore(path, "write") as store, store.batch():
        for name in names:
            store.delete(name)
    note(f"removed: {', '.join(names)}")


@command.command()
@_store
@json_option
def verify(path: Path, *, as_json: bool) -> None:
    """Verify every checksum and the structure of the store; exit code 1 if anything is damaged."""
    from rankfold.store.store import AdapterStore

    with AdapterStore(path, "read") as store:
        faults = list(store.verify())
        count = len(store)
    if as_json:
        print_json([asdict(fault) for fault in faults])
    elif faults:
        print_table(["adapter", "fault"], [[fault.name or "", fault.reason] for fault in faults], left=(0, 1))
    if faults:
        raise StoreError(
            f"'{path}' is damaged (faults: {len(faults)}); put these adapters again, or restore a copy."
        )
    note(f"adapters that are as they were written: {count:,}")


@command.command()
@_store
@click.argument("url")
@_search_options
@click.option("--overwrite", is_flag=True, help="Replace the file at URL.")
def export(
    path: Path,
    url: str,
    *,
    base: str | None,
    method: str | None,
    tags: Sequence[str],
    where: Sequence[str],
    overwrite: bool,
) -> None:
    """Write adapters to one file at URL: a path, or an address that fsspec knows, such as s3://..."""
    from rankfold.store.store import AdapterStore

    with AdapterStore(path, "read") as store:
        records = store.list(base=base, method=method, tags=_pairs(tags), where=where)
        count = store.export(url, records, overwrite=overwrite)
    note(f"adapters exported to {url}: {count:,}")


@command.command(name="import")
@_store
@click.argument("url")
@click.option("--skip", "existing", flag_value="skip", help="Skip adapters with the same names.")
@click.option("--replace", "existing", flag_value="replace", help="Replace adapters with the same names.")
def import_(path: Path, url: str, *, existing: str | None) -> None:
    """Store all adapters of an exported file, or none; STORE is created if it does not exist."""
    from rankfold.store.store import AdapterStore

    with AdapterStore(path) as store:
        count = store.import_(
            url, existing="skip" if existing == "skip" else "replace" if existing else "refuse"
        )
    note(f"adapters imported: {count:,}")


@command.command()
@_store
@json_option
def stats(path: Path, *, as_json: bool) -> None:
    """Print the number of adapters and the disk space of the store."""
    from rankfold.store.store import AdapterStore

    with AdapterStore(path, "read") as store:
        counts = asdict(store.stats())
    if as_json:
        print_json(counts)
    else:
        print_table(["", ""], [[key.replace("_", " "), f"{number:,}"] for key, number in counts.items()])


@command.command()
@_store
def gc(path: Path) -> None:
    """Delete data that no adapter uses any more, and free its disk space."""
    from rankfold.store.store import AdapterStore

    with AdapterStore(path, "write") as store:
        room = store.gc()
    smaller = f"file smaller by {room.file_bytes:,} bytes"
    note(f"removed: {room.parts:,} parts, {room.families:,} families; {smaller}")


def _pairs(texts: Sequence[str]) -> dict[str, str]:
    """Read `key=value` as text."""
    pairs: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key or key in pairs:
            raise SpecError(f"'{text}' is no key=value, or its key is there twice; write it like customer=a.")
        pairs[key] = value
    return pairs


def _number(key: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise SpecError(f"the metric '{key}' is '{text}'; give a number, like {key}=0.93.") from error


def _metrics_of_run(adapter: Path) -> dict[str, float]:
    from rankfold.runs.record import NAME, RunRecord

    return dict(RunRecord.read(adapter).metrics) if (adapter / NAME).is_file() else {}
