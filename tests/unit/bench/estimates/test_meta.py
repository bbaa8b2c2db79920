"""A model's structure comes from its files where they are, and from rankfold for the papers' models."""

import logging

import pytest
from transformers import BertConfig

from rankfold.errors import SpecError
from rankfold.models.architectures import architecture_names, read_architecture
from rankfold.tasks.kinds import kind_base

ROBERTA = "FacebookAI/roberta-base"


@pytest.mark.parametrize("name", architecture_names())
def test_structure_that_comes_along_needs_no_hub_and_is_said_to_be_ours(name, caplog):
    with caplog.at_level(logging.INFO, "rankfold.models"):
        base = kind_base(name, kind=None, num_labels=5)
    assert base.source == "rankfold"
    assert f"'{name}'" in caplog.text
    continues_text = name.startswith(("facebook/", "llava-hf/", "meta-llama/"))
    reads_pictures = name.startswith("llava-hf/")
    usual = "image_text" if reads_pictures else "instruction" if continues_text else "classification"
    assert base.head.kind == usual
    assert base.config.num_labels == (1 if continues_text else 5)


def test_folder_of_the_same_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    BertConfig(hidden_size=8, num_attention_heads=2).save_pretrained(ROBERTA)
    base = kind_base(ROBERTA, kind=None, num_labels=2)
    assert (base.source, base.config.hidden_size) == (ROBERTA, 8)


def test_damaged_folder_is_not_replaced_by_what_comes_along(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ROBERTA).mkdir(parents=True)
    with pytest.raises(SpecError, match=r"has no config\.json"):
        kind_base(ROBERTA, kind=None, num_labels=2)


def test_model_that_nobody_knows_is_refused_with_those_that_are_known():
    with pytest.raises(SpecError, match=f"'roberta-bas' .*{ROBERTA}"):
        kind_base("roberta-bas", kind=None, num_labels=2)
    with pytest.raises(SpecError, match=f"Did you mean '{ROBERTA}'"):
        read_architecture("FacebookAI/roberta-bass")
