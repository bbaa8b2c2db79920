"""`rankfold chat`: a conversation with an instruction adapter in the terminal."""

import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rankfold.cli.console import note, shown_notes
from rankfold.cli.options import SectionedCommand, merge_values, request_options, section
from rankfold.runs.adapter_request import PredictRequest, SamplingRequest
from rankfold.runs.fields import fields_of

if TYPE_CHECKING:
    from rankfold.runs.chat import Conversation

_FIELDS = (
    *("model", "trust_remote_code", "max_length", "chat_template", "precision", "device"),
    *fields_of(SamplingRequest),
)
_PROMPT = "> "
_HELP = "/reset forgets the conversation, /exit ends it; so does the end of the input."


@click.command(cls=SectionedCommand)
@click.argument("adapter", type=click.Path(path_type=Path))
@request_options(PredictRequest, _FIELDS, section="Options")
@section("Options")("--system", metavar="TEXT", help="A first turn that says how to answer.")
@click.pass_context
def command(
    context: click.Context,
    *,
    system: str | None,
    **_options: Any,  # fields of the request, read off the context
) -> None:
    """Converse with the instruction adapter ADAPTER: a folder, a packed file, or STORE#NAME.

    Each line is a turn, answered by the chat template that the adapter was trained with or the tokenizer's.
    /reset forgets the conversation, /exit ends it.
    """
    request = PredictRequest(**merge_values(context, PredictRequest))
    from rankfold.runs.chat import Conversation
    from rankfold.runs.predict import load_for

    with shown_notes():
        conversation = Conversation(load_for(request), request, system)
    note(_HELP)
    if conversation.remembers:
        note(f"conversations are written by {_template_name(conversation, request)}.")
    else:
        note("there is no chat template: each line is answered alone, without those before it.")
    for line in _lines():
        match line.strip():
            case "":
                continue
            case "/exit" | "/quit":
                break
            case "/reset":
                conversation.reset()
                note("the conversation begins anew.")
            case text:
                _answer(conversation, text)


def _template_name(conversation: "Conversation", request: PredictRequest) -> str:
    if request.chat_template is not None:
        return f"the chat template '{request.chat_template}'"
    is_learned = conversation.model.learner.chat_template.text is not None
    return "the chat template of the training" if is_learned else "the chat template of the tokenizer"


def _lines() -> Iterator[str]:
    """Yield the lines of the user, with a prompt where there is a terminal."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    with suppress(ImportError):  # Windows has none
        import_module("readline")  # gives `input` a history and editing

    while True:
        try:
            yield input(_PROMPT)
        except (EOFError, KeyboardInterrupt):
            click.echo(err=True)
            return


def _answer(conversation: "Conversation", text: str) -> None:
    """Print the answer as it comes; Ctrl-C ends the answer, not the conversation."""
    pieces: list[str] = []

    def show(piece: str) -> None:
        pieces.append(piece)
        click.echo(piece, nl=False)

    try:
        reply = conversation.ask(text, show)
    except KeyboardInterrupt:
        click.echo()
        note("the answer was interrupted and is not part of the conversation.")
        return
    click.echo("" if "".join(pieces).strip() else reply)
