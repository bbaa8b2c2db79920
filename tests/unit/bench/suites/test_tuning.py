"""Every method is tuned with as many trials, on rows that are not those it is measured on."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankfold.bench.executors.base import Inline
from rankfold.bench.suites.protocol import check_suite, run_suite
from rankfold.bench.suites.search import MOST_RUNGS, Ladder, Tuning
from rankfold.bench.suites.suite import Suite, Variant
from rankfold.bench.suites.suite_file import read_suite
from rankfold.bench.suites.tuning import trial_requests
from rankfold.errors import BusyError, OutputExistsError, SpecError, TrainingError
from rankfold.runs.methods import find_method
from rankfold.runs.record import RunRecord
from rankfold.runs.records import find_places, find_records, write_archive
from tests.support.records import Trainer

RATES = [1e-4, 1e-3, 1e-2]
LADDER = {"learning_rate": {"center": 1e-3, "factor": 2}}
BEST = {"lora": 1e-3, "tlora": 1e-2}
SUITE = Suite(
    "some",
    {"model": "minilm", "data": "rows.csv", "steps": 50},
    (Variant("lora"), Variant("tlora")),
    (0, 1),
    tuning=Tuning({"learning_rate": RATES}, base={"steps": 5}),
)


class Tuned(Trainer):
    """A stand-in whose accuracy is best at a rate that the method has."""

    def __init__(self, *given, **options):
        super().__init__(*given, **options)
        self.requests = []

    def __call__(self, request, *, progress=None):
        self.requests.append(request)
        record = super().__call__(request, progress=progress)
        away = abs(math.log10(request.learning_rate / BEST[request.method]))
        training = replace(record.training, learning_rate=request.learning_rate)
        record = replace(record, metrics={"accuracy": 0.9 - 0.1 * away}, training=training)
        record.write(request.out)
        return record


def run(suite, out, trainer):
    return run_suite(suite, out, executor=Inline(trainer))


def test_runs_have_the_rate_that_was_best_for_their_method(tmp_path):
    run(SUITE, tmp_path, Tuned())
    for method, rate in BEST.items():
        for seed in SUITE.seeds:
            record = RunRecord.read(tmp_path / f"{method}-seed{seed}")
            assert record.training.learning_rate == rate
            assert (record.tuning.trials, record.tuning.trial) == (3, None)
            assert record.tuning.values == {"learning_rate": rate}
            assert record.tuning.score == 0.9


def test_trials_never_see_the_validation_split_and_runs_do(tmp_path):
    trainer = Tuned()
    run(SUITE, tmp_path, trainer)
    trials, runs = trainer.requests[:6], trainer.requests[6:]
    assert all(request.hold_out and request.steps == 5 for request in trials)
    assert not any(request.hold_out or request.steps != 50 for request in runs)
    assert sorted(request.learning_rate for request in trials if request.method == "lora") == RATES


def test_trials_of_a_task_may_be_of_another_length_unless_the_command_says_so(tmp_path):
    tasks = {"mrpc": {"steps": 50}, "stsb": {"steps": 40}}
    tuning = replace(SUITE.tuning, tasks={"mrpc": {"epochs": 2.0}})
    suite = replace(SUITE, base={"model": "minilm"}, tasks=tasks, tuning=tuning)

    def budgets(suite):
        trials = trial_requests(suite, tmp_path)
        return {(request.task, request.steps, request.epochs) for request in trials}

    assert budgets(suite) == {("mrpc", None, 2.0), ("stsb", 5, None)}
    assert budgets(suite.with_settings({"steps": 7})) == {(task, 7, None) for task in ("mrpc", "stsb")}
    assert {request.steps for request in suite.requests(tmp_path)} == {50, 40}


def test_methods_of_one_entry_are_tuned_once_as_the_first(tmp_path):
    methods = tuple(Variant("lora", {"r": r}, entry=0) for r in (8, 4))
    trainer = Tuned()
    run(replace(SUITE, methods=methods), tmp_path, trainer)
    assert [request.options for request in trainer.requests[:3]] == [{"r": 8}] * 3
    assert {request.learning_rate for request in trainer.requests[3:]} == {BEST["lora"]}


def test_archived_suite_goes_on_with_a_wider_grid(tmp_path):
    run(SUITE, tmp_path / "runs", Tuned())
    write_archive(find_places(tmp_path / "runs"), tmp_path / "archive")
    wider = replace(SUITE, tuning=replace(SUITE.tuning, space={"learning_rate": [*RATES, 1e-5]}))
    trainer = Tuned()
    run(wider, tmp_path / "archive", trainer)
    assert trainer.asked == ["lora-trial4", "tlora-trial4"]
    records = find_records(tmp_path / "archive")
    assert {record.tuning.trials for record in records} == {4}
    assert len(records) == 12


def test_method_that_says_so_is_not_tuned(tmp_path):
    trainer = Tuned()
    fixed = Variant("lora", settings={"learning_rate": 0.5}, space={})
    run(replace(SUITE, methods=(fixed, Variant("tlora"))), tmp_path, trainer)
    assert [request.learning_rate for request in trainer.requests if request.method == "lora"] == [0.5, 0.5]
    assert RunRecord.read(tmp_path / "lora-seed0").tuning is None


@pytest.mark.parametrize("sampler", ["grid", "tpe"])
def test_suite_that_was_stopped_while_tuning_ends_as_if_it_had_not_been(tmp_path, sampler):
    space = {"learning_rate": RATES if sampler == "grid" else {"low": 1e-4, "high": 1e-2, "log": True}}
    suite = replace(SUITE, tuning=Tuning(space, sampler, None if sampler == "grid" else 5))

    class Stopped(Tuned):
        def __call__(self, request, *, progress=None):
            if len(self.asked) == 4:
                raise KeyboardInterrupt
            return super().__call__(request, progress=progress)

    whole, rest = Tuned(), Tuned()
    run(suite, tmp_path / "whole", whole)
    with pytest.raises(KeyboardInterrupt):
        run(suite, tmp_path / "parts", Stopped())
    run(suite, tmp_path / "parts", rest)
    assert len(rest.asked) == len(whole.asked) - 4
    assert {each.name: rates(each) for each in (tmp_path / "parts").glob("*-*")} == {
        each.name: rates(each) for each in (tmp_path / "whole").glob("*-*")
    }


def rates(folder):
    record = RunRecord.read(folder)
    return record.training.learning_rate, record.tuning


def test_ranges_are_searched_with_as_many_trials_as_asked(tmp_path):
    space = {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}
    trainer = Tuned()
    run(replace(SUITE, seeds=(0,), tuning=Tuning(space, "tpe", 6)), tmp_path, trainer)
    tried = [request.learning_rate for request in trainer.requests if request.hold_out]
    assert len(tried) == 12
    assert all(1e-4 <= rate <= 1e-2 for rate in tried)


def test_best_value_at_the_edge_of_a_grid_is_said(tmp_path, caplog):
    with caplog.at_level("INFO", logger="rankfold.bench"):
        run(SUITE, tmp_path, Tuned())
    said = [each.message for each in caplog.records if "edge" in each.message]
    assert len(said) == 1
    assert "learning_rate of tlora is 0.01" in said[0]


def test_trial_that_failed_is_not_chosen_and_counts(tmp_path):
    run(SUITE, tmp_path, Tuned(["lora-trial2"], leaves_record=True))
    record = RunRecord.read(tmp_path / "lora-seed0")
    assert record.training.learning_rate in (1e-4, 1e-2)
    assert record.tuning.trials == 3
    failed = RunRecord.read(tmp_path / "lora-trial2")
    assert (failed.status, failed.tuning.trial) == ("failed", 2)


def test_search_goes_on_after_a_trial_that_failed_alone_in_its_round(tmp_path):
    space = {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}
    suite = replace(SUITE, methods=(Variant("lora"),), seeds=(0,), tuning=Tuning(space, "tpe", 4))
    trainer = Tuned(["lora-trial2"], leaves_record=True)
    run(suite, tmp_path, trainer)
    assert trainer.asked == [*(f"lora-trial{number}" for number in (1, 2, 3, 4)), "lora-seed0"]


def test_failure_under_overwrite_leaves_the_finished_run(tmp_path):
    run(SUITE, tmp_path, Tuned())
    before = RunRecord.read(tmp_path / "lora-seed0")
    trainer = Tuned(["lora-seed0"])
    outcomes = run_suite(SUITE, tmp_path, executor=Inline(trainer), overwrite=True)
    (failed,) = [outcome for outcome in outcomes if outcome.error]
    assert (failed.record.status, failed.record.tuning) == ("failed", before.tuning)
    assert RunRecord.read(tmp_path / "lora-seed0") == before


def test_nothing_is_chosen_while_another_process_is_at_a_trial(tmp_path):
    trainer = Tuned(elsewhere=["lora-trial2"])
    with pytest.raises(BusyError, match=r"1 of 6 runs is made by another process \(lora-trial2\)"):
        run(SUITE, tmp_path, trainer)
    assert len(trainer.asked) == 6
    assert not (tmp_path / "lora-trial2").exists()


def test_suite_whose_trials_all_fail_says_why(tmp_path):
    failing = [f"{method}-trial{number}" for method in BEST for number in (1, 2, 3)]
    with pytest.raises(TrainingError, match="loss is not a number"):
        run(SUITE, tmp_path, Tuned(failing))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": (Variant("lora"), Variant("tlora", space={"r": [4]}))}, "equally many trials"),
        ({"tuning": Tuning({"learning_rate": 1e-3})}, "give a list of values"),
        ({"tuning": Tuning({"learning_rate": []})}, "give a list of values"),
        ({"tuning": Tuning({"learning_rate": {"low": 1, "hihg": 2}}, "tpe", 2)}, "has 'hihg'"),
        ({"tuning": Tuning({"learning_rate": {"low": 1.0}}, "tpe", 2)}, "has no 'high'"),
        ({"tuning": Tuning({"learning_rate": RATES}, "tpe")}, "trials of the tuning is None"),
        *(
            ({"tuning": Tuning({"learning_rate": values}, "tpe", 2)}, message)
            for values, message in [
                ([], r"the tpe of 'learning_rate' is \[\]; give a list of values, or a range"),
                (1e-3, "the tpe of 'learning_rate' is 0.001; give a list of values, or a range"),
                ("abc", "the tpe of 'learning_rate' is abc; give a list of values, or a range"),
                ({"low": 1e-2, "high": 1e-4}, "from '0.01' to '0.0001'; give two numbers"),
                ({"low": "a", "high": 1.0}, "from 'a' to '1.0'; give two numbers"),
                ({"low": 1e-4, "high": math.nan}, "from '0.0001' to 'nan'; give two numbers"),
                ({"low": 0.0, "high": 1.0, "log": True}, "begins at 0.0; give a low above 0"),
                ({"low": 0, "high": 1, "log": True}, "begins at 0; give a low above 0"),
                ({"low": 1e-4, "high": 1e-2, "log": "no"}, "log of .* is 'no'; give true or false"),
            ]
        ),
        ({"tuning": Tuning({"learning_rate": {"center": 0}}, "ladder")}, "give a center above 0"),
        ({"tuning": Tuning({"learning_rate": {"centre": 1.0}}, "ladder")}, "give a center above 0"),
        ({"tuning": Tuning({**LADDER, "r": {"center": 8}}, "ladder")}, "a ladder has 2 names"),
        ({"tuning": Tuning({"rnak": [1, 2]})}, "unknown option .*rnak"),
    ],
)
def test_tuning_that_cannot_be_done_is_refused_before_the_first_run(change, message):
    with pytest.raises(SpecError, match=message):
        check_suite(replace(SUITE, **change), Path("out"))


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seed_that_nothing_can_be_drawn_from_is_refused(seed):
    with pytest.raises(SpecError, match=f"seed of the tuning is {seed}; give a whole number from 0"):
        Tuning({"learning_rate": RATES}, seed=seed)


def test_suite_that_was_stopped_in_its_trials_is_not_taken_for_nothing(tmp_path):
    class Stopping(Tuned):
        def __call__(self, request, *, progress=None):
            if len(self.requests) == 2:
                raise KeyboardInterrupt
            return super().__call__(request, progress=progress)

    with pytest.raises(KeyboardInterrupt):
        run(SUITE, tmp_path, Stopping())
    with pytest.raises(OutputExistsError, match="holds the runs of another suite"):
        run(replace(SUITE, name="other"), tmp_path, Tuned())


def climbed(score):
    """Return the rates that a ladder tried with their scores, and the ladder."""
    ladder, tried = Ladder(LADDER), {}
    while suggested := ladder.suggest():
        scores = [score(values["learning_rate"]) for values in suggested]
        ladder.report(scores)
        tried |= zip((values["learning_rate"] for values in suggested), scores, strict=True)
    return tried, ladder


@given(st.floats(-6, 6), st.floats(0.01, 5), st.integers(-1, 8))
def test_ladder_ends_with_a_worse_rate_on_both_sides_of_the_best(peak, slope, diverges):
    """The score falls on both sides of a peak, and every rate above a bound fails."""

    def score(rate):
        rung = math.log2(rate / 1e-3)
        return -math.inf if rung > diverges + 0.5 else -slope * abs(rung - peak)

    tried, ladder = climbed(score)
    rates = sorted(tried)
    position = rates.index(max(tried, key=tried.get))
    assert 0 < position < len(rates) - 1
    assert all(right / left == pytest.approx(2, rel=0.01) for left, right in pairwise(rates))
    (refined,) = ladder.refine()
    assert rates[position - 1] < refined["learning_rate"] < rates[position + 1]


def test_ladder_without_a_peak_ends_at_the_limit_and_equal_scores_at_once():
    rising, _ = climbed(lambda rate: rate)
    assert len(rising) == MOST_RUNGS
    flat, _ = climbed(lambda rate: 0.5)
    assert len(flat) == 3


def test_methods_on_ladders_get_equally_many_trials_and_records_have_the_curve(tmp_path):
    tuning = Tuning(LADDER, "ladder", base={"steps": 5})
    run(replace(SUITE, tuning=tuning), tmp_path, Tuned())
    curves = {method: RunRecord.read(tmp_path / f"{method}-seed0").tuning.curve for method in BEST}
    assert len(curves["lora"]) == len(curves["tlora"]) > 3
    for method, curve in curves.items():
        assert (
            abs(math.log2(max(curve, key=lambda point: point["score"])["learning_rate"] / BEST[method])) < 0.6
        )


def test_tasks_share_the_rate_that_is_best_on_average(tmp_path):
    tasks = {"mrpc": {}, "stsb": {}, "sst2": {}}
    tuning = replace(SUITE.tuning, shared=("mrpc", "stsb"))
    trainer = Tuned()
    run(replace(SUITE, base={"model": "minilm"}, tasks=tasks, tuning=tuning), tmp_path, trainer)
    trials = [request for request in trainer.requests if request.hold_out]
    assert {(request.task, request.seed) for request in trials} == {("mrpc", 0), ("stsb", 1)}
    record = RunRecord.read(tmp_path / "sst2-lora-seed0")
    assert (record.tuning.values, len(record.tuning.curve)) == ({"learning_rate": BEST["lora"]}, 3)
    assert record.training.learning_rate == BEST["lora"]


def test_ladder_begins_at_the_rate_of_its_method(tmp_path):
    file = tmp_path / "some.toml"
    file.write_text(
        'name = "some"\n[tuning]\nsampler = "ladder"\nspace = { learning_rate = { factor = 2 } }\n'
        '[[methods]]\nname = "lora"\n[[methods]]\nname = "tlora"\n'
        "tune = { learning_rate = { center = 0.02 } }\n"
    )
    centers = [method.space["learning_rate"]["center"] for method in read_suite(str(file)).methods]
    assert centers == [find_method("lora").learning_rate, 0.02]
