"""Claims of a suite with their verdicts and findings: table cells, and values for the page."""

from collections.abc import Sequence
from typing import Any

from rankfold.bench.statistics.claims import Claim, ClaimVerdict, Finding, JudgedClaim
from rankfold.report.format import difference_text, join_names, metric_name, signed_text

# A verdict is a word with a shape, so that it can be told without colour.
SHAPES: dict[ClaimVerdict, str] = {
    "supported": "✓",
    "contradicted": "✗",
    "not separated": "≈",
    "not run": "○",
}

CLAIM_COLUMNS = ("claim", "verdict", "statement", "source", "comparisons", "measured on", "could show")
FINDING_COLUMNS = (
    "task",
    "comparison",
    "values",
    "difference (95 %)",
    "has to be",
    "could show",
    "seeds",
    "verdict",
)

_MEASURED_ON = CLAIM_COLUMNS.index("measured on")


def claim_cells(judgement: JudgedClaim) -> list[str]:
    """Return one row of the table of claims."""
    claim = judgement.claim
    return [
        claim.id,
        answer_text(judgement.verdict),
        claim.text,
        claim.source,
        _count(judgement),
        _measured_on(judgement),
        _resolution(judgement),
    ]


def claim_summary(cells: Sequence[str]) -> list[str]:
    """Return a row of the table of claims, or its headings, without the measurements behind it."""
    return [cell for column, cell in enumerate(cells) if column != _MEASURED_ON]


def _rows(judgement: JudgedClaim) -> list[Finding]:
    """Return the findings of a claim, each mean over tasks before its tasks."""
    return [row for finding in judgement.findings for row in (finding, *finding.parts)]


def finding_cells(judgement: JudgedClaim) -> list[list[str]]:
    """Return the numbers behind a verdict, one row for each comparison, task and model."""
    claim = judgement.claim
    has_models = len({finding.model for finding in judgement.findings}) > 1
    is_part = {id(part) for finding in judgement.findings for part in finding.parts}
    return [
        [
            f"{finding.task} with {finding.model}" if has_models else finding.task,
            _comparison(claim, finding),
            ", ".join(f"{mean:.3f}" for mean in finding.means) or "–",
            _difference(finding),
            _bound_text(claim),
            _decimals(finding.detectable),
            str(finding.seeds) if finding.seeds else "–",
            (finding.note or "part of the mean") if id(finding) in is_part else _answer(claim, finding),
        ]
        for finding in _rows(judgement)
    ]


def _answer(claim: Claim, finding: Finding) -> str:
    """Return the verdict on a comparison with the relation of its rows: "✓ supported: not inferior"."""
    relation = finding.relation(claim)
    details = [
        *([relation] if relation != finding.verdict else []),
        *([finding.note] if finding.note else []),
    ]
    return ": ".join([answer_text(finding.verdict), *details])


def _bound_text(claim: Claim) -> str:
    if claim.expect == "equivalent":
        return f"within ±{claim.margin:.3f}"
    return f"above {signed_text(claim.bound)}"


def _decimals(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _resolution(judgement: JudgedClaim) -> str:
    """Return the largest of the differences that the undecided comparisons, or all of them, could show."""
    undecided = [finding for finding in judgement.findings if finding.verdict == "not separated"]
    values = [finding.detectable for finding in undecided or judgement.findings if finding.detectable]
    return _decimals(max(values, default=None))


def answer_text(verdict: ClaimVerdict) -> str:
    """Return a verdict with its shape, "✓ supported"."""
    return f"{SHAPES[verdict]} {verdict}"


def claims_sentence(judgements: Sequence[JudgedClaim]) -> str:
    """Return how many claims have which verdict: "Claims: 2 supported and 3 not run."."""
    verdicts = [judgement.verdict for judgement in judgements]
    counts = [f"{verdicts.count(verdict)} {verdict}" for verdict in SHAPES if verdict in verdicts]
    return f"Claims: {join_names(counts)}."


def _count(judgement: JudgedClaim) -> str:
    findings = judgement.findings
    agreeing = sum(finding.verdict == "supported" for finding in findings)
    return f"{agreeing} of {len(findings)} supported" if findings else "–"


def _measured_on(judgement: JudgedClaim) -> str:
    """Return models, tasks and seeds of the findings: "minilm on mrpc and sst2 (accuracy), 3 seeds"."""
    findings = [part for finding in judgement.findings for part in finding.parts or (finding,)]
    measurements = [finding for finding in findings if finding.difference]
    if not measurements:
        return "–"
    models = join_names(list(dict.fromkeys(finding.model for finding in measurements)))
    tasks = join_names(list(dict.fromkeys(finding.task for finding in measurements)))
    metrics = join_names(list(dict.fromkeys(metric_name(finding.metric) for finding in measurements)))
    seeds = sorted({finding.seeds for finding in measurements})
    counts = f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else str(seeds[0])
    return f"{models} on {tasks} ({metrics}), {counts} seed" + "s" * (seeds[-1] != 1)


def _difference(finding: Finding) -> str:
    if finding.difference is None:
        return "–"
    interval = finding.difference.interval
    return difference_text(interval)


def _comparison(claim: Claim, finding: Finding) -> str:
    """Return which variants are compared: "tlora − lora", or "lora r=8 → r=16 → r=32" for a rise."""
    if claim.expect != "rising":
        return " − ".join(finding.rows)
    first, *rest = finding.rows
    method = first.partition(" ")[0] + " "
    is_one = all(label.startswith(method) for label in rest)
    return " → ".join([first, *(label.removeprefix(method) if is_one else label for label in rest)])


def claims_section(judgements: Sequence[JudgedClaim]) -> dict[str, Any]:
    """Return the claims as values for the template."""
    return {
        "sentence": claims_sentence(judgements),
        "columns": claim_summary(CLAIM_COLUMNS),
        "numbers": FINDING_COLUMNS,
        "rows": [_claim(judgement) for judgement in judgements],
    }


def _claim(judgement: JudgedClaim) -> dict[str, Any]:
    claim = judgement.claim
    identifier, verdict, text, source, count, measured_on, resolution = claim_cells(judgement)
    low, high = _extent(judgement)
    return {
        "id": identifier,
        "answer": verdict,
        "kind": judgement.verdict.replace(" ", "-"),
        "text": text,
        "source": source,
        "count": count,
        "measured": measured_on,
        "resolution": resolution,
        "findings": [
            {
                "cells": cells,
                "kind": finding.verdict.replace(" ", "-"),
                "is_part": not any(finding is whole for whole in judgement.findings),
                "plot": _plot(finding, claim.bound, low, high),
            }
            for finding, cells in zip(_rows(judgement), finding_cells(judgement), strict=True)
        ],
    }


def _extent(judgement: JudgedClaim) -> tuple[float, float]:
    """Return the ends of the scale that all intervals of a claim are drawn on; the bound is on it."""
    intervals = [finding.difference.interval for finding in _rows(judgement) if finding.difference]
    ends = [0.0, judgement.claim.bound]
    ends += [end for interval in intervals for end in (interval.low, interval.high)]
    return min(ends), max(ends)


def _plot(finding: Finding, bound: float, low: float, high: float) -> dict[str, str] | None:
    """Return the places of interval, value and bound in percent of the width, if there is an interval."""
    if finding.difference is None or high <= low:
        return None
    interval = finding.difference.interval

    def place(value: float) -> float:
        return 3 + 94 * (value - low) / (high - low)

    places = {
        "bound": place(bound),
        "low": place(interval.low),
        "width": place(interval.high) - place(interval.low),
        "value": place(interval.value),
    }
    return {name: f"{value:.1f}%" for name, value in places.items()}
