"""A SmolLM2 of fewer layers: the commands of the pages are the same, and take a third of the time."""

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from rankfold.models.base import resolve_model

LAYERS = 4


@pytest.fixture(scope="session")
def shallow_cache(tmp_path_factory):
    """A cache in which `smollm2` has been converted, with its own words and template and its first layers."""
    whole = resolve_model("smollm2").loadable()
    cache = tmp_path_factory.mktemp("shallow")
    folder = cache / "models" / Path(whole).name
    AutoModelForCausalLM.from_pretrained(whole, num_hidden_layers=LAYERS).save_pretrained(folder)
    AutoTokenizer.from_pretrained(whole).save_pretrained(folder)
    return cache


@pytest.fixture
def shallow_smollm2(shallow_cache, monkeypatch):
    """Let `smollm2` have few layers."""
    monkeypatch.setenv("RANKFOLD_CACHE", str(shallow_cache))
