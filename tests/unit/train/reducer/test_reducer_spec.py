"""The Reducer's options: defaults are EffiLoRA's, and what cannot be meant is refused."""

import pytest

from rankfold import ReducerSpec, SpecError


def test_defaults_train_24_of_32_layers_and_suppress_16():
    spec = ReducerSpec()
    assert (spec.active_count(32), spec.suppressed_count(32)) == (24, 16)
    assert (spec.suppress_factor, spec.interval, spec.probes, spec.learning_rate) == (0.25, 10, 3, 10.0)


@pytest.mark.parametrize(
    ("fraction", "layers", "count"), [(0.25, 6, 1), (0.5, 5, 2), (0.29, 100, 29), (1.0, 7, 7)]
)
def test_a_share_is_rounded_down_but_not_for_a_rounding_error(fraction, layers, count):
    assert ReducerSpec(active_fraction=fraction).active_count(layers) == count


def test_a_number_of_layers_goes_before_a_share():
    spec = ReducerSpec(active_layers=5, suppress_layers=2)
    assert (spec.active_count(6), spec.suppressed_count(6)) == (5, 2)


def test_all_layers_train_when_importance_is_only_measured():
    assert ReducerSpec(select="all").active_count(6) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"active_fracton": 0.5}, "unknown option 'active_fracton' of the Reducer. Did you mean 'active_fr"),
        ({"active_fraction": 0}, "active_fraction=0 is no share"),
        ({"active_fraction": 1.5}, "active_fraction=1.5 is no share"),
        ({"suppress_fraction": -0.1}, "suppress_fraction=-0.1 is no share"),
        ({"suppress_fraction": float("nan")}, "suppress_fraction=nan is no share"),
        ({"active_fraction": "half"}, "active_fraction is 'half'; give a number"),
        ({"active_fraction": True}, "active_fraction is 'True'; give a number"),
        ({"suppress_factor": 1.0}, "suppress_factor=1 suppresses nothing"),
        ({"learning_rate": 0}, "learning_rate=0 of the Reducer"),
        ({"interval": 0}, "interval is '0'; give a whole number, at least 1"),
        ({"probes": 2.5}, "probes is '2.5'; give a whole number"),
        ({"active_layers": 0}, "active_layers is '0'; give a whole number, at least 1"),
        ({"start_step": -1}, "start_step is '-1'"),
        ({"score_rule": "rewards"}, "unknown score_rule 'rewards'. Did you mean 'reward'"),
        ({"suppress_select": "highest"}, "unknown suppress_select 'highest'"),
        ({"select": "first"}, "unknown select 'first'"),
        ({"mode": "prune"}, "unknown mode 'prune'"),
        ({"freeze": "down"}, "unknown freeze 'down'"),
        ({"stop_shared_gradient": "yes"}, "stop_shared_gradient is 'yes'; give true or false"),
        ({"fold_frozen": 1}, "fold_frozen is '1'; give true or false"),
        ({"fold_frozen": True}, "give stop_shared_gradient=True and mode='freeze' with it"),
        ({"active_layers": 3, "active_fraction": 0.5}, "active_layers=3 and active_fraction=0.5 are both"),
        ({"mode": "drop"}, "mode='drop' chooses layers before training"),
        ({"suppress_select": "lowest"}, "score_rule='reward' compares several suppressed sets"),
        ({"probes": 1}, "probes=1 leaves score_rule='reward' nothing to compare"),
    ],
)
def test_an_impossible_option_is_refused_with_the_remedy(options, message):
    with pytest.raises(SpecError) as caught:
        ReducerSpec.of(options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"active_layers": 7}, "active_layers=7, but the model has 6 layers; give at most that"),
        ({"suppress_layers": 7}, "suppress_layers=7, but the model has 6 layers"),
        ({"suppress_layers": 6}, "suppresses all 6 layers at once"),
        ({"active_fraction": 0.1}, "active_fraction=0.1 of 6 layers is none; give at least 0.167"),
    ],
)
def test_a_number_that_does_not_fit_the_model_is_refused(options, message):
    spec = ReducerSpec(**options)
    with pytest.raises(SpecError) as caught:
        spec.active_count(6), spec.suppressed_count(6)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"score_rule": "loss_delta", "suppress_select": "lowest", "probes": 1},
        {"select": "random", "mode": "drop"},
        {"select": "last", "stop_shared_gradient": True, "fold_frozen": True},
    ],
)
def test_what_is_published_can_be_asked_for(options):
    assert ReducerSpec(**options).to_dict().items() >= options.items()


@pytest.mark.parametrize(
    ("options", "unread"),
    [
        ({"select": "random", "probes": 7}, "probes=7 has no effect with select='random'"),
        ({"select": "last", "suppress_layers": 2}, "suppress_layers=2 has no effect with select='last'"),
        ({"select": "all", "active_fraction": 0.25}, "active_fraction=0.25 has no effect with select='all'"),
        ({"select": "last", "mode": "drop", "freeze": "all"}, "freeze=all has no effect with mode='drop'"),
    ],
    ids=lambda each: each.partition("=")[0] if isinstance(each, str) else "",
)
def test_an_option_that_nothing_reads_is_refused(options, unread):
    with pytest.raises(SpecError) as caught:
        ReducerSpec(**options)
    assert unread in str(caught.value)
