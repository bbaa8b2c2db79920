"""Conversations: rows in the layouts of chat data as messages of the system, the user and the assistant.

The layouts are OpenAI's `messages`, ShareGPT's `conversations`, `prompt` and `completion` as texts or as
messages, and Alpaca's `instruction` with `system` and `history`.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, cast, final

from rankfold.errors import DataError
from rankfold.tasks.data.columns import Columns, is_question
from rankfold.tasks.data.table import Finding, Row, Table
from rankfold.tasks.data.texts import text_of
from rankfold.tasks.kinds.answers import Instruction
from rankfold.tasks.kinds.chat_template import ASSISTANT, SYSTEM, TOOL, USER, Message
from rankfold.tasks.kinds.prompts import candidate_answers, choices_of, prompt_and_answer, prompt_of

_ROLES = {
    **dict.fromkeys(("system", "developer"), SYSTEM),
    **dict.fromkeys(("user", "human", "prompter"), USER),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model", "bot"), ASSISTANT),
    **dict.fromkeys(("tool", "observation", "function", "tool_response", "function_response"), TOOL),
    **dict.fromkeys(("function_call", "tool_call"), ASSISTANT),
}
_CALL_ROLES = ("function_call", "tool_call")
_READ_FIELDS = {"role", "content", "from", "value"}
_EXTRA_FIELDS = {ASSISTANT: ("tool_calls",), TOOL: ("name", "tool_call_id")}
_QUOTED_ROWS = 5
_JSON_LIST = re.compile(r"\s*\[\s*[{\[]")
CONVERSATION_COLUMNS = ("messages", "conversations", "conversation")


@dataclass(frozen=True, slots=True)
class Conversation:
    """A row as turns.

    Args:
        turns: In order.
        is_chat: Whether the row says who speaks, so that a chat template is needed; a bare prompt does not.
        unread_fields: Fields of its messages that nothing reads, such as `name`.
        tools: The descriptions of the tools that it offers.
    """

    turns: tuple[Message, ...]
    is_chat: bool
    unread_fields: frozenset[str] = frozenset()
    tools: tuple[Any, ...] = ()


def conversation_of(row: Row, columns: Columns) -> Conversation:
    """Return a row as a conversation.

    Args:
        row: In one of the layouts.
        columns: `text` and `label`, where they are named, are the conversation or prompt, and the answer.

    Raises:
        DataError: If the row is in none of the layouts, or a message cannot be read.
    """
    name = columns.text or next((name for name in CONVERSATION_COLUMNS if name in row), None)
    if name is not None and columns.label is None and not isinstance(parse_json(row.get(name)), str | None):
        messages = [*message_list(row.get(name), name)]
    elif "instruction" in row and columns.text is None:
        messages = _pair(row, "instruction", "output")
    else:
        messages = _pair(row, columns.text or "prompt", columns.label or "completion")
    earlier = [*_system(row, messages), *_history(row)]
    tools = _tools(row)
    turns, fields, is_chat = [*earlier], frozenset[str](), bool(earlier or tools)
    for number, message in enumerate(messages, 1):
        turn = message if isinstance(message, Message) else _turn(message, number)
        turns.append(turn)
        if not isinstance(message, Message):
            is_chat = True
            present = {key for key, value in message.items() if value not in (None, [], "")}
            calls = {"function_call"} if "tool_calls" in turn.extra else frozenset[str]()
            fields |= present - _READ_FIELDS - turn.extra.keys() - calls
    return Conversation(tuple(turns), is_chat, fields, tools)


def _tools(row: Row) -> tuple[Any, ...]:
    """Return the descriptions of tools in the column `tools`, which may be written as JSON.

    Raises:
        DataError: If they are no list of objects.
    """
    value: object = parse_json(row.get("tools"))
    if not value:
        return ()
    items = cast("list[Any]", value) if isinstance(value, list) else [value]
    if not all(isinstance(item, Mapping) for item in items):
        raise DataError(
            f"'tools' holds '{_short(row.get('tools'))}' where a list of descriptions of tools is needed; "
            "write each as an object, or remove the column."
        )
    # Some files leave out the object around a function.
    return tuple(
        {"type": "function", "function": item} if "name" in item and "function" not in item else item
        for item in cast("list[Mapping[str, Any]]", items)
    )


def _pair(row: Row, prompt: str, answer: str) -> list[Mapping[str, Any] | Message]:
    """Return prompt and answer, each a text or messages; the answer may be missing."""
    messages: list[Mapping[str, Any] | Message] = []
    for name, role in ((prompt, USER), (answer, ASSISTANT)):
        if role == ASSISTANT and name not in row:
            continue
        if isinstance(value := parse_json(row.get(name)), list):
            messages += message_list(cast("list[Any]", value), name)
            continue
        text, details = text_of(row, name), row.get("input") if name == "instruction" else None
        if isinstance(details, str) and details:
            text = f"{text}\n\n{details}"
        messages.append(Message(role, text))
    return messages


def message_list(value: object, column: str) -> list[Mapping[str, Any]]:
    """Return the messages of a conversation, which may be written as JSON.

    Raises:
        DataError: If the value is no list of objects, or an empty one.
    """
    items = parse_json(value)
    if not isinstance(items, list) or not all(isinstance(item, Mapping) for item in cast("list[Any]", items)):
        raise DataError(
            f"'{column}' holds '{_short(value)}' where a list of messages is needed; write each as an object "
            "with 'role' and 'content'."
        )
    if not items:
        raise DataError(f"'{column}' has no messages; mend or remove the row.")
    return cast("list[Mapping[str, Any]]", items)


def role_of(message: Mapping[str, Any], number: int) -> str:
    """Return the role of a message by one of its many names.

    Raises:
        DataError: If it has none, or one that is not trained on.
    """
    word = message.get("role") or message.get("from")
    role = _ROLES.get(word.strip().lower()) if isinstance(word, str) else None
    if role is None:
        raise DataError(
            f"message {number} is of the role '{word}', which is not trained on; write it as a turn of one "
            f"of these roles, or remove the row: {', '.join(_ROLES)}."
        )
    return role


def content_of(message: Mapping[str, Any]) -> object:
    """Return the content of a message: a text, parts, or None."""
    content = message.get("content")
    return message.get("value") if content is None else content


def _turn(message: Mapping[str, Any], number: int) -> Message:
    role, content = role_of(message, number), content_of(message)
    extra = {name: message[name] for name in _EXTRA_FIELDS.get(role, ()) if message.get(name)}
    if str(message.get("role") or message.get("from")).strip().lower() in _CALL_ROLES:
        extra["tool_calls"], content = _bare_calls(content, number), None
    elif message.get("function_call"):
        extra["tool_calls"] = _bare_calls(message["function_call"], number)
    if "tool_calls" in extra:
        extra["tool_calls"] = [_call(call, number) for call in extra["tool_calls"]]
    # Nothing at all is an empty answer, and counted as such.
    return Message(role, "" if content is None and role == ASSISTANT else _text(content, number), extra)


def _bare_calls(value: object, number: int) -> list[object]:
    """Return calls that are written as a name with arguments, in JSON or not, as `tool_calls` has them.

    Raises:
        DataError: If they are no JSON.
    """
    quote = _short(value)
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):
            value = json.loads(value)
    calls = cast("list[object]", value if isinstance(value, list) else [value])
    if not calls or not all(isinstance(call, Mapping) and "name" in call for call in calls):
        raise DataError(
            f"message {number} calls a tool by '{quote}' where an object with 'name' and 'arguments' is "
            "needed; correct or remove the row."
        )
    return [{"type": "function", "function": call} for call in calls]


def _call(call: object, number: int) -> object:
    """Return a call of a tool with its arguments as values, as chat templates write them.

    Raises:
        DataError: If it names no function.
    """
    match cast(Any, call):
        case {"function": {"name": str(), "arguments": str(text)} as function, **rest}:
            with suppress(ValueError, RecursionError):
                return {**rest, "function": {**function, "arguments": json.loads(text)}}
            return call
        case {"function": {"name": str()}}:
            return call
        case _:
            raise DataError(
                f"message {number} has the call '{_short(call)}' where an object with 'function' and its "
                "'name' is needed; correct or remove the row."
            )


def _text(content: object, number: int) -> str:
    """Return the text of a message, which may be a list of parts."""
    if isinstance(content, str):
        return content
    texts: list[str] = []
    for part in cast("list[Any]", content) if isinstance(content, list) else [content]:
        fields = cast("Mapping[str, Any]", part) if isinstance(part, Mapping) else {"text": part}
        text = fields.get("text")
        if fields.get("type", "text") != "text" or not isinstance(text, str):
            quote = _short(cast(object, part))
            raise DataError(
                f"message {number} has the content '{quote}' where a text is needed; pictures and sounds are "
                "not trained on: mend or remove the row."
            )
        texts.append(text)
    return "".join(texts)


def _system(row: Row, messages: Sequence[Mapping[str, Any] | Message]) -> list[Message]:
    text = row.get("system")
    if not text:
        return []
    first = messages[0]
    word = first.role if isinstance(first, Message) else first.get("role") or first.get("from")
    if word == SYSTEM:
        raise DataError("there is a column 'system' and a first message of the system; keep one of them.")
    return [Message(SYSTEM, text_of(row, "system"))]


def _history(row: Row) -> list[Message]:
    """Return Alpaca's earlier turns: pairs of a question and its answer."""
    turns: list[Message] = []
    value = parse_json(row.get("history"))
    for pair in cast("Iterable[Any]", value or []):
        match pair:
            case [str(question), str(answer)]:
                turns += [Message(USER, question), Message(ASSISTANT, answer)]
            case _:
                raise DataError(
                    f"'history' holds '{_short(pair)}' where a pair of a question and its answer is needed; "
                    "mend or remove the row."
                )
    return turns


def parse_json(value: object) -> object:
    """Return the list that a text holds as JSON, as cells of CSV files do; other values as they are."""
    if isinstance(value, str) and _JSON_LIST.match(value):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _short(value: object, length: int = 60) -> str:
    text = str(value)
    return text if len(text) <= length else f"{text[:length]}…"


# Rows as instructions


@final
@dataclass(slots=True)
class InstructionReader:
    """Reader of rows as instructions, which counts the parts that are not learned.

    Args:
        columns: Those that are named.
        choice_word: The word for a choice in the prompts of questions.
    """

    columns: Columns
    choice_word: str = "answer"
    _fields: Counter[str] = field(default_factory=Counter[str])
    _unanswered: list[int | str] = field(default_factory=list[int | str])

    def read(self, row: Row, name: int | str) -> Instruction:
        """Return a row as an instruction; one without an answer has an empty one.

        Raises:
            DataError: If it cannot be read.
        """
        if is_question(row, self.columns):
            prompt, answer = prompt_and_answer(row, self.choice_word)
            candidates = candidate_answers(row, answer)
            return Instruction(name, prompt, answer, candidates, choices=choices_of(row))
        conversation = conversation_of(row, self.columns)
        self._fields.update(conversation.unread_fields)
        roles = [turn.role for turn in conversation.turns]
        if ASSISTANT not in roles:
            return self._instruction(name, conversation, len(roles), "")
        last = len(roles) - 1 - roles[::-1].index(ASSISTANT)
        if last < len(roles) - 1:
            self._unanswered.append(name)
        turns = conversation.turns
        is_empty = any(
            turn.role == ASSISTANT and not turn.content.strip() and not turn.extra
            for turn in turns[: last + 1]
        )
        # What an assistant says before anyone else does is no answer.
        is_answer = USER in roles[:last] and not is_empty
        reply = turns[last]
        answer = reply.content or json.dumps(reply.extra.get("tool_calls"), ensure_ascii=False)
        item = self._instruction(name, conversation, last, answer if is_answer else "")
        item = replace(item, reply=reply if reply.extra else None)
        return replace(item, candidates=candidate_answers(row, item.answer))

    def read_prompt(self, row: Row, name: int | str, answers: Sequence[str] = ()) -> Instruction:
        """Return a row without its answer, if it has one.

        Args:
            row: What is asked.
            name: Its id.
            answers: Those to choose from, where the row brings no choices.

        Raises:
            DataError: If it cannot be read.
        """
        if not any(
            column in row for column in (*CONVERSATION_COLUMNS, "instruction", "prompt", self.columns.text)
        ):
            prompt, candidates = prompt_of(row, self.choice_word)
            return Instruction(
                name, prompt, "", candidates or tuple(answers), choices=choices_of(row) if candidates else ()
            )
        conversation = conversation_of(row, self.columns)
        count = len(conversation.turns)
        if count > 1 and conversation.turns[-1].role == ASSISTANT:
            count -= 1
        return replace(self._instruction(name, conversation, count, ""), candidates=tuple(answers))

    def _instruction(
        self, name: int | str, conversation: Conversation, count: int, answer: str
    ) -> Instruction:
        before = conversation.turns[:count]
        prompt = "\n\n".join(turn.content for turn in before)
        turns = before if conversation.is_chat else ()
        return Instruction(name, prompt, answer, turns=turns, tools=conversation.tools)

    def findings(self) -> list[Finding]:
        """Return remarks on messages that are not learned, or only in part."""
        remarks: list[Finding] = []
        if self._fields:
            names = ", ".join(f"'{name}' ({count:,})" for name, count in sorted(self._fields.items()))
            message = f"messages have fields that are not used, in so many rows: {names}."
            remarks.append(Finding("unread_fields", message))
        if self._unanswered:
            message = (
                f"{len(self._unanswered):,} conversations, the first of row '{self._unanswered[0]}', end "
                "with turns that nobody answers; these turns are not learned."
            )
            remarks.append(Finding("unanswered_turns", message))
        return remarks


def drop_empty(
    tables: Mapping[str, Table], splits: Mapping[str, Sequence[Instruction]]
) -> tuple[dict[str, list[Instruction]], list[Finding]]:
    """Return the instructions that have an answer, and remarks on those that are left out.

    Args:
        tables: The rows by split name.
        splits: The same rows as instructions.

    Raises:
        DataError: If no row of a split has an answer.
    """
    answered: dict[str, list[Instruction]] = {}
    findings: list[Finding] = []
    for split, items in splits.items():
        empty = [
            place
            for (place, _), item in zip(tables[split].enumerate_rows(), items, strict=True)
            if not item.answer.strip()
        ]
        answered[split] = [item for item in items if item.answer.strip()]
        if empty:
            places = ", ".join(tables[split].locate(place) for place in empty[:_QUOTED_ROWS])
            places += ", …" if len(empty) > _QUOTED_ROWS else ""
            words = f"{len(empty):,} of {len(items):,} rows of the split '{split}' have no or an empty answer"
            if len(empty) == len(items):
                raise DataError(f"{words}; fill them in.")
            findings.append(
                Finding(
                    "empty_answers",
                    f"{words}, and are left out ({places}); fill them in, or remove them.",
                )
            )
    return answered, findings
