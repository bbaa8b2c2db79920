"""A law: a check that runs over all presets, one of them on a learned basis too, and drawn compositions."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings

import rankfold
from rankfold.presets import discover
from tests.support.toys import compositions, preset_configs, toy_sizes_allowed

CASES = (*discover(), "learned_basis", "compositions")


def law(
    check: Callable[[rankfold.RankfoldConfig], None], *, init_weights: bool = True, examples: int = 25
) -> Callable[[str], None]:
    """Return a test that holds `check` against every preset and against drawn compositions."""

    @pytest.mark.parametrize("case", CASES)
    def test(case: str) -> None:
        if case != "compositions":
            with toy_sizes_allowed():
                check(preset_configs(init_weights=init_weights)[case])
            return

        @settings(max_examples=examples)
        @given(compositions())
        def holds(fields: dict[str, Any]) -> None:
            with toy_sizes_allowed():
                check(rankfold.RankfoldConfig(**fields, init_weights=init_weights))

        holds()

    test.__doc__ = check.__doc__
    return test
