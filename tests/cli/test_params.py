"""`rankfold params` counts on the meta device what the papers and PEFT count."""

import json

import pytest
import torch
from click.testing import CliRunner
from transformers import BertConfig, LlamaConfig

from rankfold.bench.estimates import count_on_meta
from rankfold.cli.main import cli
from rankfold.errors import SpecError

HIDDEN, LAYERS = 128, 3


@pytest.fixture
def bert(tmp_path):
    BertConfig(
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        intermediate_size=64,
        vocab_size=50,
        architectures=["BertModel"],
    ).save_pretrained(tmp_path)
    return str(tmp_path)


def count(model, method, *, kind=None, num_labels=2, **options):
    return count_on_meta(model, method, options, kind=kind, num_labels=num_labels)


def test_lora_counts_rank_times_both_sides_and_the_head_apart(bert):
    counted = count(bert, "lora", r=4, target_modules=["query", "value"], num_labels=5)
    assert (
        counted.trainable == counted.stored == counted.active == counted.lora == LAYERS * 2 * 4 * 2 * HIDDEN
    )
    assert counted.head == 5 * HIDDEN + 5


def test_peft_method_is_counted_beside_ours(bert):
    ours, theirs = (count(bert, name, r=4, target_modules=["query"]) for name in ("lora", "peft:lora"))
    assert (ours.trainable, ours.stored, ours.head) == (theirs.trainable, theirs.stored, theirs.head)
    assert sum(theirs.by_factor.values()) == sum(theirs.by_module.values()) == theirs.trainable


def test_relayed_lora_of_roberta_base_is_the_papers_count(tmp_path):
    config = {
        "model_type": "roberta",
        "architectures": ["RobertaForMaskedLM"],
        "vocab_size": 50265,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    counted = count(
        str(tmp_path / "config.json"), "relayed_lora", r=8, k=8, target_modules=["query", "value"]
    )
    assert (counted.trainable, counted.lora, counted.base) == (60_672, 294_912, 124_647_170)


def test_big_model_is_counted_without_its_memory(tmp_path):
    LlamaConfig(hidden_size=4096, num_hidden_layers=32, architectures=["LlamaForCausalLM"]).save_pretrained(
        tmp_path
    )
    counted = count(str(tmp_path), "lora", r=16, target_modules=["q_proj"])
    assert counted.trainable == 32 * 16 * 2 * 4096
    assert counted.head == 0
    assert counted.base > 6e9


def test_random_state_is_left_alone(bert):
    before = torch.get_rng_state()
    count(bert, "lora", r=4, target_modules=["query"])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("lroa", {}, "Did you mean 'lora'"),
        ("lora", {"rank": 4}, "'rank'"),
        ("lora", {"target_modules": ["quary"]}, "quary|target"),
        ("lora", {"r": 0}, "r"),
    ],
    ids=["method", "option", "module", "rank"],
)
def test_what_cannot_be_built_is_wrong_use(bert, method, options, message):
    with pytest.raises(SpecError, match=message):
        count(bert, method, **options)


def test_command_prints_the_same_counts_as_table_and_as_json(bert):
    words = [
        "params",
        "--model",
        bert,
        "--method",
        "lora",
        "--set",
        "r=4",
        "--set",
        "target_modules=query,value",
    ]
    table = CliRunner().invoke(cli, [*words, "--by-module"])
    data = json.loads(CliRunner().invoke(cli, [*words, "--json"]).stdout)
    assert table.exit_code == 0
    assert f"{data['trainable']:,}" in table.stdout
    assert all(path in table.stdout for path in data["by_module"])
    assert set(data) == {
        "model", "method", "base", "stored", "trainable", "active", "head", "by_factor", "by_module", "lora",
    }  # fmt: skip


def test_command_refuses_a_model_that_is_not_there():
    result = CliRunner().invoke(cli, ["params", "--model", "./absent", "--method", "lora"])
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
