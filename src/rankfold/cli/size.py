"""`rankfold size`: every byte of a saved adapter, of any PEFT method."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rankfold.cli.console import note, print_json, print_table
from rankfold.cli.options import json_option

if TYPE_CHECKING:
    from rankfold.store.size import Explanation, Part


@click.command()
@click.argument("adapter", type=click.Path(path_type=Path))
@click.option("--by-tensor", is_flag=True, help="Show single tensors instead of groups.")
@json_option
def command(adapter: Path, *, by_tensor: bool, as_json: bool) -> None:
    """Explain every byte of ADAPTER: a PEFT folder, a packed file, or a record of a store as STORE#NAME."""
    from rankfold.store.size import explain  # torch is slow to import, and --help can do without it

    explanation = explain(adapter)
    if as_json:
        values = asdict(explanation)
        if not by_tensor:
            del values["tensors"]
        print_json(values)
        return
    _print_parts(explanation, explanation.tensors if by_tensor else explanation.parts)
    if explanation.other_files:
        rows = [[name, f"{size:,}"] for name, size in explanation.other_files.items()]
        total = explanation.file_bytes + sum(explanation.other_files.values())
        print_table(["other files", "bytes"], [*rows, ["folder", f"{total:,}"]])
    for digest, size in explanation.bases.items():
        room = "which is not at hand" if size is None else f"{size:,} bytes"
        note(f"its frozen sides are in the basis {digest}, {room}, stored once for all its adapters")
    if explanation.certificate is not None:
        note(f"rounded to {explanation.certificate.dtype}: {explanation.certificate}")
    if copies := explanation.bytes_by_type.get("duplicate"):
        note(f"{copies:,} bytes are copies; to store each tensor once: rankfold pack {adapter} FILE")


def _print_parts(explanation: "Explanation", parts: "tuple[Part, ...]") -> None:
    total = explanation.file_bytes
    types = ", ".join(f"{type_} {size:,}" for type_, size in explanation.bytes_by_type.items())
    rows = [
        [
            part.name,
            part.type,
            part.stored_as,
            f"{part.tensors:,}" if part.tensors else "",
            f"{part.numbers:,}" if part.tensors else "",
            f"{part.bytes:,}",
            f"{part.bytes / total:.1%}",
        ]
        for part in parts
    ]
    rows.append(["whole file", "", "", "", "", f"{total:,}", "100.0%"])
    print_table(
        ["part", "type", "stored as", "tensors", "numbers", "bytes", "share"],
        rows,
        title=explanation.file,
        left=(0, 1, 2),
        caption=f"learned: {explanation.learned_bytes:,} of {total:,} bytes ({types})",
    )
