"""The base models have the sizes that the papers' shares refer to."""

import pytest

from rankfold.models.architectures import architecture_names
from tests.specs.facts.models import HUB_IDS, total

TOTALS = {
    "roberta-base": 124_647_170,
    "roberta-large": 355_361_794,
    "roberta-large-mnli": 355_362_819,
    "deberta-base": 139_193_858,
    "deberta-v3-base": 184_423_682,
    "opt-125m": 125_240_832,
    "llama3-8b": 8_030_261_248,
    "llava-1.5-7b": 7_063_427_072,
    "sd-1.5": 859_520_964,  # the denoiser
}


@pytest.mark.parametrize("name", TOTALS)
def test_base_model_has_the_size_of_the_published_one(name):
    assert total(name) == TOTALS[name]


def test_structures_of_all_published_models_come_along():
    assert set(HUB_IDS) == set(TOTALS)
    assert sorted(HUB_IDS.values()) == list(architecture_names())
