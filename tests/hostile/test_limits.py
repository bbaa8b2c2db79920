"""Absurd numbers and endless expressions are refused by name before memory or time is taken for them."""

import json
import re

import peft
import pytest
from transformers import BertConfig, LlamaConfig, MixtralConfig

import rankfold
from rankfold import AdapterFileError, RankfoldConfig, SpecError
from rankfold.limits import MOST_BLOCKS, MOST_FEATURES, MOST_HEADS, MOST_NAMES, MOST_RANK, MOST_WORDS
from rankfold.models.base import read_config
from rankfold.peft_plugin import patterns
from rankfold.store.loading import load_adapter, peft_config
from rankfold.store.saved import open_adapter
from tests.integration.models import adapted, bert, config_of

EVIL = [
    r"(a+)+b",
    r"(([a-z._0-9])+)+!",
    r"(.*)*!",
    r"(.|a|b)*!",
    r".*.*.*.*.*.*.*.*.*.*.*.*.*.*!",
]
HARMLESS = [
    r".*\.(query|value)",
    r"(?:.*?(?:layer|block).*?(?:attention).*?(?:query|value))",
    r"(.*\.)*(query|value)",
    r"(bert\.)?(encoder\.)+(layer\.\d+\.)+attention\.self\.(query|value)",
]


@pytest.fixture
def short_patience(monkeypatch):
    monkeypatch.setattr(patterns, "MATCH_SECONDS", 1)


@pytest.mark.usefixtures("short_patience")
@pytest.mark.parametrize("option", ["target_modules", "exclude_modules", "modules_to_save", "rank_pattern"])
def test_expressions_without_end_are_refused_with_the_option(option):
    for pattern in EVIL[:1] if option != "target_modules" else EVIL:
        long_name = "a" * 60
        value = {
            "modules_to_save": ["classifier", rf"(?:{pattern})"],
            "rank_pattern": {rf"(?:{pattern})": 2, long_name: 3},
        }.get(option, pattern)
        with pytest.raises(SpecError, match=rf"{option} has .* takes more than 1 seconds to match"):
            peft.get_peft_model(_long_named(long_name), config_of("lora", task_type=None, **{option: value}))


def _long_named(name: str):
    """Return a small BERT with a module of a long name, of the letters that the expressions repeat."""
    model = bert()
    model.add_module(name, type(model.dropout)(0.0))
    return model


def test_usual_expressions_are_taken():
    expected = [
        name for name, _ in adapted(config_of("lora")).named_modules() if name.endswith("rankfold_down")
    ]
    for pattern in HARMLESS:
        model = adapted(config_of("lora", target_modules=pattern))
        assert [name for name, _ in model.named_modules() if name.endswith("rankfold_down")] == expected


ABSURD = {
    "rank": (lambda: rankfold.config("lora", r=1_000_000), f"r=1000000 is more than {MOST_RANK}"),
    "rank_of_a_layer": (
        lambda: rankfold.config("lora", rank_pattern={"query": 1_000_000}),
        "r=1000000 is more than",
    ),
    "rank_up": (
        lambda: RankfoldConfig(rank_up=10**9, core=rankfold.DenseSpec("zeros"), up=rankfold.DenseSpec()),
        "rank_up=1000000000 is more than",
    ),
    "k": (lambda: rankfold.config("relayed_lora", k=10**9), "k=1000000000 is more than"),
    "inner": (lambda: rankfold.config("nora", inner=10**9), "inner=1000000000 is more than"),
    "heads": (lambda: rankfold.config("hydra_lora", heads=10**7), f"is more than {MOST_HEADS}"),
    "rounds": (lambda: rankfold.config("graph_moe", rounds=1_000_000), "rounds=1000000 is more than"),
    "names": (
        lambda: rankfold.config("lora", target_modules=[str(n) for n in range(MOST_NAMES + 1)]),
        "20001 names",
    ),
    "letters": (lambda: rankfold.config("lora", target_modules="a" * 10**6), "1000000 letters"),
    "nesting": (lambda: rankfold.config("lora", target_modules="(" * 5000 + ")" * 5000), "no regular"),
}


@pytest.mark.parametrize("case", ABSURD)
def test_absurd_numbers_are_refused_when_a_configuration_is_made_or_read(case, tmp_path):
    make, message = ABSURD[case]
    with pytest.raises(SpecError, match=message):
        make()


def test_absurd_numbers_in_a_file_are_refused_when_it_is_read(tmp_path):
    adapted(config_of("graph_moe", task_type=None)).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    values = json.loads(file.read_text())
    router = {**values["router"], "rounds": 1_000_000}
    for change in ({"r": 1_000_000}, {"heads": 10**9}, {"router": router}):
        file.write_text(json.dumps({**values, **change}))
        with pytest.raises(AdapterFileError, match="is more than"):
            peft_config(open_adapter(tmp_path))
        with pytest.raises(AdapterFileError, match="is more than"):
            load_adapter(bert(), tmp_path)


@pytest.mark.parametrize(
    ("config", "name", "value", "most"),
    [
        (LlamaConfig, "num_hidden_layers", 1_000_000, MOST_BLOCKS),
        (LlamaConfig, "hidden_size", 10**9, MOST_FEATURES),
        (LlamaConfig, "vocab_size", 10**10, MOST_WORDS),
        (BertConfig, "intermediate_size", 10**9, MOST_FEATURES),
        (MixtralConfig, "num_local_experts", 10**8, 65_536),
    ],
)
def test_absurd_sizes_of_a_base_model_are_refused_when_its_configuration_is_read(
    config, name, value, most, tmp_path
):
    config().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    read_config(str(tmp_path))
    file.write_text(json.dumps({**json.loads(file.read_text()), name: value}))
    with pytest.raises(SpecError, match=re.escape(f"'{name}' is {value}, and {most} is the most")):
        read_config(str(tmp_path))
