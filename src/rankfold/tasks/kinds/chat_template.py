"""Chat templates: conversations as text with the assistant's turns told apart, on which alone the loss is."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast, final

from rankfold.errors import DataError, SpecError, unknown_name

SYSTEM, USER, ASSISTANT, TOOL = "system", "user", "assistant", "tool"

CHAT_TEMPLATE = "chat_template"
"""The setting with the text of the template that a model was trained with."""

CHAT_TEMPLATES: Mapping[str, str] = MappingProxyType(
    {
        "chatml": (
            "{% for message in messages %}"
            "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
            "{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
        ),
        "alpaca": (
            "{% for message in messages %}"
            "{% if message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}"
            "{% elif message['role'] == 'user' %}{{ '### Instruction:\\n' + message['content'] + '\\n\\n' }}"
            "{% else %}{{ '### Response:\\n' + message['content'] + eos_token + '\\n\\n' }}{% endif %}"
            "{% endfor %}"
            "{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"
        ),
        "vicuna": (
            "{% for message in messages %}"
            "{% if message['role'] == 'system' %}{{ message['content'] + ' ' }}"
            "{% elif message['role'] == 'user' %}{{ 'USER: ' + message['content'] + ' ' }}"
            "{% else %}{{ 'ASSISTANT: ' + message['content'] + eos_token }}{% endif %}"
            "{% endfor %}"
            "{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
        ),
    }
)
"""Templates for models that come without one, by name."""


def read_template(name: str) -> str:
    """Return a template: one of `CHAT_TEMPLATES`, or the text of a file.

    Raises:
        SpecError: If there is neither, or the file is no template.
    """
    if name in CHAT_TEMPLATES:
        return CHAT_TEMPLATES[name]
    path = Path(name).expanduser()
    if not path.is_file():
        if path.suffix or "/" in name:
            raise SpecError(
                f"there is no chat template '{name}'; name a Jinja file, or one of "
                f"{', '.join(CHAT_TEMPLATES)}."
            )
        raise unknown_name("chat template", name, CHAT_TEMPLATES)
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(
            f"cannot read the chat template '{name}' ({error}); save it as UTF-8 text."
        ) from error


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Args:
        role: `system`, `user`, `assistant` or `tool`.
        content: Its text.
        extra: The calls of tools that an assistant makes, or the name of the tool that answers.
    """

    role: str
    content: str
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any], hash=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the turn as chat templates read it."""
        return {"role": self.role, "content": self.content, **self.extra}


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a conversation's text, and whether its tokens count in the loss."""

    text: str
    is_learned: bool


@final
@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A tokenizer's way of writing conversations.

    Args:
        tokenizer: Of the model.
        text: The template in Jinja; the tokenizer's own if None.
        tools: Those that a conversation describes to the model, as JSON schemas.
    """

    tokenizer: Any
    text: str | None = None
    tools: Sequence[Any] = ()

    @property
    def source(self) -> str | None:
        """The template in Jinja; None if neither the tokenizer nor anybody else has one."""
        own: object = getattr(self.tokenizer, "chat_template", None)
        return self.text or (own if isinstance(own, str) else None)

    def prompt(self, turns: Sequence[Message], row: int | str = "") -> str:
        """Return the text up to where the assistant's answer begins.

        Raises:
            SpecError: If there is no template.
            DataError: If the template refuses the conversation.
        """
        return self._render(turns, row, is_open=True)

    def segments(self, turns: Sequence[Message], row: int | str = "") -> list[Segment]:
        """Return the whole text in parts: every answer of the assistant with its end of turn is learned.

        Where an answer begins and ends is found by writing the conversation up to there. So the model learns
        exactly the text that it has to continue when it is used, whatever the template.

        Args:
            turns: The last is the assistant's.
            row: The id of the row, for messages.

        Raises:
            SpecError: If there is no template, or it writes the beginning of a conversation in another way
                once it goes on.
            DataError: If the template refuses the conversation.
        """
        text = self._render(turns, row)
        segments: list[Segment] = []
        position = 0
        for index, turn in enumerate(turns):
            # What an assistant says before anyone else does is no answer.
            if turn.role != ASSISTANT or all(earlier.role != USER for earlier in turns[:index]):
                continue
            begin = len(self._prefix(text, turns[:index], row, is_open=True))
            end = len(self._prefix(text, turns[: index + 1], row, is_open=False))
            if not position <= begin <= end:
                raise self._prefix_error(row)
            stop = begin + self._length(text[begin:end], turn.content)
            segments += [
                Segment(text[position:begin], is_learned=False),
                Segment(text[begin:stop], is_learned=True),
            ]
            position = stop
        return segments

    def _prefix(self, text: str, turns: Sequence[Message], row: int | str, *, is_open: bool) -> str:
        prefix = self._render(turns, row, is_open=is_open)
        if not text.startswith(prefix):
            raise self._prefix_error(row)
        return prefix

    def _length(self, text: str, content: str) -> int:
        """Return the length of an answer with its end of turn, without the space after it."""
        content = content.strip()
        first = text.find(content)
        after = first + len(content) if first >= 0 else 0
        eos = self.tokenizer.eos_token
        if eos and (end := text.find(eos, after)) >= 0:
            return end + len(eos)
        return max(after, len(text.rstrip()))

    def end_of_turn(self) -> int | None:
        """Return the token by which the template ends an answer, if it is another than the end of text."""
        if self.source is None:
            return None
        turns = [Message(USER, "a"), Message(ASSISTANT, "b")]
        try:
            text = self._render(turns, "")
        except (DataError, SpecError):
            return None
        ids: list[int] = self.tokenizer(text[text.rfind("b") + 1 :].strip(), add_special_tokens=False)[
            "input_ids"
        ]
        is_special = bool(ids) and ids[0] in self.tokenizer.all_special_ids
        return ids[0] if is_special and ids[0] != self.tokenizer.eos_token_id else None

    def _render(self, turns: Sequence[Message], row: int | str, *, is_open: bool = False) -> str:
        if self.source is None:
            raise SpecError(
                "the data are conversations, but the model's tokenizer has no chat template; name one with "
                f"--chat-template: {', '.join(CHAT_TEMPLATES)}, or a Jinja file."
            )
        self._check_tools(turns, self.source)
        from jinja2 import TemplateError  # of an extra, by which transformers renders

        messages = [turn.to_dict() for turn in turns]
        try:
            return cast(
                str,
                self.tokenizer.apply_chat_template(
                    messages,
                    tools=list(self.tools) or None,
                    chat_template=self.source,
                    tokenize=False,
                    add_generation_prompt=is_open,
                ),
            )
        except (TemplateError, TypeError, ValueError, LookupError) as error:
            words = " ".join(str(error).split()).rstrip(".")
            raise DataError(
                f"the chat template refuses the conversation of row '{row}' ({words}); mend the row, or name "
                "another template with --chat-template."
            ) from error

    def _check_tools(self, turns: Sequence[Message], source: str) -> None:
        """Check that the template writes the tools of a conversation, and does not pass over them."""
        has_calls = any("tool_calls" in turn.extra for turn in turns)
        has_answers = any(turn.role == TOOL for turn in turns)
        needed = {
            "the descriptions of tools": self.tools and not re.search(r"\btools\b", source),
            "calls of tools": has_calls and "tool_calls" not in source,
            "answers of tools": has_answers and not re.search(r"""['"]tool['"]""", source),
        }
        if unwritten := [noun for noun, is_missing in needed.items() if is_missing]:
            raise SpecError(
                f"the chat template does not write {' and '.join(unwritten)}, which the conversations have; "
                "use a model whose template does, name another with --chat-template, or remove them."
            )

    def _prefix_error(self, row: int | str) -> SpecError:
        return SpecError(
            f"the chat template writes the beginning of the conversation of row '{row}' in another way once "
            "the conversation goes on, so that its answers cannot be told apart; name another template with "
            f"--chat-template, such as {next(iter(CHAT_TEMPLATES))}."
        )
