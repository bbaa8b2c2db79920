"""Questions about pictures: rows with a question, a caption or a conversation as turns before an answer."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from rankfold.errors import DataError
from rankfold.tasks.data.columns import Columns
from rankfold.tasks.data.pictures import Picture, PictureCell
from rankfold.tasks.data.table import Row
from rankfold.tasks.data.texts import text_of
from rankfold.tasks.kinds.chat_template import ASSISTANT, USER
from rankfold.tasks.kinds.conversations import CONVERSATION_COLUMNS, content_of, message_list, role_of
from rankfold.tasks.kinds.kind import LabelHints

ANSWERS = "answers"
"""The setting with the few answers that a model has learned to choose from."""

_CAPTION = "Describe the picture."
_MOST_ANSWERS = 32
"""A training split with no more different answers than this is a choice among them."""

_YES_NO = {"yes", "no"}
_PLACE = re.compile(r"\s*<(?:image|video)>\s*")


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn before the answer: a role, and texts with None where a picture stands."""

    role: str
    parts: tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class PictureQuestion:
    """A conversation about pictures, up to an answer.

    Args:
        id: The row's.
        turns: In order; the last is the user's.
        pictures: Those of all turns, in order.
        answer: The text to learn; empty if it is not known.
        candidates: All answers that are possible; empty if the answer is open.
        group: The type of the question, whose score is measured apart; empty if there are no types.
    """

    id: int | str
    turns: tuple[Turn, ...]
    pictures: tuple[Picture, ...]
    answer: str = ""
    candidates: tuple[str, ...] = ()
    group: str = ""

    @property
    def question(self) -> str:
        """The texts of the last turn."""
        return " ".join(part for part in self.turns[-1].parts if part)


def read_question(row: Row, name: int | str, columns: Columns, cell: PictureCell) -> PictureQuestion:
    """Return a row as a question; without a label column it may have no answer."""
    if columns.text in CONVERSATION_COLUMNS:
        messages = _messages(row[columns.text], columns.text)
        return _read_conversation(messages, name, cell, has_column=columns.picture is not None)
    pictures = cell.pictures()
    question = _CAPTION if columns.text is None else text_of(row, columns.text)
    answer = "" if columns.label is None else _answer_of(row.get(columns.label), columns.label)
    return PictureQuestion(name, (Turn(USER, _parts(question, len(pictures))),), pictures, answer)


def _answer_of(value: object, column: str) -> str:
    """Return an answer; the commonest, where several people have answered."""
    if isinstance(value, list):
        answers = cast("list[Any]", value)
        items = [str(cast("Any", item)["answer"] if isinstance(item, dict) else item) for item in answers]
        value = max(items, key=items.count, default=None)
    if isinstance(value, bool | int | float):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"the column '{column}' has no answer; mend or remove the row.")
    return value.strip()


def _parts(text: str, pictures: int) -> tuple[str | None, ...]:
    """Return a text in parts with its pictures: where `<image>` stands in it, else before it."""
    pieces = _PLACE.split(text)
    if len(pieces) == 1:
        return (*[None] * pictures, text)
    if len(pieces) - 1 != pictures:
        raise DataError(
            f"the text has {len(pieces) - 1} times '<image>' for {pictures} pictures; write it for each."
        )
    parts: list[str | None] = []
    for number, piece in enumerate(pieces):
        parts += [*([None] if number else []), *([piece] if piece else [])]
    return tuple(parts)


def _read_conversation(
    messages: Sequence[tuple[str, str | list[Any]]], name: int | str, cell: PictureCell, *, has_column: bool
) -> PictureQuestion:
    """Return messages up to the assistant's last turn, which is the answer if there is one."""
    pictures = list(cell.pictures()) if has_column and cell.value not in (None, []) else []
    has_marks = any(isinstance(content, str) and _PLACE.search(content) for _, content in messages)
    pending = 0 if has_marks else len(pictures)
    turns: list[Turn] = []
    for role, content in messages:
        if not isinstance(content, str):
            turns.append(Turn(role, tuple(_inner_parts(content, cell, pictures))))
            continue
        # Pictures without a mark stand before the user's first words.
        count = pending if role == USER else 0
        pending -= count
        turns.append(Turn(role, _parts(content, len(_PLACE.findall(content)) + count)))
    answer = " ".join(part for part in turns.pop().parts if part) if turns[-1].role == ASSISTANT else ""
    places = sum(part is None for turn in turns for part in turn.parts)
    if places != len(pictures) or not turns:
        raise DataError(
            f"the conversation has {len(pictures)} pictures for {places} places; write '<image>' for each."
        )
    return PictureQuestion(name, tuple(turns), tuple(pictures), answer)


def _messages(value: object, column: str) -> list[tuple[str, str | list[Any]]]:
    """Return the role and the content of each message: a text, or parts.

    Raises:
        DataError: If a value is no list of messages, or one has no role or no content.
    """
    messages: list[tuple[str, str | list[Any]]] = []
    for number, message in enumerate(message_list(value, column), 1):
        role, content = role_of(message, number), content_of(message)
        if not isinstance(content, str | list):
            raise DataError(f"message {number} has no content; mend or remove the row.")
        messages.append((role, cast("str | list[Any]", content)))
    return messages


def _inner_parts(content: list[Any], cell: PictureCell, pictures: list[Picture]) -> Iterator[str | None]:
    """Yield the texts of a message's parts, and None for a picture, which is added if the part brings it."""
    for part in content:
        if isinstance(part, str):
            yield part
        elif not isinstance(part, Mapping):
            raise DataError(f"'{str(part)[:40]}' is no part of a message; mend or remove the row.")
        elif "text" in part:
            yield str(cast("Any", part)["text"])
        else:
            value = {name: item for name, item in cast("Mapping[str, Any]", part).items() if name != "type"}
            pictures += replace(cell, value=value).pictures() if any(value.values()) else ()
            yield None


def has_inner_pictures(row: Row, column: str | None) -> bool:
    """Return whether a column holds a conversation whose messages have parts that are pictures."""
    if column is None:
        return False
    try:
        messages = _messages(row.get(column), column)
    except DataError:
        return False
    parts: list[Any] = [part for _, content in messages if isinstance(content, list) for part in content]
    return any("image" in str(cast("Any", part).get("type")) for part in parts if isinstance(part, dict))


def closed_answers(answers: Sequence[str]) -> tuple[str, ...]:
    """Return the different answers in order if there are few enough to choose among, else nothing."""
    different = sorted(set(answers))
    return tuple(different) if 1 < len(different) <= min(_MOST_ANSWERS, len(answers) // 2) else ()


def learned_answers(hints: LabelHints) -> tuple[str, ...] | None:
    """Return the answers that a model has learned to choose from; None if it has learned none yet."""
    if hints.learned_settings is None:
        return None
    answers = hints.learned_settings.get(ANSWERS)
    return tuple(map(str, answers)) if isinstance(answers, list) else ()


def with_candidates(item: PictureQuestion, answers: tuple[str, ...]) -> PictureQuestion:
    """Return a question with the answers it competes with, and its type where none is known."""
    if item.answer not in answers:
        return item
    # Answers that need no picture are guessed; without a column of types they are measured apart.
    is_yes_no = item.answer.lower() in _YES_NO
    has_both = any(answer.lower() in _YES_NO for answer in answers)
    default = "" if not has_both else "yes_no" if is_yes_no else "other"
    return replace(item, candidates=answers, group=item.group or default)


def question_groups(items: Sequence[PictureQuestion]) -> dict[str, list[int]]:
    """Return the places of the questions of each type, by its name as an identifier."""
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for place, item in enumerate(items):
        if item.group:
            groups[re.sub(r"\W+", "_", item.group.strip().lower())].append(place)
    return dict(groups) if len(groups) > 1 else {}
