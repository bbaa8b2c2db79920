"""`rankfold data`: see what a run would learn, before it does."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from rankfold.cli.console import print_json, print_table
from rankfold.cli.options import json_option, merge_values, request_options
from rankfold.runs.request import PreviewRequest

if TYPE_CHECKING:
    from rankfold.runs.preview import DataPreview, ExamplePreview, Lengths

_LISTED = 12
_SHOWN_CHARACTERS = 1200


@click.group()
def command() -> None:
    """Commands on training data."""


@command.command()
@request_options(PreviewRequest)
@json_option
@click.pass_context
def show(context: click.Context, *, as_json: bool, **_options: Any) -> None:
    """Show the files, columns, labels, lengths, an example and the oddities of data.

    Nothing is trained, and no weight is loaded. With --model lengths are in tokens, and the example is shown
    as the model sees it.
    """
    request = PreviewRequest(**merge_values(context, PreviewRequest))
    from rankfold.runs.preview import preview_data  # seconds of imports

    preview = preview_data(request)
    if as_json:
        print_json(preview.to_dict())
        return
    print_table((preview.source, ""), list(_lines(preview)), left=(0, 1))
    _print_labels(preview)
    click.echo()
    click.echo("The first example" + (" as the model sees it:" if request.model else ":"))
    click.echo(_example_text(preview.example))
    if preview.findings:
        click.echo()
        for finding in preview.findings:
            click.echo(f"- {finding.message}")


def _lines(preview: "DataPreview") -> Iterator[tuple[str, str]]:
    for split, paths in preview.files.items():
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        yield f"{split} file{'s' if more else ''}", f"{paths[0]}{more}"
    yield "kind", f"{preview.kind}, measured by {', '.join(preview.metrics)}"
    for role, name in preview.columns.items():
        yield f"{role} column", name
    if preview.unused_columns:
        yield "not read", ", ".join(preview.unused_columns)
    yield "rows", ", ".join(f"{count:,} {split}" for split, count in preview.rows.items())
    for split, (least, mean, greatest) in preview.numbers.items():
        yield f"{split} labels", f"{least:g} to {greatest:g}, mean {mean:.6g}"
    for split, lengths in preview.lengths.items():
        yield f"{split} lengths", _lengths_text(lengths, preview.rows[split])


def _lengths_text(lengths: "Lengths", rows: int) -> str:
    sample = f" ({lengths.rows:,} rows measured)" if lengths.rows < rows else ""
    text = f"median {lengths.median:g}, longest {lengths.longest:,} {lengths.unit}{sample}"
    if lengths.max_length is None:
        return text
    if not lengths.cut:
        return f"{text}; none is cut at {lengths.max_length}"
    cut = f"{lengths.cut:.1%} are cut at {lengths.max_length}"
    return f"{text}; {cut}, which loses {lengths.lost:.1%} of the tokens"


def _print_labels(preview: "DataPreview") -> None:
    if not preview.labels:
        return
    splits = list(preview.labels)
    names = list(dict.fromkeys(name for counts in preview.labels.values() for name in counts))
    rows = [
        [name, *(f"{preview.labels[split].get(name, 0):,}" for split in splits)] for name in names[:_LISTED]
    ]
    if len(names) > _LISTED:
        rows.append([f"… {len(names) - _LISTED} more", *("" for _ in splits)])
    print_table(["label", *splits], rows)


def _example_text(example: "ExamplePreview") -> str:
    """Return an example as text, with the learned part between « and »."""
    parts = [f"«{item.text}»" if item.is_learned else item.text for item in example.segments]
    text = "\n".join(parts) if not any(item.is_learned for item in example.segments) else "".join(parts)
    if len(text) > _SHOWN_CHARACTERS:
        text = f"{text[: _SHOWN_CHARACTERS // 2]} … {text[-_SHOWN_CHARACTERS // 2 :]}"
    lines = "".join(f"  {line}\n" for line in text.splitlines()).rstrip("\n")
    note = (
        "\n  (learned: the text between « and »)" if any(item.is_learned for item in example.segments) else ""
    )
    return lines + (f"\n  label: {example.label}" if example.label is not None else "") + note
