"""Successive halving: the best go on, ties and failures have their order, and a stopped choice goes on."""

import itertools
from dataclasses import replace

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankfold.bench.executors.base import Inline
from rankfold.bench.fit.budget import Budget, Size
from rankfold.bench.fit.candidates import Candidate
from rankfold.bench.fit.search import FitPlan, fit, rung_sizes, rung_steps
from rankfold.bench.statistics.comparison import rank_records
from rankfold.cli.main import cli
from rankfold.errors import DataError, OutputExistsError, SpecError, TrainingError
from rankfold.presets import discover
from rankfold.runs.output import folder_beside
from rankfold.runs.record import RunRecord
from rankfold.tasks.metrics import ANSWER_LOSS
from tests.support.records import fail, make_record, reading
from tests.support.tiny_models import review_rows, write_splits

# Nothing is trained here, so nothing is read: records that a double writes are of no real data.
BASE = {"model": "minilm", "data": "news.jsonl"}
NAMES = list(discover())[:10]
LORA = Candidate("peft:lora", {"r": 1}, Size(10, 40, 1.0))


class Trainer:
    """Stands in for training: a run scores what its method is said to score, or fails."""

    def __init__(self, scores, *, failing=(), stops_after=None):
        self.scores, self.failing, self.stops_after, self.asked = scores, failing, stops_after, []

    def __call__(self, request, *, progress=None):
        if len(self.asked) == self.stops_after:
            raise KeyboardInterrupt
        self.asked.append((request.out.parent.name, request.method))
        if request.method in self.failing:
            raise TrainingError("the loss is not a number.")
        made = make_record(request.method, steps=request.steps, options=dict(request.options))
        metrics = {"accuracy": self.scores.get(request.method, 0.5)}
        record = replace(made, request=request, metrics=metrics)
        request.out.mkdir(parents=True)
        record.write(request.out)
        return record


@pytest.fixture
def plan(tmp_path):
    candidates = tuple(Candidate(name, {"r": 2}, Size(10, 40, 1.0)) for name in NAMES)
    return FitPlan(
        out=tmp_path / "fit",
        base=BASE,
        budget=Budget(params=10),
        candidates=candidates,
        reference=None,
        steps=90,
        eta=3,
    )


SCORES = {name: place / 20 for place, name in enumerate(NAMES)}


@given(candidates=st.integers(1, 200), eta=st.integers(2, 6))
def test_rungs_shrink_to_so_few_that_one_is_chosen_of_them(candidates, eta):
    sizes = rung_sizes(candidates, eta)
    assert sizes[0] == candidates
    assert sizes[-1] <= eta
    assert all(later < earlier and later * eta >= earlier for earlier, later in itertools.pairwise(sizes))


@given(rungs=st.integers(1, 6), steps=st.integers(1, 1000), eta=st.integers(2, 5))
def test_steps_grow_to_what_was_asked_for(rungs, steps, eta):
    found = rung_steps(rungs, steps, eta)
    assert (len(found), found[-1]) == (rungs, steps)
    assert found == sorted(found)
    assert found[0] >= 1


def test_best_of_each_rung_go_on_and_the_best_of_the_last_is_chosen(plan):
    trainer = Trainer(SCORES)
    fitted = fit(plan, executor=Inline(trainer))
    assert trainer.asked == [
        *(("rung-1", name) for name in NAMES),
        *(("rung-2", name) for name in NAMES[:-5:-1]),
        *(("rung-3", name) for name in NAMES[:-3:-1]),
    ]
    assert fitted.winner.method == NAMES[-1]
    assert [record.training.steps for record in fitted.records] == [10] * 10 + [30] * 4 + [90] * 2


def test_every_run_says_its_place_in_the_choice(plan):
    fitted = fit(plan, executor=Inline(Trainer(SCORES)))
    for record in fitted.records:
        assert (record.fit.budget, record.fit.steps) == ("10 trained parameters", (10, 30, 90))
        assert record.training.steps == record.fit.steps[record.fit.rung - 1]
    assert {(record.fit.rung, record.fit.kept) for record in fitted.records} == {(1, 4), (2, 2), (3, 1)}
    written = RunRecord.read(plan.out / "rung-1" / NAMES[0])
    assert written == fitted.records[0]


def test_official_validation_split_is_left_alone_until_the_winner_is_trained(plan):
    fitted = fit(plan, executor=Inline(Trainer(SCORES)))
    assert all(record.request.hold_out for record in fitted.records)
    assert not fitted.request.hold_out
    assert fitted.request.steps is None


def test_command_of_the_winner_is_one_that_train_takes(plan):
    _, word, *words = fit(plan, executor=Inline(Trainer(SCORES))).request.command()
    program = click.Context(cli, **cli.context_settings)  # without it click remembers other help options
    options = cli.get_command(program, word).make_context(word, words, program).params
    assert (options["method"], options["options"]) == (NAMES[-1], {"r": 2})


def test_failed_candidate_is_a_loser_with_its_reason(plan):
    best = NAMES[-1]
    fitted = fit(plan, executor=Inline(Trainer(SCORES, failing=[best])))
    assert fitted.winner.method == NAMES[-2]
    (lost,) = [record for record in fitted.records if record.status == "failed"]
    assert (lost.method.name, lost.error, lost.fit.rung) == (best, "the loss is not a number.", 1)


def test_failed_one_never_goes_on_even_where_there_is_room(plan):
    fitted = fit(plan, executor=Inline(Trainer(SCORES, failing=NAMES[:-1])))
    assert {record.method.name for record in fitted.records if record.fit.rung > 1} == {NAMES[-1]}


def test_rung_that_fails_as_a_whole_is_an_error(plan):
    with pytest.raises(TrainingError, match="the loss is not a number"):
        fit(plan, executor=Inline(Trainer(SCORES, failing=NAMES)))


def test_chosen_one_is_held_against_lora_of_the_budget(plan):
    trainer = Trainer(SCORES)
    fitted = fit(replace(plan, reference=LORA), executor=Inline(trainer))
    assert trainer.asked[-1][1] == "peft:lora"
    reference = fitted.records[-1]
    assert (reference.fit.role, reference.training.steps) == ("reference", 90)
    assert fitted.winner.method == NAMES[-1]


@pytest.mark.parametrize("stop", [0, 1, 9, 10, 13, 15])
def test_stopped_choice_goes_on_where_it_was_and_chooses_the_same(plan, stop):
    with pytest.raises(KeyboardInterrupt):
        fit(plan, executor=Inline(Trainer(SCORES, stops_after=stop)))
    again = Trainer(SCORES)
    fitted = fit(plan, executor=Inline(again))
    assert len(again.asked) == 16 - stop
    assert fitted.winner.method == NAMES[-1]
    assert all(record.fit is not None for record in fitted.records)


@pytest.mark.parametrize("stop", [1, len(NAMES), len(NAMES) + 4])
def test_stopped_choice_does_not_go_on_with_other_data(plan, tmp_path, stop):
    folder = write_splits(tmp_path / "talks", train=review_rows(20))
    plan = replace(plan, base={**BASE, "data": str(folder)})
    with pytest.raises(KeyboardInterrupt):
        fit(plan, executor=Inline(reading(Trainer(SCORES, stops_after=stop))))
    write_splits(folder, train=review_rows(20, seed=7))
    later = Trainer(SCORES)
    with pytest.raises(DataError, match=r"had the hash \w{8} when it was first run, and has \w{8} now"):
        fit(plan, executor=Inline(reading(later)))
    assert later.asked == []


def test_finished_choice_is_not_trained_again(plan):
    first = fit(plan, executor=Inline(Trainer(SCORES)))
    again = Trainer(SCORES)
    assert fit(plan, executor=Inline(again)) == first
    assert again.asked == []


@pytest.mark.parametrize(
    "change",
    [{"steps": 45}, {"eta": 2}, {"budget": Budget(params=11)}, {"base": {**BASE, "seed": 1}}],
    ids=str,
)
def test_folder_of_another_choice_is_refused_unless_it_may_be_replaced(plan, change):
    fit(plan, executor=Inline(Trainer(SCORES)))
    other = replace(plan, **change)
    trainer = Trainer(SCORES)
    with pytest.raises(OutputExistsError, match="holds another choice"):
        fit(other, executor=Inline(trainer))
    assert trainer.asked == []
    fit(other, executor=Inline(trainer), overwrite=True)
    assert len(trainer.asked) >= len(NAMES)


def test_replaced_choice_leaves_nothing_unfinished_of_its_reference(plan):
    plan = replace(plan, reference=LORA)
    fit(plan, executor=Inline(Trainer(SCORES)))
    unfinished, of_the_winner = (folder_beside(plan.out / name) for name in ("reference", "winner"))
    for folder in (unfinished, of_the_winner):
        folder.mkdir()
    fit(replace(plan, budget=Budget(params=11)), executor=Inline(Trainer(SCORES)), overwrite=True)
    assert (unfinished.exists(), of_the_winner.exists()) == (False, True)


def test_folder_of_something_else_is_never_touched(plan):
    plan.out.mkdir()
    (plan.out / "thesis.tex").touch()
    for overwrite in (False, True):
        with pytest.raises(OutputExistsError, match="something else"):
            fit(plan, executor=Inline(Trainer(SCORES)), overwrite=overwrite)


def test_file_in_the_place_of_the_folder_is_refused_before_anything_is_trained(plan):
    plan.out.touch()
    trainer = Trainer(SCORES)
    with pytest.raises(OutputExistsError):
        fit(plan, executor=Inline(trainer))
    assert trainer.asked == []


@pytest.mark.parametrize("change", [{"steps": 0}, {"eta": 1}], ids=str)
def test_plan_that_cannot_halve_is_refused(plan, change):
    with pytest.raises(SpecError):
        replace(plan, **change)


def test_ties_are_broken_by_loss_then_by_size_then_by_order():
    first = make_record("lora", size=400)
    curve = replace(first.curve, validation=({"step": 1, "loss": 0.1},))
    lower_loss = replace(first, curve=curve)
    smaller = make_record("lora", size=40)
    failed = fail(first)
    better = replace(first, metrics={"accuracy": 1.0})
    assert rank_records([failed, first, smaller, lower_loss, better]) == [
        better,
        lower_loss,
        smaller,
        first,
        failed,
    ]
    assert rank_records([first, other := replace(first, created="later")]) == [first, other]


def test_loss_of_answers_is_better_the_smaller_it_is():
    base = make_record("lora")
    low, high = (
        replace(base, task=replace(base.task, metric=ANSWER_LOSS), metrics={ANSWER_LOSS: value})
        for value in (0.1, 0.9)
    )
    assert rank_records([high, low]) == [low, high]
