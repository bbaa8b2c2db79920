"""What records say to a claim: only what they can say, for all comparisons together."""

from dataclasses import replace

import pytest

from rankfold.bench.statistics.claims import Claim, Rules, judge
from rankfold.runs.record import StoredInfo
from tests.support.records import make_record, with_request

SEEDS = (0, 1, 2)


def rows(**qualities):
    """Return three runs for each label, right with the probability that is given."""
    return {
        label: [make_record(label, seed=seed, quality=quality, examples=900) for seed in SEEDS]
        for label, quality in qualities.items()
    }


def answer(claim, **qualities):
    (judgement,) = judge([claim], {("minilm", "bbc_news"): rows(**qualities)})
    return judgement.verdict


def claim(expect, *comparison, margin=0.0):
    return Claim("X", "a paper", "It is so.", expect, (comparison,), margin)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [(0.9, 0.7, "supported"), (0.7, 0.9, "contradicted"), (0.8, 0.8, "not separated")],
)
def test_greater_is_answered_by_the_paired_difference(first, second, expected):
    assert answer(claim("greater", "a", "b"), a=first, b=second) == expected


@pytest.mark.parametrize("expect", ["greater", "not inferior", "rising"])
def test_of_an_error_less_is_better(expect):
    def losses(label, loss):
        runs = [make_record(label, seed=seed, examples=90) for seed in SEEDS]
        return [
            replace(
                run,
                task=replace(run.task, kind="image_generation", metric="denoising_loss", label_names=None),
                metrics={"denoising_loss": loss},
                baselines={"base": 1.0},
                predictions=tuple(
                    replace(row, label=1.0, prediction=loss + (place + run.training.seed) % 7 / 1000)
                    for place, row in enumerate(run.predictions)
                ),
            )
            for run in runs
        ]

    study = {"high": losses("high", 0.5), "low": losses("low", 0.3)}
    for rows_of_claim, low_first in ((("low", "high"), True), (("high", "low"), False)):
        is_better = low_first is (expect != "rising")
        (judgement,) = judge([claim(expect, *rows_of_claim, margin=0.01)], {("m", "t"): study})
        assert judgement.verdict == ("supported" if is_better else "contradicted")


@pytest.mark.parametrize(
    ("first", "margin", "expected"),
    [
        (0.8, 0.1, "supported"),
        (0.75, 0.1, "supported"),
        (0.6, 0.1, "contradicted"),
        (0.795, 0.001, "not separated"),
    ],
)
def test_not_inferior_asks_for_no_more_loss_than_the_margin(first, margin, expected):
    assert answer(claim("not inferior", "a", "b", margin=margin), a=first, b=0.8) == expected


@pytest.mark.parametrize(
    ("qualities", "expected"),
    [
        ((0.6, 0.7, 0.8, 0.9), "supported"),
        ((0.9, 0.8, 0.7, 0.6), "contradicted"),
        ((0.8, 0.8, 0.8, 0.8), "not separated"),
    ],
)
def test_rising_is_answered_by_a_line_through_the_rows(qualities, expected):
    names = dict(zip("abcd", qualities, strict=True))
    assert answer(claim("rising", *names), **names) == expected


def test_line_gains_from_the_first_row_to_the_last_what_it_should():
    found = rows(a=1.0, b=1.0, c=1.0)
    flat = replace(found["a"][0], predictions=found["a"][0].predictions)
    (judgement,) = judge([claim("rising", "a", "b", "c")], {("minilm", "bbc_news"): {**found, "a": [flat]}})
    assert judgement.findings[0].difference.interval.value == pytest.approx(0.0)
    (judgement,) = judge([claim("rising", "a", "b", "c")], {("m", "t"): rows(a=0.5, b=0.7, c=0.9)})
    means = judgement.findings[0].means
    assert judgement.findings[0].difference.interval.value == pytest.approx(means[2] - means[0])


def test_claim_of_several_comparisons_needs_all_and_falls_with_one():
    both = Claim("X", "a paper", "It is so.", "greater", (("a", "b"), ("c", "b")))
    assert answer(both, a=0.9, b=0.7, c=0.9) == "supported"
    assert answer(both, a=0.9, b=0.7, c=0.7) == "not separated"
    assert answer(both, a=0.9, b=0.7, c=0.5) == "contradicted"


def test_rows_that_only_guess_support_nothing():
    alike = claim("not inferior", "a", "b", margin=0.1)
    assert answer(alike, a=0.22, b=0.22) == "not separated"
    assert answer(alike, a=0.6, b=0.6) == "supported"


@pytest.mark.parametrize(("examples", "expected"), [(24, "not separated"), (400, "supported")])
def test_the_same_predictions_support_a_margin_only_on_enough_examples(examples, expected):
    record = make_record(examples=examples)
    same = {("minilm", "bbc_news"): {"a": [record], "b": [record]}}
    assert judge([claim("not inferior", "a", "b", margin=0.02)], same)[0].verdict == expected


def test_claim_without_runs_is_not_run():
    missing = {("minilm", "bbc_news"): {**rows(a=0.9), "b": []}}
    (judgement,) = judge([claim("greater", "a", "b")], missing)
    assert (judgement.verdict, judgement.findings[0].means) == ("not run", ())


def test_many_comparisons_make_each_harder_to_believe():
    one = claim("greater", "a", "b")
    close = {"a": 0.82, "b": 0.785}
    many = {("minilm", f"task{number}"): rows(a=0.8, b=0.8) for number in range(40)}
    many["minilm", "bbc_news"] = rows(**close)
    alone = judge([one], {("minilm", "bbc_news"): rows(**close)})[0].findings[0]
    among = next(each for each in judge([one], many)[0].findings if each.task == "bbc_news")
    assert alone.difference == among.difference
    assert (alone.verdict, among.verdict) == ("supported", "not separated")


def with_data(record, sha256):
    return replace(record, data=replace(record.data, sha256=sha256))


def test_runs_of_different_data_say_nothing_to_a_claim():
    found = rows(a=0.9, b=0.7)
    other = {**found, "b": [with_data(run, "another") for run in found["b"]]}
    (judgement,) = judge([claim("greater", "a", "b")], {("minilm", "bbc_news"): other})
    assert judgement.verdict == "not run"
    assert judgement.findings[0].note == "measured on different data"


def test_runs_without_an_example_in_common_say_nothing_to_a_claim():
    found = rows(a=0.9, b=0.7)
    moved = [
        replace(run, predictions=tuple(replace(item, id=f"other {item.id}") for item in run.predictions))
        for run in found["b"]
    ]
    (judgement,) = judge([claim("greater", "a", "b")], {("minilm", "bbc_news"): {**found, "b": moved}})
    assert judgement.verdict == "not run"
    assert judgement.findings[0].note == "measured on no example in common"


def test_means_are_of_the_examples_that_are_compared():
    found = rows(a=0.9, b=0.7)
    short = [replace(run, predictions=run.predictions[:100]) for run in found["b"]]
    (judgement,) = judge([claim("greater", "a", "b")], {("minilm", "bbc_news"): {**found, "b": short}})
    (finding,) = judgement.findings
    assert finding.means[0] - finding.means[1] == pytest.approx(finding.difference.interval.value)


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (lambda run: replace(run, model=replace(run.model, sha256="ef" * 32)), "different base models"),
        (lambda run: with_request(run, steps=7), "different settings"),
    ],
)
def test_seeds_that_do_not_belong_together_support_nothing(change, note):
    found = rows(a=0.9, b=0.7)
    found["a"][2] = change(found["a"][2])
    (judgement,) = judge([claim("greater", "a", "b")], {("minilm", "bbc_news"): found})
    assert (judgement.verdict, note in judgement.findings[0].note) == ("not run", True)


@pytest.mark.parametrize(
    ("first", "margin", "expected"),
    [
        (0.8, 0.1, "supported"),
        (0.6, 0.1, "contradicted"),
        (0.98, 0.1, "contradicted"),
        (0.8, 0.002, "not separated"),
    ],
)
def test_equivalent_asks_for_a_difference_inside_the_margin_on_both_sides(first, margin, expected):
    assert answer(claim("equivalent", "a", "b", margin=margin), a=first, b=0.8) == expected


def on_tasks(**qualities):
    """Return the rows `a` and `b` on tasks, by the quality of both there."""
    return {("minilm", task): rows(a=pair[0], b=pair[1]) for task, pair in qualities.items()}


def test_mean_over_tasks_decides_and_each_task_is_told():
    mixed = on_tasks(one=(0.9, 0.8), two=(0.78, 0.8), three=(0.9, 0.8))
    (judgement,) = judge([claim("greater", "a", "b")], mixed, rules=Rules())
    (finding,) = judgement.findings
    assert (judgement.verdict, finding.task, len(finding.parts)) == ("supported", "mean of 3 tasks", 3)
    values = [part.difference.interval.value for part in finding.parts]
    assert finding.difference.interval.value == pytest.approx(sum(values) / 3)
    assert judge([claim("greater", "a", "b")], mixed, rules=Rules(tasks="each"))[0].verdict != "supported"


def test_task_whose_reference_only_guesses_decides_nothing():
    studies = on_tasks(one=(0.9, 0.8), two=(0.9, 0.22))
    (judgement,) = judge([claim("greater", "a", "b")], studies, rules=Rules(), reference="b")
    (finding,) = judgement.findings
    assert (finding.task, judgement.verdict) == ("one", "supported")
    assert [part.note for part in finding.parts] == ["", "the reference b is not above guessing"]
    (judgement,) = judge(
        [claim("greater", "a", "b")], on_tasks(two=(0.9, 0.22)), rules=Rules(), reference="b"
    )
    assert judgement.verdict == "not separated"


def test_findings_name_the_relation_and_the_difference_that_could_have_been_seen():
    near = claim("equivalent", "a", "b", margin=0.1)
    (one,) = judge([near], on_tasks(one=(0.8, 0.8)))[0].findings
    assert one.relation(near) == "equivalent"
    assert 0 < one.detectable < 0.1
    many = judge([near] * 9, on_tasks(one=(0.8, 0.8)))[0].findings[0]
    assert many.detectable > one.detectable


def rounded(record, change):
    """Return a run that is stored in four bits, with the change of its metric that this made."""
    score = record.metrics[record.task.metric] + change
    stored = replace(record, stored={"int4": StoredInfo(900, score, 1200)})
    return with_request(stored, store="int4")


def test_run_that_is_stored_rounded_has_the_score_of_what_is_stored():
    exact = rows(a=0.9, b=0.8)
    small = {**exact, "a": [rounded(run, -0.05 - 0.001 * run.training.seed) for run in exact["a"]]}
    (before,), (after,) = (
        judge([claim("greater", "a", "b")], {("minilm", "bbc_news"): studies})[0].findings
        for studies in (exact, small)
    )
    change = after.difference.interval.value - before.difference.interval.value
    assert change == pytest.approx(-0.051)
    assert after.means[0] - before.means[0] == pytest.approx(-0.051)
    assert after.means[1] == before.means[1]
    unstored = [with_request(run, store=None) for run in small["a"]]
    (same,) = judge([claim("greater", "a", "b")], {("m", "t"): {**small, "a": unstored}})[0].findings
    assert same.means == before.means
