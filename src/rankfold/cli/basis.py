"""`rankfold basis`: learn, show and use bases, the frozen sides that small adapters share."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from rankfold.cli.console import note, print_json, print_table, progress_screen, shown_notes
from rankfold.cli.export import print_certificate
from rankfold.cli.options import json_option

_SHOWN_RANKS = (1, 2, 4, 8, 16, 32, 64, 128)

_model = click.option("--model", help="The base model; that of the adapter's configuration if left out.")
_file = click.argument("file", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False))


@click.group()
def command() -> None:
    """Learn directions once for a base model, from adapters of several tasks, and train cores on them."""


@command.command()
@click.option(
    "--from",
    "sources",
    multiple=True,
    required=True,
    metavar="ADAPTER",
    type=click.Path(path_type=Path),
    help="A saved adapter of any PEFT method: a folder, a packed file or STORE#NAME; repeat it.",
)
@click.option("--rank", default=32, show_default=True, help="The most directions of a layer.")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="The file to write."
)
@click.option(
    "--seeded",
    "seeded_share",
    default=0.0,
    show_default=True,
    help="Share of seeded directions, from 0 to 1.",
)
@click.option("--seed", default=0, show_default=True, help="Seed of these directions.")
@click.option(
    "--dtype",
    type=click.Choice(["fp16", "bf16", "fp32"]),
    default="fp16",
    show_default=True,
    help="Type of the numbers in the file.",
)
@_model
@click.option("--overwrite", is_flag=True, help="Replace the file.")
@json_option
def learn(*, as_json: bool, **options: Any) -> None:
    """Learn a basis from adapters of one base model, of other tasks than it will be used for.

    More adapters may stand behind the first one: --from runs/a --from runs/b.
    """
    from rankfold.export.bases import BasisRequest, learn_basis  # torch is slow to import

    request = BasisRequest(**options)
    with shown_notes(), progress_screen() as make_bar:
        info, basis = learn_basis(request, make_bar())
    _show(info, basis, as_json=as_json)
    note(f"written: {request.out}")


@command.command()
@_file
@json_option
def show(file: Path, *, as_json: bool) -> None:
    """Show the sources and the layers of the basis FILE, and how much its first directions carry."""
    from rankfold.store.basis import read_basis

    _show(*read_basis(file), as_json=as_json)


@command.command()
@click.argument("adapter", type=click.Path(path_type=Path))
@click.option("--basis", required=True, metavar="FILE|NAME", help="The basis: its file, name or digest.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder to write.")
@click.option("--rank", type=int, help="How many of its directions are used; all if left out.")
@_model
@click.option("--data", metavar="PATH|HUB_ID", help="Texts to compare outputs on; news articles if left out.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier folder of this command.")
@json_option
def fit(*, as_json: bool, out: Path, **options: Any) -> None:
    """Write ADAPTER as cores on a basis, by least squares, and certify the loss."""
    from rankfold.export.bases import BasisFit, fit_to_basis

    with shown_notes():
        certificate = fit_to_basis(BasisFit(out=out, **options))
    if as_json:
        print_json(certificate.to_dict())
    else:
        print_certificate(certificate, out)


@command.command()
@_file
def add(file: Path) -> None:
    """Put the basis FILE into your own folder, where adapters that need it find it."""
    from rankfold.store.basis import bases_folder, keep_basis

    basis = keep_basis(file)
    note(f"added: {basis.title} to {bases_folder()}")


def _show(info: Any, basis: Any, *, as_json: bool) -> None:
    numbers = sum(layer.down.numel() + layer.up.numel() for layer in basis.layers.values())
    if as_json:
        sizes = {"rank": basis.rank, "layers": len(basis.layers), "numbers": numbers}
        print_json({"digest": basis.digest, **sizes, **asdict(info)})
        return
    lines = [
        ["digest", basis.digest],
        ["base", info.base or "not named"],
        ["layers", f"{len(basis.layers)}, of at most {basis.rank} directions; {numbers:,} numbers"],
        ["seeded", f"{info.seeded_share:.0%} of the directions"],
    ]
    lines += [
        ["carried", f"{info.update_shares[rank - 1]:.1%} by the first {rank}"]
        for rank in dict.fromkeys((*_SHOWN_RANKS, len(info.update_shares)))
        if rank <= len(info.update_shares)
    ]
    print_table([f"basis '{info.name}'", ""], lines, left=(0, 1))
    rows = [
        [source.name, source.method, source.task or "not known", source.sha256[:16]]
        for source in info.sources
    ]
    print_table(["source", "method", "task", "sha256 of weights"], rows, left=(0, 1, 2, 3))
