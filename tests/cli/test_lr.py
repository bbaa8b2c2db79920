"""`rankfold lr` lists what a training would do, from the structure of the model alone."""

import json

import pytest
import torch
from click.testing import CliRunner
from transformers import BertConfig, LlamaConfig

import rankfold
from rankfold.cli.main import cli
from rankfold.presets import discover
from rankfold.runs.methods import find_method
from rankfold.tasks.kinds import kind_base
from tests.reference.learning_rates import TLORA_PLUS_MULTIPLES


@pytest.fixture
def bert(tmp_path):
    """The configuration of a BERT that is wide enough for every method's default rank."""
    size = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertConfig(**size, vocab_size=50, architectures=["BertModel"]).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


@pytest.fixture
def lr(bert):
    """Return a function that calls `rankfold lr` and returns the result."""

    def call(*more, method="tlora_plus", model=bert):
        words = ["lr", "--model", model, "--method", method, *more]
        return CliRunner().invoke(cli, [str(word) for word in words])

    return call


@pytest.mark.parametrize(("ratio", "multiples"), TLORA_PLUS_MULTIPLES.items())
def test_table_and_json_show_the_papers_multiples(lr, ratio, multiples):
    options = ("--tlora-ratio", ratio, "--learning-rate", "5e-5")
    data = json.loads(lr(*options, "--json").stdout)
    assert data["learning_rate"] == 5e-5
    found = {group["role"]: group["multiplier"] for group in data["groups"]}
    assert found == pytest.approx({"down": 1, "core": multiples[0], "up": multiples[1], "head": 1}, rel=5e-3)
    table = lr(*options).stdout
    for group in data["groups"]:
        assert group["name"] in table
        assert f"{group['learning_rate']:.3g}" in table
        assert f"{group['numbers']:,}" in table


@pytest.mark.parametrize("method", discover())
def test_every_method_is_listed_at_its_own_rate_and_in_full(lr, method):
    data = json.loads(lr("--json", method=method).stdout)
    plan = kind_base(data["model"], kind=None, num_labels=2)
    counted = rankfold.count_parameters(
        plan.with_adapter(find_method(method).config({}, plan.head.task_type, seed=0))[1]
    )
    assert {group["learning_rate"] for group in data["groups"]} == {discover()[method].learning_rate}
    assert sum(group["numbers"] for group in data["groups"]) == counted.trainable + counted.heads


def test_head_alone_is_listed_without_the_adapter_that_carries_it(lr):
    groups = json.loads(lr("--json", method="head_only").stdout)["groups"]
    assert [group["role"] for group in groups] == ["head"]


def test_what_is_listed_is_what_is_trained(lr, tiny_bert, reviews, tmp_path):
    options = ["--tlora-ratio", "4", "--learning-rate", "0.01", "--weight-decay", "0.1"]
    words = [
        "train",
        "--model",
        tiny_bert,
        "--data",
        reviews,
        "--method",
        "tlora_plus",
        "--out",
        tmp_path / "run",
    ]
    words += ["--steps", 1, "--max-length", 32, "--json", *options]
    trained = json.loads(CliRunner().invoke(cli, [str(word) for word in words]).stdout)
    listed = json.loads(lr(*options, "--json", model=tiny_bert).stdout)
    without_names = [
        {key: value for key, value in group.items() if key != "name"} for group in listed["groups"]
    ]
    assert trained["training"]["groups"] == without_names


def test_big_model_is_listed_without_its_memory_and_without_drawing_numbers(lr, tmp_path):
    LlamaConfig(hidden_size=4096, num_hidden_layers=32, architectures=["LlamaForCausalLM"]).save_pretrained(
        tmp_path
    )
    before = torch.get_rng_state()
    options = ("--lr-per-module", "--set", "r=16", "--set", "target_modules=q_proj", "--json")
    groups = json.loads(lr(*options, model=tmp_path).stdout)["groups"]
    assert torch.equal(torch.get_rng_state(), before)
    ratio = 4096 / 16  # a square layer
    assert {group["role"]: group["multiplier"] for group in groups} == pytest.approx(
        {"down": 1, "core": ratio**1.5, "up": ratio**0.5}
    )


@pytest.mark.parametrize(
    ("method", "more", "words"),
    [
        ("lora", ("--tlora-ratio", "4"), "'core' applies to no parameter"),
        ("tlora", ("--loraplus-ratio", "16"), "'up' applies to no parameter"),
        ("tlora_plus", ("--lr-group", "cor=8"), "Did you mean 'core'"),
        ("tlora_plus", ("--tlora-ratio", "0"), "above 0"),
        ("tlora_plus", ("--tlora-ratio", "4", "--lr-per-module"), "give one of them"),
        ("tlora_plus", ("--learning-rate", "-1"), "above 0"),
        ("tlora_plus", ("--set", "rr=8"), "Did you mean"),
        ("peft:lora", ("--loraplus-ratio", "16"), "no rankfold adapter"),
        ("lroa", (), "Did you mean 'lora'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value.strip("'"),
)
def test_wrong_use_is_one_line_with_a_remedy_and_exit_code_2(lr, method, more, words):
    result = lr(*more, method=method)
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
