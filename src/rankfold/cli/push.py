"""`rankfold push`: a saved adapter with a model card on the Hugging Face hub."""

from pathlib import Path

import click

from rankfold.cli.console import note


@click.command()
@click.argument("adapter", type=click.Path(path_type=Path))
@click.argument("repo_id", metavar="REPO_ID")
@click.option("--private", is_flag=True, help="Make a new repository private.")
@click.option("--revision", help="Branch to upload to; the main branch if left out.")
@click.option("--licence", metavar="NAME", help="Licence of the adapter, as the hub names it, such as mit.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Write the files to this folder; upload nothing.",
)
def command(
    adapter: Path, repo_id: str, *, private: bool, revision: str | None, licence: str | None, out: Path | None
) -> None:
    """Upload ADAPTER with a model card to the hub's repository REPO_ID, which is made if it is not there.

    ADAPTER is a folder, a packed file, or a record of a store as STORE#NAME. The card is made from
    rankfold.json and run.json. Log in with `hf auth login` first.
    """
    from rankfold.runs.push import push_adapter  # PEFT is slow to import

    place = push_adapter(adapter, repo_id, private=private, revision=revision, licence=licence, out=out)
    click.echo(place)
    note(f"written: {place}; nothing was uploaded." if out is not None else f"uploaded: {repo_id}")
