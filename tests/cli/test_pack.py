"""`rankfold pack` and `rankfold unpack` say what became of the bytes."""

import json

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from rankfold.cli.main import cli


@pytest.fixture
def adapter(tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    save_file({"x.lora_A.weight": torch.randn(4, 8)}, folder / "adapter_model.safetensors")
    (folder / "run.json").write_text("{}")
    return folder


def run(*words):
    return CliRunner().invoke(cli, [str(word) for word in words])


def test_packed_adapter_comes_back_and_both_commands_say_where_it_is(adapter, tmp_path):
    packed = run("pack", adapter, tmp_path / "file")
    assert packed.exit_code == 0
    assert "128 learned" in packed.stdout
    assert "not carried: run.json" in packed.stderr
    unpacked = run("unpack", tmp_path / "file", tmp_path / "again")
    assert (unpacked.exit_code, unpacked.stdout) == (0, "")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (adapter / name).read_bytes()


def test_rounding_is_said(adapter, tmp_path):
    result = run("pack", adapter, tmp_path / "file", "--dtype", "bf16", "--json")
    assert "rounded to bf16: relative error 0.00" in result.stderr
    data = json.loads(result.stdout)
    assert set(data) == {"file_bytes", "learned_bytes", "relative_error", "left_out", "certificate"}
    assert data["learned_bytes"] == 64


def test_wrong_use_is_one_line_with_its_exit_code(adapter, tmp_path):
    (tmp_path / "file").write_text("no container")
    for words, code in (
        (("pack", adapter, tmp_path / "file"), 2),
        (("pack", tmp_path / "absent", tmp_path / "new"), 2),
        (("unpack", tmp_path / "file", tmp_path / "again"), 2),
        (("unpack", tmp_path / "absent", tmp_path / "again"), 2),
    ):
        result = run(*words)
        assert (result.exit_code, len(result.stderr.splitlines()), result.stdout) == (code, 1, "")


def test_only_a_packed_file_is_replaced(adapter, tmp_path):
    for _ in range(2):
        assert run("pack", adapter, tmp_path / "file", "--overwrite").exit_code == 0
    weights = adapter / "adapter_model.safetensors"
    before = weights.read_bytes()
    refused = run("pack", adapter, weights, "--overwrite")
    assert (refused.exit_code, "is no packed file, so it is not replaced" in refused.stderr) == (2, True)
    assert weights.read_bytes() == before
