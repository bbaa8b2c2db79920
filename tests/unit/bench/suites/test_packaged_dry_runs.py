"""What a packaged suite would take can be said of every row, without weights and without data."""

import json

import pytest

from rankfold.bench.estimates import Estimator
from rankfold.bench.suites.protocol import all_requests
from rankfold.errors import SpecError
from rankfold.models import meta
from tests.support.packaged import PROFILES, packaged

ENOUGH_LAYERS = 4
WHERE = ("target_modules", "layers_to_transform", "layers_pattern")


@pytest.fixture
def shallow_architectures(monkeypatch):
    """Leave most layers out: they take long and say nothing that the first ones do not."""
    read = meta.read_architecture

    def described(name):
        config = read(name)
        config.get_text_config().num_hidden_layers = ENOUGH_LAYERS
        return config

    monkeypatch.setattr(meta, "read_architecture", described)


@pytest.fixture(scope="module")
def followed():
    """Models and compositions that were followed for another suite or profile already."""
    return set()


def kinds_of_runs(name, profile, folder, followed):
    """Yield a run for every model, and for all compositions that differ in more than numbers and layers.

    Runs that differ only in numbers and layers are built and followed alike.
    """
    for request in all_requests(packaged(name, profile), folder):
        own = {key: value for key, value in request.options.items() if key not in WHERE}
        values = [request.method, without_numbers(own), without_numbers(request.reducer or {})]
        parts = {(name == "per-byte", part) for part in (request.model, json.dumps(values, sort_keys=True))}
        if parts - followed:
            followed |= parts
            yield request


def without_numbers(options):
    return {key: value if isinstance(value, str) else None for key, value in options.items()}


@pytest.mark.filterwarnings(
    "ignore:Specified to not save vera_A", "ignore:this processor has no instructions"
)
@pytest.mark.parametrize(("name", "profile"), PROFILES)
def test_every_kind_of_run_can_be_followed_without_weights(name, profile, request, followed, tmp_path):
    if name != "per-byte":  # whose rows name their layers
        request.getfixturevalue("shallow_architectures")
    estimator = Estimator()
    for asked in kinds_of_runs(name, profile, tmp_path, followed):
        rows = 100 if asked.data else None
        if asked.method == "peft:unilora":
            with pytest.raises(SpecError, match="cannot be built without weights"):
                estimator.estimate(asked, rows=rows)
        else:
            assert estimator.estimate(asked, rows=rows).step_flops > 0
