"""The rows of the suite `per-byte` learn as many numbers as a budget lets them, and no more."""

import pytest

from rankfold.bench.estimates import count_on_meta
from rankfold.bench.suites.suite_file import read_suite
from rankfold.presets import discover
from rankfold.runs.methods import HEAD_ONLY

FLOAT32, INT4 = 1024 * 8 / 32, 1024 * 8 / 4.5  # numbers a KiB
BUDGETS = {
    "cpu": [kib * numbers for kib in (3, 12, 48) for numbers in (FLOAT32, INT4)],
    "wide": [kib * FLOAT32 for kib in (3, 12, 48, 192)],
    "paper": [kib * FLOAT32 for kib in (48, 192)],
}
CEILING = 337_920


@pytest.fixture(scope="module", params=BUDGETS)
def profile(request):
    return request.param


def learned(methods, model):
    """Return the numbers that every method learns, without weights where that can be."""
    for method in methods:
        if "theta_d_length" in method.options:  # UniLoRA, which cannot be built without weights
            yield method.options["theta_d_length"]
        else:
            counted = count_on_meta(model, method.name, method.options, kind="regression", num_labels=1)
            yield counted.trainable


@pytest.mark.filterwarnings("ignore:Specified to not save vera_A")
def test_every_row_uses_a_budget_and_no_more(profile):
    suite = read_suite("per-byte", profile)
    budgets = BUDGETS[profile]
    methods = [method for method in suite.methods if method.name != HEAD_ONLY.name]
    used = []
    for method, numbers in zip(methods, learned(methods, suite.base["model"]), strict=True):
        if numbers == CEILING:  # LoRA on all layers, which the others are held against
            continue
        budget = min((each for each in budgets if numbers <= each), default=0)
        assert numbers > 0.6 * budget > 0, f"{method.name} {method.options}: {numbers}"
        used.append(budget)
    assert set(used) == set(budgets)


def test_every_preset_is_there():
    names = {method.name for method in read_suite("per-byte", "wide").methods}
    assert set(discover()) - {"basis_core"} <= names, "a basis is no part of the package"
    assert {f"peft:{name}" for name in ("unilora", "vera", "lokr", "tinylora", "miss", "loha")} <= names
