"""`rankfold size` adds up to the file, whoever wrote it, and opens nothing that could run."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save, save_file

from rankfold.cli.main import cli
from rankfold.errors import AdapterFileError
from rankfold.store.size import explain

CONFIG = {"peft_type": "LORA", "modules_to_save": ["classifier", "score"]}
LAYER = "base_model.model.bert.encoder.layer.{}.attention.self.query"


def tensors(layers=2, *, rank=4):
    draw = np.random.default_rng(0)
    found = {}
    for index in range(layers):
        found[f"{LAYER.format(index)}.lora_A.weight"] = draw.normal(size=(rank, 32)).astype(np.float32)
        found[f"{LAYER.format(index)}.lora_B.weight"] = np.zeros((32, rank), dtype=np.float32)
    found["base_model.model.classifier.weight"] = draw.normal(size=(2, 32)).astype(np.float16)
    found["base_model.model.classifier.bias"] = np.zeros(2, dtype=np.float16)
    return found


@pytest.fixture
def adapter(tmp_path):
    save_file(tensors(), tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "README.md").write_text("hello")
    return tmp_path


def parts(explanation):
    return {part.name: (part.type, part.tensors, part.numbers, part.bytes) for part in explanation.parts}


def test_every_byte_has_one_explanation(adapter):
    explanation = explain(adapter)
    assert sum(part.bytes for part in explanation.parts) == explanation.file_bytes
    assert explanation.file_bytes == (adapter / "adapter_model.safetensors").stat().st_size


def test_tensors_are_grouped_by_factor_and_the_head_is_apart(adapter):
    found = parts(explain(adapter))
    assert found["lora_A"] == ("factor", 2, 256, 1024)
    assert found["lora_B"] == ("factor", 2, 256, 1024)
    assert found["classifier"] == ("head", 2, 66, 132)


def test_factors_of_rankfold_are_named_by_role_and_part(tmp_path):
    names = ("rankfold_down.left", "rankfold_down.right", "rankfold_up.weight")
    found = {f"{LAYER.format(0)}.{name}": np.full(2, i, np.float32) for i, name in enumerate(names)}
    save_file(found, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "RANKFOLD"}')
    assert [part.name for part in explain(tmp_path).parts if part.type == "factor"] == [
        "down.left",
        "down.right",
        "up",
    ]


def test_learned_bytes_are_those_of_factors_and_head(adapter):
    assert explain(adapter).learned_bytes == sum(array.nbytes for array in tensors().values())


def test_other_files_of_the_directory_are_listed_at_any_depth(adapter):
    assert explain(adapter).other_files == {
        "adapter_config.json": (adapter / "adapter_config.json").stat().st_size,
        "notes/README.md": 5,
    }
    assert explain(adapter / "adapter_model.safetensors").other_files == {}


def test_tensor_that_is_stored_twice_is_named_and_not_counted_as_learned(adapter):
    found = tensors()
    found[f"{LAYER.format(1)}.lora_A.weight"] = found[f"{LAYER.format(0)}.lora_A.weight"].copy()
    save_file(found, adapter / "adapter_model.safetensors")
    explanation = explain(adapter)
    assert parts(explanation)["lora_A, again"] == ("duplicate", 1, 128, 512)
    assert explanation.learned_bytes == sum(array.nbytes for array in found.values()) - 512


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=6), st.integers(0, 9))
def test_parts_add_up_for_any_shapes_and_metadata(tmp_path_factory, shapes, length):
    path = tmp_path_factory.mktemp("any") / "any.safetensors"
    path.with_name("adapter_config.json").write_text(json.dumps(CONFIG))
    found = {f"layer.{i}.factor": np.full(shape, i, dtype=np.float32) for i, shape in enumerate(shapes)}
    path.write_bytes(save(found, metadata={"note": "é" * length}))
    explanation = explain(path)
    assert sum(part.bytes for part in explanation.parts) == path.stat().st_size


@pytest.mark.parametrize("keep", [0, 3, 8, 100, -1])
def test_file_that_is_cut_off_is_refused(adapter, keep):
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(AdapterFileError, match="damaged"):
        explain(adapter)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data + b"x",
        lambda data: b"\xff" * 8 + data[8:],
        lambda data: data.replace(b"lora_A", b'lora"A'),
        lambda data: data.replace(b'"F32"', b'"F99"'),
        lambda data: data.replace(b"[4,32]", b"[4,33]"),
    ],
    ids=["longer", "endless header", "broken header", "unknown type", "wrong shape"],
)
def test_file_that_was_tampered_with_is_refused(adapter, change):
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(AdapterFileError):
        explain(adapter)


def test_pickle_is_refused_unopened(tmp_path):
    (tmp_path / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'touch /tmp/never'\ntR.")
    for path in (tmp_path, tmp_path / "adapter_model.bin"):
        with pytest.raises(AdapterFileError, match="pickle"):
            explain(path)


def test_folder_without_weights_or_configuration_is_refused(adapter, tmp_path):
    with pytest.raises(AdapterFileError, match="there is no folder or file"):
        explain(tmp_path / "absent")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (adapter / name).unlink()
        with pytest.raises(AdapterFileError, match=name):
            explain(adapter)


def test_damaged_config_is_refused(adapter):
    (adapter / "adapter_config.json").write_text("{")
    with pytest.raises(AdapterFileError, match="adapter_config"):
        explain(adapter)


def test_command_prints_the_same_numbers_as_table_and_as_json(adapter):
    table = CliRunner().invoke(cli, ["size", str(adapter)])
    data = json.loads(CliRunner().invoke(cli, ["size", str(adapter), "--json"]).stdout)
    assert set(data) == {
        "file",
        "file_bytes",
        "method",
        "bytes_by_type",
        "learned_bytes",
        "parts",
        "other_files",
        "certificate",
        "bases",
    }
    assert all(f"{part['bytes']:,}" in table.stdout for part in data["parts"])
    assert all(f"{type_} {size:,}" in table.stdout for type_, size in data["bytes_by_type"].items())
    assert sum(data["bytes_by_type"].values()) == data["file_bytes"]
    assert f"{data['file_bytes']:,}" in table.stdout


@pytest.mark.parametrize("name", ["adapter_model.bin", "absent"])
def test_command_fails_with_one_line(tmp_path, name):
    (tmp_path / "adapter_model.bin").touch()
    result = CliRunner().invoke(cli, ["size", str(tmp_path / name)])
    assert (result.exit_code, len(result.stderr.splitlines()), result.stdout) == (2, 1, "")


def run(*words):
    return CliRunner().invoke(cli, ["size", *map(str, words)])


@pytest.fixture
def twice(adapter):
    """An adapter with a tensor that is there twice."""
    found = tensors()
    found[f"{LAYER.format(1)}.lora_A.weight"] = found[f"{LAYER.format(0)}.lora_A.weight"].copy()
    save_file(found, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    return adapter


def test_every_tensor_is_shown_when_asked_for(twice):
    data = json.loads(run(twice, "--by-tensor", "--json").stdout)
    assert {part["name"] for part in data["tensors"]} > set(tensors())
    assert sum(part["bytes"] for part in data["tensors"]) == data["file_bytes"]
    assert f"{LAYER.format(0)}.lora_A" in run(twice, "--by-tensor").stdout


def test_copies_are_counted_with_the_command_that_stores_them_once(twice):
    assert f"512 bytes are copies; to store each tensor once: rankfold pack {twice} FILE" in run(twice).stderr
