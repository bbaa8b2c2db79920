"""`rankfold predict`: labels, numbers and texts of a saved adapter for new texts and files."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from rankfold.cli.console import note, print_table, progress_screen, shown_notes
from rankfold.cli.options import SectionedCommand, merge_values, request_options, section
from rankfold.errors import SpecError
from rankfold.runs.adapter_request import PredictRequest
from rankfold.runs.fields import fields_of

if TYPE_CHECKING:
    from rankfold.runs.adapted import AdaptedModel, InputText
    from rankfold.runs.predict import AnsweredRow

_FIELDS = tuple(name for name in fields_of(PredictRequest) if name != "adapter")
_data = section("Data")
_output = section("Output")
_SHOWN_LETTERS = 60
_NOTHING = "(none)"

_EPILOG = """\b
Examples:
  rankfold predict runs/tickets --text "My card was charged twice."
  rankfold predict runs/tickets --data new.csv --out answered.csv
  rankfold predict adapters.db#customers/a --json < lines.txt
  rankfold predict runs/answers --text "Name three rivers." --temperature 0.7 --top-p 0.9
  rankfold predict runs/style --text "a red fox" --text "a boat" --seed 7 --out pictures
"""


@click.command(cls=SectionedCommand, epilog=_EPILOG)
@click.argument("adapter", type=click.Path(path_type=Path))
@_data("--text", "texts", metavar="TEXT", multiple=True, help="A text; may be repeated.")
@_data(
    "--pair",
    "pairs",
    metavar="TEXT",
    multiple=True,
    help="The second text of a pair, or the input of an instruction; one for each --text.",
)
@request_options(PredictRequest, _FIELDS)
@_output(
    "--out",
    type=click.Path(path_type=Path),
    help="File for the answers, .jsonl or .csv, with the columns of the input; a folder for pictures.",
)
@_output("--overwrite", is_flag=True, help="Replace the file that --out names.")
@_output(
    "--json", "as_json", is_flag=True, help="Print one JSON object a line on stdout, instead of a table."
)
@click.pass_context
def command(
    context: click.Context,
    *,
    texts: tuple[str, ...],
    pairs: tuple[str, ...],
    out: Path | None,
    overwrite: bool,
    as_json: bool,
    **_options: Any,  # fields of the request, read off the context
) -> None:
    """Answer new texts with the adapter ADAPTER: a folder, a packed file, or STORE#NAME.

    The texts are those of --text, the rows of --data, or the lines of standard input, where a line that
    begins with a brace is a row, a JSON object. Answers come in the order of the input.
    """
    request = PredictRequest(**merge_values(context, PredictRequest))
    _check_options(request, texts, pairs, out, overwrite=overwrite, as_json=as_json)
    from rankfold.runs.predict import (
        answer_rows,
        check_answer_file,
        check_answer_form,
        json_line,
        load_for,
        replaced_columns,
        write_answers,
    )
    from rankfold.tasks.data.table import quote_list

    if out is not None:
        check_answer_file(out, overwrite=overwrite)
    with shown_notes():
        # What is wrong with the data is said before the model is loaded.
        inputs = _read_inputs(request, texts, pairs)
        if out is not None and (names := replaced_columns(inputs)):
            note(f"the answers replace {quote_list(names)} of the input; rename what is to be kept.")
        model = load_for(request)
        check_answer_form(model, out)
        if out is None and not as_json and len(inputs) == 1:
            _print_one(model, inputs, request)
            return
        with progress_screen() as new_bar:
            answers = answer_rows(model, model.rows(inputs), request, progress=new_bar())
            if out is not None:
                count = write_answers(answers, out, classes=model.label_names, overwrite=overwrite)
                note(f"wrote {count:,} answers to '{out}'.")
            elif as_json:
                for answer in answers:
                    click.echo(json_line(answer))
            else:
                _print(list(answers))


def _check_options(
    request: PredictRequest,
    texts: Sequence[str],
    pairs: Sequence[str],
    out: Path | None,
    *,
    overwrite: bool,
    as_json: bool,
) -> None:
    if texts and request.data is not None:
        raise SpecError("--text and --data are both given; give one of them.")
    if pairs and len(pairs) != len(texts):
        raise SpecError(f"--pair is given {len(pairs)} times for {len(texts)} of --text; give one for each.")
    if overwrite and out is None:
        raise SpecError("--overwrite is given without --out, whose file it would replace; leave it out.")
    if as_json and out is not None:
        raise SpecError("--json prints the answers that --out would write; give one of them.")
    unused = [name for name in ("split", "encoding", "delimiter") if getattr(request, name) is not None]
    if request.data is None and unused:
        raise SpecError(f"--{unused[0]} is given without --data, which it is for; leave it out.")
    if not texts and request.data is None and sys.stdin.isatty():
        raise SpecError("there is nothing to answer; give --text or --data, or pipe lines of text in.")


def _read_inputs(
    request: PredictRequest, texts: Sequence[str], pairs: Sequence[str]
) -> "Sequence[InputText]":
    from rankfold.runs.predict import parse_lines
    from rankfold.tasks.load import read_whole

    if request.data is not None:
        return read_whole(request.data, request.split, request.read_options).rows
    if not texts:
        return parse_lines(sys.stdin)
    return list(zip(texts, pairs, strict=True)) if pairs else texts


def _print_one(model: "AdaptedModel", inputs: "Sequence[InputText]", request: PredictRequest) -> None:
    """Print one answer: a generated text as it comes, anything else as a table."""
    pieces: list[str] = []

    def show(piece: str) -> None:
        pieces.append(piece)
        click.echo(piece, nl=False)

    from rankfold.runs.predict import answer_rows

    rows = model.rows(inputs)
    answers = list(answer_rows(model, rows, request, on_text=show))
    if pieces:
        click.echo()
    else:
        _print(answers)


def _print(answers: "Sequence[AnsweredRow]") -> None:
    """Print answers as a table: the input, the answer, and its probability if there is one."""
    has_probability = any(answer.probability is not None for answer in answers)
    columns = ("input", "prediction", *(("probability",) if has_probability else ()))
    rows: list[tuple[str, ...]] = []
    for answer in answers:
        text = next((value for value in answer.row.values() if isinstance(value, str)), "")
        cells = (_shorten(text), _text_of(answer.prediction))
        probability = "" if answer.probability is None else f"{answer.probability:.4f}"
        rows.append((*cells, probability) if has_probability else cells)
    print_table(columns, rows, left=(0, 1))


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_LETTERS else f"{line[: _SHOWN_LETTERS - 1]}…"


def _text_of(prediction: object) -> str:
    match prediction:
        case float():
            return f"{prediction:.6g}"
        case list():
            return ", ".join(map(str, cast("list[object]", prediction))) or _NOTHING
        case None:
            return _NOTHING
        case _:
            return str(prediction)
