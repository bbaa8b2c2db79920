"""Claims of papers as comparisons of variants, and the verdict of records on them.

Every comparison is one number per task: a weighted sum of the rows' metrics, paired over examples and seeds,
held against a bound. Verdicts are corrected together (Holm), and a claim with several comparisons is
supported only if all of them are, and contradicted if any of them is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, final

from rankfold.bench.statistics.comparison import (
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
from rankfold.runs.record import RunRecord, measured_on
from rankfold.tasks.metrics import is_smaller_better

Expect = Literal["greater", "within", "rising"]
ClaimVerdict = Literal["supported", "contradicted", "not separated", "not run"]

# Of several answers the first of these is that of the claim.
_STRONGEST: tuple[ClaimVerdict, ...] = ("contradicted", "not run", "not separated", "supported")


@final
@dataclass(frozen=True, slots=True)
class Claim:
    """A sentence of a paper that runs can speak to.

    Args:
        id: Its number in the list of experiments, such as "X7".
        source: The paper, and the table or figure.
        text: What it says, in a sentence.
        expect: How the rows of each comparison should lie: `greater`, the first above the second; `within`,
            the first not below the second by more than `margin`; `rising`, a straight line through all of
            them goes up.
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
        """The value that the difference has to exceed."""
        return -self.margin if self.expect == "within" else self.margin


@final
@dataclass(frozen=True, slots=True)
class Finding:
    """One comparison on one task.

    Attributes:
        model: The base model's name.
        task: The task's name.
        metric: The metric.
        rows: Labels, in the order of the claim.
        means: The metric of each row over the examples and seeds all rows share; empty if there are none.
        seeds: How many seeds they share.
        difference: The first less the second; for `rising`, what a straight line through the rows gains from
            the first to the last. None if it cannot be said.
        verdict: The verdict, corrected for all comparisons of the suite.
        note: Why the runs cannot speak to the claim although they ended well; empty if they can.
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


@final
@dataclass(frozen=True, slots=True)
class JudgedClaim:
    """A claim with its verdict and all findings.

    Attributes:
        claim: The claim.
        verdict: The strongest verdict of its findings.
        findings: One for each comparison, model and task.
    """

    claim: Claim
    verdict: ClaimVerdict
    findings: tuple[Finding, ...]


VariantRecords = Mapping[str, Sequence[RunRecord]]
"""Records that ended well by the label of their row, for one model and task."""


def judge(claims: Sequence[Claim], studies: Mapping[tuple[str, str], VariantRecords]) -> list[JudgedClaim]:
    """Return the verdict of records on each claim.

    Args:
        claims: What is claimed.
        studies: The rows of each model and task, by the names of both.
    """
    findings = [
        (claim, _finding(claim, rows, model, task, studies[model, task]))
        for claim in claims
        for rows in claim.comparisons
        for model, task in studies
        if (not claim.tasks or task in claim.tasks) and set(rows) <= studies[model, task].keys()
    ]
    rejected = iter(holm_rejections([finding.difference for _, finding in findings if finding.difference]))
    judged = [
        (claim, replace(finding, verdict=_verdict(claim, finding, is_rejected=next(rejected))))
        if finding.difference
        else (claim, finding)
        for claim, finding in findings
    ]
    return [_judge_claim(claim, [finding for other, finding in judged if other is claim]) for claim in claims]


def _finding(claim: Claim, labels: tuple[str, ...], model: str, task: str, rows: VariantRecords) -> Finding:
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
    has_learned = any(
        _has_learned(row, row_scores, metric) for row, row_scores in zip(runs, scores, strict=True)
    )
    return replace(
        finding,
        means=tuple(mean_metric(row_scores, metric) for row_scores in scores),
        difference=paired_contrast(scores, _weights(claim, len(labels)), metric, bound=claim.bound),
        note="" if has_learned else "no row is above guessing",
    )


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
    return "supported" if finding.difference.interval.value > claim.bound else "contradicted"


def _judge_claim(claim: Claim, findings: Sequence[Finding]) -> JudgedClaim:
    verdicts_found: list[ClaimVerdict] = sorted(
        (finding.verdict for finding in findings), key=_STRONGEST.index
    )
    return JudgedClaim(claim, verdicts_found[0] if verdicts_found else "not run", tuple(findings))
