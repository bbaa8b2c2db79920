"""`rankfold export`: writes what was asked for, states its worth, and finds what changed."""

import json
import os
import signal

import pytest
from click.testing import CliRunner

from rankfold.cli.main import cli
from tests.support.adapters import edit_json, save_adapter

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def _call(*words):
    return CliRunner().invoke(cli, ["export", *(str(word) for word in words)])


@pytest.fixture
def adapter(tiny_bert, tmp_path):
    return save_adapter(tmp_path / "adapter", tiny_bert)


def test_export_prints_its_certificate(adapter, reviews, tmp_path):
    result = _call(adapter, tmp_path / "out", "--data", reviews, "--dtype", "bf16")
    assert result.exit_code == 0, result.stderr
    for words in ("exact up to rounding", "error fp32", "error bf16", "largest difference", "sha256 of"):
        assert words in result.stdout


def test_export_as_json_is_the_certificate(adapter, reviews, tmp_path):
    result = _call(adapter, "--to", "lora", tmp_path / "out", "--data", reviews, "--json")
    assert json.loads(result.stdout) == json.loads((tmp_path / "out" / "certificate.json").read_text())


def test_compressed_adapter_is_called_approximate(adapter, reviews, tmp_path):
    result = _call(adapter, tmp_path / "out", "--compress-rank", 1, "--data", reviews)
    assert result.exit_code == 0, result.stderr
    assert "compressed, APPROXIMATE" in result.stdout


def test_verify_has_exit_code_0_until_something_changes(adapter, reviews, tmp_path):
    out = tmp_path / "out"
    assert _call(adapter, out, "--data", reviews).exit_code == 0
    fine = _call("--verify", out, "--data", reviews)
    assert fine.exit_code == 0, fine.stdout
    assert "differs" not in fine.stdout
    (out / "adapter_config.json").write_text("{}")
    found = _call("--verify", out, "--data", reviews)
    assert found.exit_code == 1
    assert "'adapter_config.json' is changed" in found.stdout
    assert "differs from its certificate; export the adapter again" in found.stderr
    assert json.loads(_call("--verify", out, "--json").stdout)[0]["state"] == "differs"


def test_router_is_refused_with_exit_code_1(tiny_bert, tmp_path):
    adapter = save_adapter(tmp_path / "adapter", tiny_bert, "hydra_lora")
    result = _call(adapter, tmp_path / "out")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "its router weighs 2 heads" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ((), "an export takes two names, ADAPTER and OUT, but there are 0"),
        (("adapter",), "but there are 1"),
        (("--verify",), "--verify takes the folder of one export"),
        (("adapter", "out", "--to", "gguff"), "Did you mean 'gguf'"),
        (("adapter", "out", "--dtype", "int8"), "unknown dtype 'int8'"),
        (("adapter", "out", "--compress-rank", "0"), "leaves nothing"),
        (("adapter", "out", "--compress-rank", "2", "--compress-error", "0.1"), "exactly one of them"),
        (("adapter", "out", "--to", "merged", "--compress-rank", "2"), "has no rank to compress to"),
        (("adapter", "out", "--overwrite", "--model", "nowhere"), "there is no model"),
    ],
    ids=str,
)
def test_wrong_words_have_exit_code_2(adapter, monkeypatch, words, fault):
    monkeypatch.chdir(adapter.parent)
    result = _call(*words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert fault in result.stderr


@pytest.mark.parametrize(
    ("name", "fault"), [("nowhere", "there is no folder"), ("empty", "has no adapter_config.json")]
)
def test_folder_without_an_adapter_has_exit_code_2(tmp_path, name, fault):
    (tmp_path / "empty").mkdir()
    result = _call(tmp_path / name, tmp_path / "out")
    assert (result.exit_code, result.stdout) == (2, "")
    assert fault in result.stderr


def test_verify_refuses_what_says_how_to_write(tmp_path):
    result = _call("--verify", tmp_path, "--to", "gguf", "--compress-rank", 3, "--overwrite")
    assert result.exit_code == 2
    assert "--to and --compress-rank and --overwrite say what to write" in result.stderr


def test_export_fills_the_folder_in_which_the_shell_is(adapter, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    for _ in range(2):
        result = _call(adapter, ".", "--overwrite")
        assert result.exit_code == 0, result.stderr
        assert (tmp_path / "empty" / "certificate.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "empty"]


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_terminated_export_leaves_nothing(adapter, tmp_path, monkeypatch):
    def end(*_):
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("rankfold.export.export.file_hashes", end)
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)  # libraries of other tests have their own
    try:
        assert _call(adapter, tmp_path / "out").exit_code == 128 + signal.SIGTERM
        assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def test_base_model_that_is_no_name_is_said(adapter, tmp_path):
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=5)
    result = _call(adapter, tmp_path / "out")
    assert result.exit_code == 2
    assert "base_model_name_or_path=5 cannot be read; give a name as a text" in result.stderr
