"""Code that comes with a model never runs, whatever stands on standard input, unless an option says so."""

import json

import pytest
from click.testing import CliRunner

from rankfold.cli.main import cli
from rankfold.runs.record import RunRecord
from tests.support.killing import call, start
from tests.support.tiny_models import review_rows, write_bert, write_splits

_CODE = """
from pathlib import Path
Path({mark!r}).write_text(__name__)
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer
class StrangeConfig(BertConfig):
    model_type = {kind!r}
class StrangeModel(BertForSequenceClassification):
    config_class = StrangeConfig
class StrangeTokenizer(BertTokenizer):
    pass
"""


@pytest.fixture(params=["strange", "bert"])
def hostile(request, tmp_path):
    """A model whose files name code for everything, with a model type that transformers knows or not."""
    folder, mark = write_bert(tmp_path / "model"), tmp_path / "ran"
    (folder / "strange.py").write_text(_CODE.format(mark=str(mark), kind=request.param))
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(_CODE.format(mark=str(mark), kind="x"))
    names = ("AutoModel", "AutoModelForSequenceClassification", "AutoModelForCausalLM")
    auto_map = {"AutoConfig": "strange.StrangeConfig", **dict.fromkeys(names, "strange.StrangeModel")}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "model_type": request.param, "auto_map": auto_map})
    )
    path = folder / "tokenizer_config.json"
    tokenizer = json.loads(path.read_text())
    path.write_text(
        json.dumps({**tokenizer, "auto_map": {"AutoTokenizer": ["strange.StrangeTokenizer"] * 2}})
    )
    data = write_splits(tmp_path / "data", train=review_rows(20), validation=review_rows(4, seed=1))
    return folder, mark, data, request.param


def _train(folder, data, out):
    words = f"train --method lora --set target_modules=all-linear --steps 1 --max-length 16 --data {data}"
    return [*words.split(), "--model", str(folder), "--out", str(out)]


def test_code_of_a_model_s_files_is_not_run_even_if_standard_input_says_yes(hostile, tmp_path):
    folder, mark, data, kind = hostile
    commands = [
        _train(folder, data, tmp_path / "run"),
        ["params", "--model", str(folder), "--method", "lora"],
        ["params", "--model", str(folder / "config.json"), "--method", "lora"],
        ["bench", "estimate", "--model", str(folder), "--method", "lora", "--steps", "1"],
    ]
    for words in commands:
        result = CliRunner().invoke(cli, words, input="y\n" * 20)
        assert not mark.exists(), words
        # A model type that transformers knows is loaded by transformers' own code.
        assert (result.exit_code == 0) is (kind == "bert"), result.stderr
        if kind != "bert":
            assert "brings Python code of its own" in result.stderr
            assert "--trust-remote-code" in result.stderr


@pytest.mark.parametrize("hostile", ["strange"], indirect=True)
def test_an_explicit_option_runs_the_code_and_is_recorded(hostile, tmp_path):
    folder, mark, data, _ = hostile
    words = [*_train(folder, data, tmp_path / "run"), "--trust-remote-code"]
    # Code that has run cannot be taken back, hence a process of its own.
    child = start(call, words)
    child.join()
    assert child.exitcode == 0
    assert mark.exists()
    record = RunRecord.read(tmp_path / "run")
    assert record.request.trust_remote_code
    mark.unlink()
    # A record may be a stranger's, so its trust is not inherited.
    result = CliRunner().invoke(cli, ["evaluate", str(tmp_path / "run")], input="y\n" * 20)
    assert result.exit_code == 2
    assert "--trust-remote-code" in result.stderr
    assert not mark.exists()
