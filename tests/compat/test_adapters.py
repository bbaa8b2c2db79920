"""Adapters that 0.1.0 saved, packed, stored and exported load, and give the outputs that they gave."""

import copy
import gzip
import json

import pytest
import torch
from click.testing import CliRunner
from peft import PeftModel
from safetensors.torch import load_file

import rankfold
from rankfold.cli.main import cli
from tests.compat.corpus import CORPUS, INPUT_IDS, open_base, outputs_of, read_cases

pytestmark = pytest.mark.filterwarnings("ignore::rankfold.RankfoldWarning")

CASES = read_cases()
TOLERANCE = {"atol": 2e-6, "rtol": 1e-5}
FILES = ("adapter_config.json", "adapter_model.safetensors")
# Rounding to a type moves a number by at most this share of it.
ROUNDING = {"bf16": 2**-8, "fp16": 2**-11}


@pytest.fixture(autouse=True)
def in_corpus(monkeypatch):
    """The names of base models in the files are paths in the corpus."""
    monkeypatch.chdir(CORPUS)


@pytest.fixture(scope="module")
def bases():
    """The base models by name."""
    return {name: open_base(name) for name in ("llama", "bert", "toy")}


@pytest.fixture(scope="module")
def expected():
    """What 0.1.0 computed, by the name of the adapter."""
    outputs = load_file(CORPUS / "outputs.safetensors")
    assert torch.equal(outputs["input_ids"], INPUT_IDS)
    return outputs


@pytest.fixture(scope="module")
def store_file(tmp_path_factory):
    """The store: opened, it has files beside it, so it is a copy."""
    file = tmp_path_factory.mktemp("store") / "store.db"
    file.write_bytes(gzip.decompress((CORPUS / "store.db.gz").read_bytes()))
    return file


def assert_same_files(folder, name):
    for file in FILES:
        assert (folder / file).read_bytes() == (CORPUS / "adapters" / name / file).read_bytes()


NEWER = {"basis_core"}
"""The presets that 0.1.0 did not have."""


def test_every_preset_is_in_the_corpus():
    assert set(rankfold.presets.discover()) - NEWER <= set(CASES)


@pytest.mark.parametrize("base", ["llama", "toy"])
def test_base_model_is_the_one_that_was_adapted(base, bases, expected):
    torch.testing.assert_close(outputs_of(bases[base]), expected[base], **TOLERANCE)


@pytest.mark.parametrize("name", CASES)
def test_adapter_gives_the_outputs_that_it_gave_and_is_saved_again(name, bases, expected, tmp_path):
    folder = CORPUS / "adapters" / name
    model = PeftModel.from_pretrained(copy.deepcopy(bases[CASES[name]]), folder)
    torch.testing.assert_close(outputs_of(model), expected[name], **TOLERANCE)
    model.save_pretrained(tmp_path)
    before, after = (load_file(path / FILES[1]) for path in (folder, tmp_path))
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        assert torch.equal(after[key], tensor)


@pytest.mark.parametrize("name", CASES)
def test_packed_file_unpacks_to_the_same_files(name, tmp_path):
    rankfold.unpack_adapter(CORPUS / "packed" / f"{name}.rankfold", tmp_path / "adapter")
    assert_same_files(tmp_path / "adapter", name)


@pytest.mark.parametrize("name", CASES)
def test_packing_writes_the_same_bytes(name, tmp_path):
    rankfold.pack_adapter(CORPUS / "adapters" / name, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == (CORPUS / "packed" / f"{name}.rankfold").read_bytes()


@pytest.mark.parametrize("dtype", ROUNDING)
def test_rounding_writes_the_same_bytes(dtype, tmp_path):
    rankfold.pack_adapter(CORPUS / "adapters" / "lora", tmp_path / "file", dtype=dtype)
    assert (tmp_path / "file").read_bytes() == (CORPUS / "packed" / f"lora-{dtype}.rankfold").read_bytes()


@pytest.mark.parametrize("dtype", ROUNDING)
def test_rounded_file_unpacks_to_numbers_that_are_near(dtype, tmp_path):
    rankfold.unpack_adapter(CORPUS / "packed" / f"lora-{dtype}.rankfold", tmp_path / "adapter")
    exact = load_file(CORPUS / "adapters" / "lora" / FILES[1])
    rounded = load_file(tmp_path / "adapter" / FILES[1])
    assert rounded.keys() == exact.keys()
    for key, tensor in exact.items():
        assert rounded[key].element_size() == 2
        torch.testing.assert_close(rounded[key].float(), tensor, atol=1e-6, rtol=ROUNDING[dtype])


@pytest.mark.parametrize("form", ["adapters/{}", "packed/{}.rankfold"])
def test_size_explains_every_byte(form):
    for name in ("lora", "tlora", "mix_lora", "peft-lora"):
        path = CORPUS / form.format(name)
        result = CliRunner().invoke(cli, ["size", str(path), "--json"])
        assert result.exit_code == 0, result.stderr
        file = path / FILES[1] if path.is_dir() else path
        assert json.loads(result.stdout)["file_bytes"] == file.stat().st_size


def test_store_holds_every_adapter_as_it_was_put(store_file, tmp_path):
    with rankfold.AdapterStore(store_file, "read") as store:
        assert not list(store.verify())
        assert len(store) == len(CASES)
        for name in CASES:
            store.get(f"team/{name}").write(tmp_path / name)
            assert_same_files(tmp_path / name, name)


def test_store_says_of_every_adapter_what_it_said(store_file):
    records = json.loads((CORPUS / "store.json").read_text("utf-8"))
    with rankfold.AdapterStore(store_file, "read") as store:
        assert [record.to_dict() for record in store.list()] == records
        for query in ({"tags": {"base": "toy"}}, {"method": "tlora"}, {"where": ["accuracy>=0.3"]}):
            found = [record.name for record in store.list(**query)]
            assert found == [record["name"] for record in records if _matches(record, query)]
            assert 0 < len(found) < len(records)


def _matches(record, query):
    return (
        query.get("tags", {}).items() <= record["tags"].items()
        and query.get("method", record["method"]) == record["method"]
        and ("where" not in query or record["metrics"]["accuracy"] >= 0.3)
    )


def test_stored_adapters_load_into_one_model(store_file, bases, expected):
    names = [name for name in rankfold.presets.discover() if name not in NEWER]
    with rankfold.AdapterStore(store_file, "read") as store:
        model = store.load_into(copy.deepcopy(bases["llama"]), {f"team/{name}": name for name in names})
    for name in names:
        model.set_adapter(name)
        torch.testing.assert_close(outputs_of(model), expected[name], **TOLERANCE)


def test_store_can_be_changed(store_file, tmp_path):
    changed = tmp_path / "store.db"
    changed.write_bytes(store_file.read_bytes())
    with rankfold.AdapterStore(changed, "write") as store:
        store.put("new", CORPUS / "adapters" / "lora", tags={"base": "llama"}, metrics={"accuracy": 1.0})
        store.delete("team/tlora")
        store.gc()
        assert not list(store.verify())
        assert len(store) == len(CASES)
        store.get("new").write(tmp_path / "new")
    assert_same_files(tmp_path / "new", "lora")


def test_export_of_a_store_is_imported(tmp_path):
    records = json.loads((CORPUS / "store.json").read_text("utf-8"))
    names = [record["name"] for record in records if record["tags"]["turn"] == "0"]
    with rankfold.AdapterStore(tmp_path / "store.db") as store:
        assert store.import_(str(CORPUS / "store.stream")) == len(names)
        assert [record.name for record in store.list()] == names
        for name in names:
            store.get(name).write(tmp_path / name)
            assert_same_files(tmp_path / name, name.removeprefix("team/"))
