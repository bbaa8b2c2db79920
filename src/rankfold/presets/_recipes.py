"""Recipes: the learning rates and layers that methods are trained with where none are given.

Everything that recommends a rate reads this table: `rankfold train`, `lr`, `fit`, `compare`, `methods` and
the documentation. The rates are for AdamW with gradients clipped at norm 1, 6 % warm-up and linear decay.
Options of a method, such as which factor starts at zero, have their recommended values as defaults in its
preset.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

ALL_LINEAR = "all-linear"
_FAR = 4.0
"""How many times above or below the range that learned a rate is doubted."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Recommended values of one method.

    Args:
        learning_rate: Of everything that is trained.
        targets: `target_modules` in a training that names no layers; None leaves them to the preset, or to
            PEFT.
        rate_range: The lowest and the highest of the tried rates that were seen to learn; None if no others
            were tried.
        record: The file under `benchmarks/records` that the values rest on; None if there is none yet.
    """

    learning_rate: float
    targets: str | None = None
    rate_range: tuple[float, float] | None = None
    record: str | None = None

    @property
    def head_learning_rate(self) -> float:
        """The rate of a new head: the same, since others were no better."""
        return self.learning_rate

    def describe(self) -> str:
        """Return the values in a few words, with the record that they rest on."""
        learning_range = (
            "" if self.rate_range is None else "; it learned from {:g} to {:g}".format(*self.rate_range)
        )
        layers = self.targets or "those of PEFT for the model"
        return (
            f"learning rate {self.learning_rate:g}{learning_range} (record: {self.record or 'none yet'}); "
            f"target_modules: {layers}"
        )

    def doubt(self, method: str, learning_rate: float) -> str | None:
        """Return a sentence about a rate that is far outside the range that was seen to learn, or None.

        Args:
            method: The method's name.
            learning_rate: The rate that is asked for, with AdamW.
        """
        low, high = self.rate_range or (self.learning_rate / _FAR, self.learning_rate * _FAR)
        if low / _FAR <= learning_rate <= high * _FAR:
            return None
        place = "the recommended one" if self.rate_range is None else f"{low:g} to {high:g}, where it learned"
        return (
            f"learning_rate={learning_rate:g} of method '{method}' is far from {place} "
            f"(record: {self.record or 'none yet'}); leave it out for {self.learning_rate:g}."
        )


_RECIPES_RECORD = "recipes.jsonl"
_EFFILORA_RECORD = "effilora-commonsense/records.jsonl.gz"
_TLORA_RECORD = "tlora-glue/records.jsonl.gz"


def _recipe(
    learning_rate: float,
    targets: str | None = None,
    rate_range: tuple[float, float] | None = None,
    record: str | None = None,
) -> Recipe:
    return Recipe(learning_rate=learning_rate, targets=targets, rate_range=rate_range, record=record)


RECIPES: Mapping[str, Recipe] = {
    # Directions have length one, so an update's size is alpha / r * r times the rate, whatever r is.
    "basis_core": _recipe(1e-2, ALL_LINEAR),
    "effilora": _recipe(1e-3, None, (3e-4, 3e-3), _EFFILORA_RECORD),
    "graph_moe": _recipe(1e-3),
    "hydra_lora": _recipe(1e-3),
    "lora": _recipe(1e-3, None, (3e-4, 3e-3), _EFFILORA_RECORD),
    "lora_fa": _recipe(2e-3, None, (3e-4, 1e-2), _EFFILORA_RECORD),
    "lora_moe": _recipe(1e-3, "mlp"),
    "mix_lora": _recipe(1e-3, ALL_LINEAR),
    "mola": _recipe(1e-3),
    "mole": _recipe(1e-3, ALL_LINEAR),
    "nora": _recipe(2e-3, ALL_LINEAR),
    "relayed_lora": _recipe(3e-3, ALL_LINEAR, (1e-3, 8e-3), _RECIPES_RECORD),
    "share_lora": _recipe(1e-3, None, (3e-4, 1e-3), _EFFILORA_RECORD),
    "tlora": _recipe(1e-2, ALL_LINEAR, (5e-3, 2e-2), _RECIPES_RECORD),
    "tlora_plus": _recipe(3e-3, None, (3e-4, 4.6e-3), _TLORA_RECORD),
    "head_only": _recipe(1e-2, None, (1e-3, 3e-2), _TLORA_RECORD),
    # All weights move at once, so each of them moves less.
    "full": _recipe(1e-4, ALL_LINEAR),
    "peft:lokr": _recipe(5e-3),
    "peft:lora": _recipe(1e-3, None, (3e-4, 3e-3), _EFFILORA_RECORD),
    "peft:unilora": _recipe(1e-2),
    "peft:vera": _recipe(2e-2),
}
"""By name: every preset, the baselines, and methods of PEFT; others have `OTHER_RECIPE`."""

OTHER_RECIPE = _recipe(1e-3)

_SMALL_RANK = 18
"""The smaller the core, the larger its rate: 4e-2 still learns at rank 18, and not at rank 32."""


def _is_small(rank: object) -> bool:
    return isinstance(rank, int) and rank <= _SMALL_RANK


def _starts_below(values: Mapping[str, Any]) -> bool:
    """Return whether the down factor of `relayed_lora` starts at zero."""
    return (values.get("zero") or ("down" if values.get("reading") == "paper" else "up")) == "down"


_CASES: tuple[tuple[str, Callable[[Mapping[str, Any]], bool], Recipe], ...] = (
    (
        "tlora",
        lambda values: _is_small(values.get("r")),
        _recipe(2e-2, ALL_LINEAR, (3e-3, 3e-2), _TLORA_RECORD),
    ),
    # Its steps are three times as large (`benchmarks/relayed_start.py`).
    ("relayed_lora", _starts_below, _recipe(1e-3, ALL_LINEAR)),
    ("tlora_plus", lambda values: values.get("train") == "core", _recipe(1e-2, ALL_LINEAR)),
)
"""Recipes of methods with certain options, which go before those by name."""


def find_recipe(method: str, values: Mapping[str, Any]) -> Recipe | None:
    """Return the recipe of a method, or None if it is not listed.

    Args:
        method: The method's name.
        values: Its options.
    """
    for name, applies, recipe in _CASES:
        if name == method and applies(values):
            return recipe
    return RECIPES.get(method)
