"""What follows from a seed is the same on other processors, or is refused there; nothing is believed."""

import os
import subprocess
import sys

import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import rankfold
from rankfold.errors import AdapterFileError
from rankfold.store import container
from rankfold.store.container import Container
from rankfold.store.finders import FINDERS
from rankfold.store.size import explain
from tests.support.peft_methods import CONFIG, METHODS, WEIGHTS, files, save_peft

SEEDED = [method for method in METHODS if method.partition("_")[0].upper() in FINDERS]
EXPAND = "import sys, rankfold; rankfold.expand_adapter(sys.argv[1], sys.argv[2])"
SHRINK = "import sys, rankfold; rankfold.shrink_adapter(sys.argv[1], sys.argv[2])"


def elsewhere(program, *paths, instructions="default"):
    """Run a program as on a processor that has these instructions and no newer ones."""
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": instructions}
    words = [sys.executable, "-c", program, *map(str, paths)]
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The adapters with something that follows from a seed."""
    folder = tmp_path_factory.mktemp("seeded")
    return {method: save_peft(folder / method, METHODS[method]()) for method in SEEDED}


def test_every_finder_has_a_method_here():
    assert {method.partition("_")[0].upper() for method in SEEDED} == set(FINDERS)


@pytest.mark.parametrize(
    ("method", "instructions"),
    [("vera", "default"), ("randlora", "default"), ("unilora", "default"), ("vera", "avx2")],
)
def test_file_expands_on_a_processor_with_other_instructions(saved, method, instructions, tmp_path):
    rankfold.shrink_adapter(saved[method], tmp_path / "shrunk")
    result = elsewhere(EXPAND, tmp_path / "shrunk", tmp_path / "again", instructions=instructions)
    assert result.returncode == 0, result.stderr
    assert files(tmp_path / "again") == files(saved[method])


def test_seed_is_found_though_the_adapter_is_from_a_processor_with_other_instructions(saved, tmp_path):
    assert elsewhere(SHRINK, saved["vera"], tmp_path / "shrunk").returncode == 0
    there = container.read(tmp_path / "shrunk").header
    rankfold.shrink_adapter(saved["vera"], tmp_path / "here")
    here = container.read(tmp_path / "here").header
    assert there["proofs"] == here["proofs"]
    assert len(there["proofs"]) == 2


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="has no other instructions")
def test_what_only_a_like_processor_draws_is_refused_on_another_and_nothing_is_written(tmp_path):
    # Some thousand draws, so that some of them differ.
    folder = save_peft(tmp_path / "tiny", peft.TinyLoraConfig(r=4, u=64, target_modules=["query", "value"]))
    rankfold.shrink_adapter(folder, tmp_path / "shrunk", regenerate=True)
    result = elsewhere(EXPAND, tmp_path / "shrunk", tmp_path / "again")
    assert result.returncode == 1
    assert "makes other numbers" in result.stderr
    assert not (tmp_path / "again").exists()
    rankfold.shrink_adapter(folder, tmp_path / "portable")
    assert elsewhere(EXPAND, tmp_path / "portable", tmp_path / "kept").returncode == 0


def test_what_only_a_like_processor_draws_is_hinted_at(saved):
    explanation = explain(saved["tinylora"])
    (part,) = (part for part in explanation.parts if part.kind == "regenerable")
    assert explanation.shrinkable_bytes == 0
    assert any(f"{part.bytes:,}" in hint and "--regenerate" in hint for hint in explanation.hints)


@pytest.mark.parametrize("method", SEEDED)
def test_file_whose_seed_was_changed_says_which_versions_made_it(saved, method, tmp_path):
    rankfold.shrink_adapter(saved[method], tmp_path / "shrunk", regenerate=True)
    content = container.read(tmp_path / "shrunk")
    recipe = content.header["proofs"][0]["recipe"]
    if "seeds" in recipe:
        recipe["seeds"][0] += 1
    else:
        recipe["seed"] += 1
    content.header["versions"]["torch"] = "0.1"
    container.write(tmp_path / "other", Container(content.kind, content.header, {}, content.blobs))
    with pytest.raises(AdapterFileError, match=r"makes other numbers .*, torch 0\.1\)"):
        rankfold.expand_adapter(tmp_path / "other", tmp_path / "again")
    assert not (tmp_path / "again").exists()


@given(st.data())
def test_any_changed_bit_comes_back(saved, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("changed")
    method = data.draw(st.sampled_from(SEEDED))
    (folder / CONFIG).write_bytes((saved[method] / CONFIG).read_bytes())
    weights = bytearray((saved[method] / WEIGHTS).read_bytes())
    begin = 8 + int.from_bytes(weights[:8], "little")
    weights[data.draw(st.integers(begin, len(weights) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (folder / WEIGHTS).write_bytes(weights)
    rankfold.shrink_adapter(folder, folder / "shrunk", regenerate=True)
    rankfold.expand_adapter(folder / "shrunk", folder / "again")
    assert (folder / "again" / WEIGHTS).read_bytes() == weights
