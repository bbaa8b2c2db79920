"""A method has one count: without weights, in an estimate, and on the model that is trained."""

from dataclasses import replace

import pytest

import rankfold
from rankfold.bench.estimates import count_on_meta, estimate
from rankfold.errors import SpecError
from rankfold.presets import discover
from rankfold.runs.methods import HEAD_ONLY, find_method
from rankfold.runs.prepare import prepare
from rankfold.runs.record import ParametersInfo
from rankfold.tasks.kinds import kind_base

NAMES = (*discover(), "peft:lora", "peft:vera", "peft:lokr")
METHODS = {name: {"r": 2, "target_modules": "all-linear"} for name in NAMES}
METHODS |= {"relayed_lora": {"r": 4, "k": 2}, HEAD_ONLY.name: {}}


def counted(model, method):
    return count_on_meta(str(model), method, METHODS[method], kind=None, num_labels=2)


@pytest.mark.parametrize("method", METHODS)
def test_numbers_are_the_same_without_weights_in_an_estimate_and_in_a_run(request_, method):
    asked = replace(request_, method=method, options=METHODS[method])
    found = counted(asked.model, method)
    run = prepare(asked).parameters()
    assert ParametersInfo(found.stored, found.trainable, found.active, found.head) == run
    assert estimate(asked).parameters == run


@pytest.mark.parametrize("method", METHODS)
def test_parts_are_the_whole(tiny_bert, method):
    found = counted(tiny_bert, method)
    assert sum(found.by_factor.values()) == sum(found.by_module.values()) == found.trainable


@pytest.mark.parametrize("method", discover())
def test_numbers_of_a_preset_are_those_that_the_library_counts(tiny_bert, method):
    plan = kind_base(str(tiny_bert), kind=None, num_labels=2)
    _, model = plan.with_adapter(find_method(method).config(METHODS[method], plan.head.task_type, seed=0))
    whole, found = rankfold.count_parameters(model), counted(tiny_bert, method)
    assert (found.stored, found.trainable, found.active) == (whole.stored, whole.trainable, whole.active)
    assert found.head == whole.heads


def test_head_alone_trains_no_adapter_and_has_no_rank(tiny_bert):
    alone, lora = (counted(tiny_bert, method) for method in (HEAD_ONLY.name, "lora"))
    assert (alone.trainable, alone.active, alone.by_factor, alone.lora) == (0, 0, {}, None)
    assert alone.head == lora.head > 0


def test_head_alone_is_refused_where_there_is_no_head(tiny_llama):
    with pytest.raises(SpecError, match="no new head"):
        counted(tiny_llama, HEAD_ONLY.name)
