"""Methods by name: rankfold's presets and PEFT's own, with the same care for unknown options."""

from dataclasses import replace

import pytest
from torch import nn

from rankfold.errors import SpecError
from rankfold.presets import discover
from rankfold.runs.methods import BASELINES, FULL, HEAD_ONLY, find_method, peft_methods
from rankfold.runs.prepare import prepare
from rankfold.runs.run import dry_run
from rankfold.tasks.kinds.instruction import KIND as INSTRUCTION
from rankfold.tasks.kinds.regression import KIND as REGRESSION


@pytest.mark.parametrize("method", [*sorted(discover()), "peft:lora"])
@pytest.mark.parametrize(("kind", "task_type"), [(REGRESSION, "SEQ_CLS"), (INSTRUCTION, "CAUSAL_LM")])
def test_a_method_gets_the_task_type_of_its_task(method, kind, task_type):
    assert find_method(method).config({}, kind.head().task_type, seed=0).task_type == task_type


@pytest.mark.parametrize("method", ["lora", "peft:lora"])
def test_a_bare_name_is_a_list_of_one_module(method):
    config = find_method(method).config({"target_modules": "query"}, "SEQ_CLS", seed=0)
    assert set(config.target_modules) == {"query"}


@pytest.mark.parametrize("method", ["lora", "peft:lora"])
@pytest.mark.parametrize("pattern", [r".*\.query", "all-linear"])
def test_a_pattern_stays_a_pattern(method, pattern):
    config = find_method(method).config({"target_modules": pattern}, "SEQ_CLS", seed=0)
    assert config.target_modules == pattern


def test_our_word_for_the_layers_of_mlps_is_no_name_of_a_module():
    options = {"target_modules": "mlp", "exclude_modules": "mlp"}
    ours = find_method("lora").config(options, "SEQ_CLS", seed=0)
    assert (ours.target_modules, ours.exclude_modules) == ("mlp", {"mlp"})
    assert find_method("peft:lora").config(options, "SEQ_CLS", seed=0).target_modules == {"mlp"}


def test_the_seed_reaches_a_method_that_draws_frozen_factors():
    assert find_method("lora_fa").config({}, "SEQ_CLS", seed=5).seed == 5
    assert find_method("lora_fa").config({"seed": 9}, "SEQ_CLS", seed=5).seed == 9


@pytest.mark.parametrize("method", ["lora", "peft:lora"])
def test_modules_that_the_base_lacks_are_trained_and_saved(method):
    fresh = ("bert.pooler.dense", "classifier")
    config = find_method(method).config({}, "SEQ_CLS", seed=0, fresh_modules=fresh)
    assert config.modules_to_save == ["bert.pooler.dense"]
    both = find_method(method).config({"modules_to_save": "norm"}, "SEQ_CLS", seed=0, fresh_modules=fresh)
    assert both.modules_to_save == ["norm", "bert.pooler.dense"]


def test_our_own_configuration_is_no_method_of_peft():
    assert "peft:rankfold" not in peft_methods()
    assert {"peft:lora", "peft:vera", "peft:lokr", "peft:adalora"} <= set(peft_methods())


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("peft:lora", {"lora_alhpa": 1}, "Did you mean 'lora_alpha'"),
        ("lora", {"alhpa": 1}, "Did you mean 'alpha'"),
        ("lroa", {}, "Did you mean 'lora'"),
        ("peft:lokk", {}, "Did you mean 'peft:lokr'"),
    ],
)
def test_an_unknown_word_has_a_suggestion(method, options, words):
    with pytest.raises(SpecError, match=words):
        find_method(method).config(options, "SEQ_CLS", seed=0)


@pytest.mark.parametrize(
    ("change", "is_doubted"),
    [
        ({"learning_rate": None}, False),
        ({"learning_rate": 50.0}, True),
        ({"learning_rate": 1e-8}, True),
        ({"learning_rate": 50.0, "optimizer": "sgd"}, False),
        ({"learning_rate": 50.0, "method": "peft:loha", "options": {"r": 2}}, False),
    ],
    ids=str,
)
def test_a_rate_far_from_those_that_learned_is_doubted_once(request_, change, is_doubted, caplog):
    dry_run(replace(request_, **change))
    warnings = [record for record in caplog.records if "is far from" in record.getMessage()]
    assert [record.levelname for record in warnings] == ["WARNING"] * is_doubted


@pytest.mark.parametrize("name", [*discover(), *peft_methods(), *BASELINES])
def test_a_method_is_found_by_its_name(name):
    assert find_method(name).name == name


def test_head_alone_is_trained_as_the_baseline(request_):
    prepared = prepare(replace(request_, method=HEAD_ONLY.name, options={}))
    trained = {name for name, each in prepared.model.named_parameters() if each.requires_grad}
    assert trained
    assert all(".modules_to_save." in name for name in trained)
    assert (prepared.parameters().trainable, prepared.parameters().head > 0) == (0, True)


def test_full_trains_every_linear_layer_but_the_head_as_part_of_the_adapter(request_):
    prepared = prepare(replace(request_, method=FULL.name, options={}))
    base = prepared.model.get_base_model()
    originals = [
        layer
        for name, layer in base.named_modules()
        if isinstance(layer, nn.Linear) and "classifier" not in name
    ]
    # Each is there as it was and as a trained copy.
    numbers = sum(part.numel() for layer in originals for part in layer.parameters())
    assert prepared.parameters().trainable == numbers / 2 > 0
    assert prepared.parameters().head > 0
    of_tokens = find_method(FULL.name).config({}, "TOKEN_CLS", seed=0, fresh_modules=["classifier"])
    assert set(of_tokens.exclude_modules) == {"classifier"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": {"r": 2}}, "has no option 'r'"),
        ({"options": {}, "freeze_head": True}, "give one of them"),
    ],
)
def test_head_alone_has_no_options_and_is_not_frozen(request_, change, message):
    with pytest.raises(SpecError, match=message):
        prepare(replace(request_, method=HEAD_ONLY.name, **change))
