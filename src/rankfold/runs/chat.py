"""Chat: a conversation with an adapter of an instruction task, turn by turn."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import final

from rankfold.runs.adapted import AdaptedModel
from rankfold.runs.adapter_request import SamplingRequest


@final
@dataclass(slots=True)
class Conversation:
    """The turns of a user and a model.

    All turns are put into the chat template that the adapter was trained with, or the tokenizer's own. Where
    there is none, each turn is answered alone, by the plain prompt of training. A conversation that is longer
    than the model takes loses its beginning.

    Args:
        model: Made by `rankfold.load`.
        sampling: How answers are generated.
        system: A first turn that says how to answer.
        turns: Role and text of each turn so far, without the system's.

    Raises:
        SpecError: If the adapter has not learned to answer instructions.
    """

    model: AdaptedModel
    sampling: SamplingRequest
    system: str | None = None
    turns: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])

    def __post_init__(self) -> None:
        """Check that the kind of task holds conversations."""
        _ = self.model.kind.conversation_row(self.model.learner, [("user", "")])

    @property
    def remembers(self) -> bool:
        """Whether earlier turns are part of the prompt, because there is a chat template."""
        return self.model.learner.chat_template.source is not None

    def ask(self, text: str, on_text: Callable[[str], None] | None = None) -> str:
        """Return the answer to the next turn of the user; both become part of the conversation.

        Args:
            text: The user's turn.
            on_text: Gets the answer piece by piece, where it is generated.

        Raises:
            DataError: If the chat template refuses the conversation.
        """
        first = [] if self.system is None else [("system", self.system)]
        turns = [*first, *self.turns, ("user", text)]
        row = self.model.kind.conversation_row(self.model.learner, turns)
        answer = self.model.answer(self.model.examples([row]), self.sampling, on_text=on_text)[0]
        reply = str(next(iter(answer.values()))).strip()
        self.turns += [("user", text), ("assistant", reply)]
        return reply

    def reset(self) -> None:
        """Forget all turns but the system's."""
        self.turns.clear()
