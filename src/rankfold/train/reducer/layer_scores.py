"""What a Reducer knows of a model's layers, and how that is kept in a checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self, final

from rankfold.errors import SpecError
from rankfold.train.reducer.importance import Importance, Layers


@final
@dataclass(frozen=True, slots=True)
class ScorePoint:
    """What was known at a step.

    Args:
        step: Updates done.
        importance: Of each layer; higher trains more often.
        trained: In how many of these updates each layer took part.
    """

    step: int
    importance: Importance
    trained: tuple[int, ...]


@final
@dataclass(slots=True)
class LayerScores:
    """What is known of the layers now, and what was known before.

    Args:
        layers: Their names, from the input to the output.
        step: Updates begun.
        importance: Of each layer; higher trains more often, 0 means that nothing is known.
        trained: In how many updates each layer took part.
        active: The layers that train now, by index; none before the first update.
        history: Earlier scores, once every `interval` steps.
    """

    layers: tuple[str, ...] = ()
    step: int = 0
    importance: Importance = ()
    trained: tuple[int, ...] = ()
    active: Layers = ()
    history: list[ScorePoint] = field(default_factory=list[ScorePoint])

    @classmethod
    def unknown(cls, layers: tuple[str, ...]) -> Self:
        """Return the scores of layers of which nothing is known."""
        return cls(layers, importance=(0.0,) * len(layers), trained=(0,) * len(layers))

    def remember(self) -> None:
        """Add what is known now to the history."""
        self.history.append(ScorePoint(self.step, self.importance, self.trained))

    def count_step(self) -> None:
        """Count an update of the active layers."""
        self.step += 1
        self.trained = tuple(count + (layer in self.active) for layer, count in enumerate(self.trained))

    def to_dict(self) -> dict[str, Any]:
        """Return the scores as JSON values, exactly."""
        return {
            "layers": list(self.layers),
            "step": self.step,
            "importance": list(self.importance),
            "trained": list(self.trained),
            "active": list(self.active),
            "history": [[point.step, list(point.importance), list(point.trained)] for point in self.history],
        }

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> Self:
        """Return the scores that `to_dict` gave."""
        return cls(
            tuple(saved["layers"]),
            saved["step"],
            tuple(saved["importance"]),
            tuple(saved["trained"]),
            tuple(saved["active"]),
            [ScorePoint(step, tuple(values), tuple(counts)) for step, values, counts in saved["history"]],
        )


def check_state(saved: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    """Check that a Reducer can go on from a saved state.

    Args:
        saved: The state.
        mine: What this Reducer would save now.

    Raises:
        SpecError: If the state is incomplete, or of other layers or other options.
    """
    odd = sorted((saved.keys() ^ mine.keys()) | (saved.get("scores", {}).keys() ^ mine["scores"].keys()))
    if odd:
        raise SpecError(f"the Reducer's state is damaged (see '{odd[0]}'); begin anew.")
    before, now = saved["scores"]["layers"], mine["scores"]["layers"]
    if before != now:
        raise SpecError(
            f"the Reducer's state is of {len(before)} layers ({_ends(before)}), but the model has {len(now)} "
            f"({_ends(now)}); use the same model and targets, or begin anew."
        )
    for name, value in mine["options"].items():
        if (old := saved["options"].get(name)) != value:
            raise SpecError(
                f"the Reducer's state was made with {name}={old}, but this Reducer has {name}={value}; "
                "go on with the same options, or begin anew."
            )


def _ends(layers: list[str]) -> str:
    return f"'{layers[0]}' to '{layers[-1]}'"
