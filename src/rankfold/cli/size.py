"""`rankfold size`: every byte of a saved adapter, of any PEFT method, and the file without those in vain."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from rankfold.cli.console import note, print_json, print_table
from rankfold.cli.options import json_option
from rankfold.errors import SpecError

if TYPE_CHECKING:
    from rankfold.store.shrink import Shrinkage
    from rankfold.store.size import Explanation, Part


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--by-tensor", is_flag=True, help="Show each tensor, not groups of them.")
@click.option(
    "--shrink",
    "out",
    metavar="OUT",
    type=click.Path(path_type=Path),
    help="Write the adapter as the small file OUT.",
)
@click.option(
    "--regenerate", is_flag=True, help="With --shrink: also leave out what only a like processor draws again."
)
@click.option(
    "--dtype",
    type=click.Choice(["bf16", "int8"]),
    help="With --shrink: round the numbers; not exact any more.",
)
@click.option("--overwrite", is_flag=True, help="With --shrink: replace OUT.")
@click.option(
    "--expand",
    "directory",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Write PATH's adapter to DIR.",
)
@json_option
def command(
    path: Path,
    *,
    by_tensor: bool,
    out: Path | None,
    regenerate: bool,
    dtype: Literal["bf16", "int8"] | None,
    overwrite: bool,
    directory: Path | None,
    as_json: bool,
) -> None:
    """Explain every byte of a saved adapter: PATH is its directory or its file.

    With --shrink, what is there twice or follows from a seed is left out; --expand of the file that it writes
    gives the directory back byte for byte.
    """
    if out is None and (regenerate or dtype or overwrite):
        raise SpecError("--regenerate, --dtype and --overwrite say how to shrink; add --shrink OUT.")
    if sum((by_tensor, out is not None, directory is not None)) > 1:
        raise SpecError("--by-tensor, --shrink and --expand exclude each other; choose one.")
    if out is not None:
        from rankfold.store.shrink import shrink_adapter  # torch is slow to import, and --help can do without

        shrinkage = shrink_adapter(path, out, dtype=dtype, regenerate=regenerate, overwrite=overwrite)
        _report(shrinkage, out, dtype, as_json=as_json)
    elif directory is not None:
        _expand(path, directory)
    else:
        _explain(path, by_tensor=by_tensor, as_json=as_json)


def _explain(path: Path, *, by_tensor: bool, as_json: bool) -> None:
    from rankfold.store.size import explain  # torch is slow to import, and --help can do without it

    explanation = explain(path)
    if as_json:
        values = asdict(explanation)
        if not by_tensor:
            del values["tensors"]
        print_json(values)
        return
    _print_parts(explanation, explanation.tensors if by_tensor else explanation.parts)
    total, others = explanation.file_bytes, explanation.other_files
    if others:
        rows = [[name, f"{size:,}"] for name, size in others.items()]
        rows.append(["directory", f"{total + sum(others.values()):,}"])
        print_table(["other files", "bytes"], rows)
    for hint in explanation.hints:
        note(hint)
    if explanation.shrinkable_bytes:
        spared = f"{explanation.shrinkable_bytes:,} bytes are copies or follow from a seed"
        note(f"{spared}; to leave them out: rankfold size {path} --shrink OUT")


def _print_parts(explanation: "Explanation", parts: "tuple[Part, ...]") -> None:
    total = explanation.file_bytes
    kinds = ", ".join(f"{kind} {size:,}" for kind, size in explanation.bytes_by_kind.items())
    rows = [
        [
            part.name,
            part.kind,
            f"{part.tensors:,}" if part.tensors else "",
            f"{part.numbers:,}" if part.tensors else "",
            f"{part.bytes:,}",
            f"{part.bytes / total:.1%}",
        ]
        for part in parts
    ]
    rows.append(["whole file", "", "", "", f"{total:,}", "100.0%"])
    print_table(
        ["part", "kind", "tensors", "numbers", "bytes", "share"],
        rows,
        title=explanation.file,
        left=(0, 1),
        caption=f"learned: {explanation.learned_bytes:,} of {total:,} bytes ({kinds})",
    )


def _report(shrinkage: "Shrinkage", out: Path, dtype: str | None, *, as_json: bool) -> None:
    if as_json:
        print_json(asdict(shrinkage))
    else:
        _print_shrinkage(shrinkage)
    if dtype:
        note(f"rounded to {dtype}: --expand gives the rounded numbers, not the adapter byte for byte")
    if shrinkage.left_out:
        note(f"not carried: {', '.join(shrinkage.left_out)}")
    note(f"shrunk: {out}")


def _print_shrinkage(shrinkage: "Shrinkage") -> None:
    rows = [
        ["adapter and configuration", f"{shrinkage.bytes_before:,}"],
        ["copies left out", f"{shrinkage.duplicate_bytes:,}"],
        ["left out as a seed", f"{shrinkage.regenerable_bytes:,}"],
        ["shrunk file", f"{shrinkage.bytes_after:,}"],
    ]
    print_table(["", "bytes"], rows)
    if shrinkage.errors:
        errors = [[role, f"{error:.2g}"] for role, error in shrinkage.errors.items()]
        print_table(["rounded", "largest relative error"], errors)


def _expand(path: Path, directory: Path) -> None:
    from rankfold.store.shrink import expand_adapter

    exact = expand_adapter(path, directory)
    note(f"expanded {'byte for byte' if exact else 'with rounded numbers'}: {directory}")
