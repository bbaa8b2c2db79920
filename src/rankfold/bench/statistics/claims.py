"""Claims of papers as comparisons of variants, and the verdict of records on them.

Every comparison is one number: a weighted sum of the rows' metrics, paired over examples and seeds, held
against a bound. It is decided on the mean over the tasks, or on each task, as the rules of the suite say.
Verdicts are corrected together (Holm), and a claim with several comparisons is supported only if all of them
are, and contradicted if any of them is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, final

from pydantic import BeforeValidator

from rankfold.bench.statistics.comparison import (
    LEVEL,
    Difference,
    Scores,
    baselines_of,
    holm_rejections,
    knows_metric,
    mean_metric,
    metric_interval,
    paired_contrast,
    scores_of,
    shared_examples,
)
from rankfold.bench.statistics.confidence import mean_estimate
from rankfold.runs.record import RunRecord, measured_on
from rankfold.tasks.metrics import is_smaller_better


def _present_name(expect: Any) -> Any:
    """Return the name of an expectation; version 0.1.0 called one of them otherwise."""
    return "not inferior" if expect == "within" else expect


Expect = Annotated[Literal["greater", "not inferior", "equivalent", "rising"], BeforeValidator(_present_name)]
ClaimVerdict = Literal["supported", "contradicted", "not separated", "not run"]

# Of several answers the first of these is that of the claim.
_STRONGEST: tuple[ClaimVerdict, ...] = ("contradicted", "not run", "not separated", "supported")

# The relation of the first row to the second, by expectation and verdict.
_RELATIONS: Mapping[tuple[str, ClaimVerdict], str] = {
    ("greater", "supported"): "better",
    ("greater", "contradicted"): "worse",
    ("not inferior", "supported"): "not inferior",
    ("not inferior", "contradicted"): "worse",
    ("equivalent", "supported"): "equivalent",
    ("equivalent", "contradicted"): "different",
    ("rising", "supported"): "rising",
    ("rising", "contradicted"): "falling",
}


@final
@dataclass(frozen=True, slots=True)
class Rules:
    """How the claims of a suite are decided; stated before its runs.

    Args:
        margin: The largest difference that does not matter, in units of the metric, where a claim has no
            margin of its own.
        tasks: Whether a comparison is decided on the mean over the tasks, or on each of them.
    """

    margin: float = 0.01
    tasks: Literal["mean", "each"] = "mean"


@final
@dataclass(frozen=True, slots=True)
class Claim:
    """A sentence of a paper that runs can speak to.

    Args:
        id: Its number in the list of experiments, such as "X7".
        source: The paper, and the table or figure.
        text: The sentence.
        expect: How the rows of each comparison should lie: `greater`, the first above the second;
            `not inferior`, the first not below the second by more than `margin`; `equivalent`, the two no
            more than `margin` apart; `rising`, a straight line through all of them goes up.
        comparisons: Labels of the rows of the suite.
        margin: In units of the metric.
        tasks: The tasks it speaks of; all of the suite if empty.
    """

    id: str
    source: str
    text: str
    expect: Expect
    comparisons: tuple[tuple[str, ...], ...]
    margin: float = 0.0
    tasks: tuple[str, ...] = ()

    @property
    def bound(self) -> float:
        """The value that the difference has to exceed; for `equivalent` the margin on both sides."""
        return -self.margin if self.expect == "not inferior" else self.margin

    def detectable(self, difference: Difference, level: float) -> float:
        """Return the smallest difference that the design shows with 80 % power, or the smallest margin."""
        if self.expect == "equivalent":
            return difference.estimate.detectable_margin(level)
        return difference.estimate.detectable(level)


@final
@dataclass(frozen=True, slots=True)
class Finding:
    """One comparison on one task, or on the mean over several.

    Attributes:
        model: The base model's name.
        task: The task's name; how many they are if several.
        metric: The metric.
        rows: Labels, in the order of the claim.
        means: The metric of each row over the examples and seeds all rows share; empty if there are none.
        seeds: How many seeds they share.
        difference: The first less the second, of an error the second less the first, so that more is
            better; for `rising`, what a straight line through the rows gains from
            the first to the last. None if it cannot be said.
        verdict: The verdict, corrected for all comparisons of the suite.
        note: Why the runs cannot speak to the claim although they ended well; empty if they can.
        detectable: The smallest difference that this design shows with 80 % power among the comparisons of
            the suite; for `equivalent` the smallest margin. None without a difference.
        parts: The findings on single tasks, if this one is on their mean.
    """

    model: str
    task: str
    metric: str
    rows: tuple[str, ...]
    means: tuple[float, ...]
    seeds: int
    difference: Difference | None
    verdict: ClaimVerdict = "not run"
    note: str = ""
    detectable: float | None = None
    parts: tuple["Finding", ...] = ()

    def relation(self, claim: Claim) -> str:
        """Return the verdict as the relation of the rows: better, worse, equivalent, not inferior, ..."""
        return _RELATIONS.get((claim.expect, self.verdict), self.verdict)


@final
@dataclass(frozen=True, slots=True)
class JudgedClaim:
    """A claim with its verdict and all findings.

    Attributes:
        claim: The claim.
        verdict: The strongest verdict of its findings.
        findings: One for each comparison and model, and for each task if they are decided one by one.
    """

    claim: Claim
    verdict: ClaimVerdict
    findings: tuple[Finding, ...]


VariantRecords = Mapping[str, Sequence[RunRecord]]
"""Records that ended well by the label of their row, for one model and task."""


def judge(
    claims: Sequence[Claim],
    studies: Mapping[tuple[str, str], VariantRecords],
    *,
    rules: Rules | None = None,
    reference: str | None = None,
) -> list[JudgedClaim]:
    """Return the verdict of records on each claim.

    Args:
        claims: The claims.
        studies: The rows of each model and task, by the names of both.
        rules: How they are decided; each task by itself if None, as suites of version 0.1.0 were.
        reference: Label of the row without whose learning a task decides nothing; any row if None.
    """
    findings = [
        (claim, finding)
        for claim in claims
        for rows in claim.comparisons
        for finding in _findings(claim, rows, studies, rules, reference)
    ]
    p_values = [_p_value(claim, finding.difference) for claim, finding in findings if finding.difference]
    rejected = iter(holm_rejections(p_values))
    # In the first step of Holm's method every comparison has this share of the chance.
    level = 1 - (1 - LEVEL) / max(1, len(p_values))
    judged = [
        (
            claim,
            replace(
                finding,
                verdict=_verdict(claim, finding, is_rejected=next(rejected)),
                detectable=claim.detectable(finding.difference, level),
            ),
        )
        if finding.difference
        else (claim, finding)
        for claim, finding in findings
    ]
    return [_judge_claim(claim, [finding for other, finding in judged if other is claim]) for claim in claims]


def _findings(
    claim: Claim,
    rows: tuple[str, ...],
    studies: Mapping[tuple[str, str], VariantRecords],
    rules: Rules | None,
    reference: str | None,
) -> list[Finding]:
    """Return the findings of one comparison: on each task, or for each model on the mean over its tasks."""
    by_model: dict[str, list[Finding]] = {}
    for (model, task), study in studies.items():
        if (not claim.tasks or task in claim.tasks) and set(rows) <= study.keys():
            finding = _finding(claim, rows, model, task, study, reference)
            by_model.setdefault(model, []).append(finding)
    if rules is None or rules.tasks == "each":
        return [finding for findings in by_model.values() for finding in findings]
    return [_mean_finding(claim, findings) for findings in by_model.values()]


def _mean_finding(claim: Claim, findings: Sequence[Finding]) -> Finding:
    """Return the finding on the mean over the tasks that can speak to the claim."""
    usable = [finding for finding in findings if finding.difference and not finding.note]
    if len(findings) == 1 or not usable:
        return findings[0]
    estimate = mean_estimate([finding.difference.estimate for finding in usable if finding.difference])
    columns = zip(*(finding.means for finding in usable), strict=True)
    names = [finding.task for finding in usable]
    return Finding(
        usable[0].model,
        names[0] if len(names) == 1 else f"mean of {len(names)} tasks",
        usable[0].metric,
        usable[0].rows,
        tuple(sum(means) / len(means) for means in columns),
        min(finding.seeds for finding in usable),
        Difference(estimate, _tested_bound(claim)),
        parts=tuple(findings),
    )


def _tested_bound(claim: Claim) -> float:
    """Return the value that the two-sided p-value is of; an equivalence has tests of its own."""
    return 0.0 if claim.expect == "equivalent" else claim.bound


def _p_value(claim: Claim, difference: Difference) -> float:
    """Return the p-value of the test that decides a claim, in whichever direction.

    A claim of equivalence is supported by two one-sided tests, and contradicted by one of a difference beyond
    the margin. At most one of the two is a false statement, whatever the truth.
    """
    if claim.expect != "equivalent":
        return difference.p_value
    estimate = difference.estimate
    return min(estimate.p_value_within(claim.margin), _p_value_beyond(difference, claim.margin))


def _p_value_beyond(difference: Difference, margin: float) -> float:
    """Return the two-sided p-value of a difference that is larger than a margin."""
    estimate = difference.estimate
    size = replace(estimate, value=abs(estimate.value))
    return min(1.0, 2 * size.p_value_above(margin))


def _finding(
    claim: Claim,
    labels: tuple[str, ...],
    model: str,
    task: str,
    rows: VariantRecords,
    reference: str | None,
) -> Finding:
    """Return the finding of one comparison on one task, without a verdict."""
    runs = [rows.get(label, ()) for label in labels]
    seeds = set[int].intersection(*({run.training.seed for run in row} for row in runs))
    runs = [[run for run in row if run.training.seed in seeds] for row in runs]
    metric = next((run.task.metric for row in runs for run in row), "")
    finding = Finding(model, task, metric, labels, (), len(seeds), None)
    if not metric or not knows_metric([run for row in runs for run in row], metric):
        return finding
    if len({measured_on(run) for row in runs for run in row}) > 1:
        return replace(finding, note="measured on different data")
    if len({run.model.sha256 for row in runs for run in row}) > 1:
        return replace(finding, note="trained on different base models")
    if any(len({run.request.identity_of_seeds() for run in row}) > 1 for row in runs):
        return replace(finding, note="seeds of one row trained with different settings")
    examples = shared_examples([run for row in runs for run in row])
    if not examples:
        return replace(finding, note="measured on no example in common")
    scores = [scores_of(row, examples, metric) for row in runs]
    sign = -1 if is_smaller_better(metric) else 1
    weights = [sign * weight for weight in _weights(claim, len(labels))]
    difference = paired_contrast(scores, weights, metric, bound=_tested_bound(claim))
    return replace(
        finding,
        means=tuple(mean_metric(row_scores, metric) for row_scores in scores),
        difference=replace(difference, is_error=False),
        note=_missing_learning(runs, scores, metric, rows, reference),
    )


def _missing_learning(
    runs: Sequence[Sequence[RunRecord]],
    scores: Sequence[Scores],
    metric: str,
    rows: VariantRecords,
    reference: str | None,
) -> str:
    """Return which row has not learned the task, so that it decides nothing; empty if all is well."""
    if reference and (records := rows.get(reference)):
        own_scores = scores_of(records, shared_examples(records), metric)
        is_above = _has_learned(records, own_scores, metric)
        return "" if is_above else f"the reference {reference} is not above guessing"
    is_above = any(_has_learned(*row, metric) for row in zip(runs, scores, strict=True))
    return "" if is_above else "no row is above guessing"


def _has_learned(runs: Sequence[RunRecord], scores: Scores, metric: str) -> bool:
    """Whether a row is clear of a model that never looks at its input."""
    guessing, interval = baselines_of(runs).values(), metric_interval(scores, metric)
    if guessing and is_smaller_better(metric):
        return interval.high < min(guessing)
    return interval.low > max(guessing, default=0.0)


def _weights(claim: Claim, count: int) -> tuple[float, ...]:
    """Return how much each row counts: the second is subtracted from the first, or a line is fitted."""
    if claim.expect != "rising":
        return (1.0, -1.0)
    middle = (count - 1) / 2
    squares = sum((place - middle) ** 2 for place in range(count))
    return tuple((place - middle) / squares * (count - 1) for place in range(count))


def _verdict(claim: Claim, finding: Finding, *, is_rejected: bool) -> ClaimVerdict:
    assert finding.difference is not None, "what was not compared has no verdict"
    if not is_rejected or finding.note:
        return "not separated"
    value = finding.difference.interval.value
    is_supported = abs(value) < claim.margin if claim.expect == "equivalent" else value > claim.bound
    return "supported" if is_supported else "contradicted"


def _judge_claim(claim: Claim, findings: Sequence[Finding]) -> JudgedClaim:
    verdicts_found: list[ClaimVerdict] = sorted(
        (finding.verdict for finding in findings), key=_STRONGEST.index
    )
    return JudgedClaim(claim, verdicts_found[0] if verdicts_found else "not run", tuple(findings))
