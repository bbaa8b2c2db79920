"""The claims of a suite as plain rows and words: for the terminal, for Markdown and for the page."""

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

CLAIM_COLUMNS = ("claim", "verdict", "what it says", "source", "comparisons", "measured on")
FINDING_COLUMNS = ("task", "comparison", "values", "difference (95 %)", "has to be", "seeds", "verdict")


def claim_cells(judgement: JudgedClaim) -> list[str]:
    """Return one result of the table of claims."""
    claim = judgement.claim
    return [
        claim.id,
        answer_text(judgement.verdict),
        claim.text,
        claim.source,
        _count(judgement),
        _measured_on(judgement),
    ]


def finding_cells(judgement: JudgedClaim) -> list[list[str]]:
    """Return the numbers behind a verdict, one result for each comparison, task and model."""
    has_models = len({finding.model for finding in judgement.findings}) > 1
    return [
        [
            f"{finding.task} with {finding.model}" if has_models else finding.task,
            _comparison(judgement.claim, finding),
            ", ".join(f"{mean:.3f}" for mean in finding.means) or "–",
            _difference(finding),
            f"above {signed_text(judgement.claim.bound)}",
            str(finding.seeds) if finding.seeds else "–",
            answer_text(finding.verdict) + (f": {finding.note}" if finding.note else ""),
        ]
        for finding in judgement.findings
    ]


def answer_text(verdict: ClaimVerdict) -> str:
    """Return a verdict with its shape, "✓ supported"."""
    return f"{SHAPES[verdict]} {verdict}"


def claims_sentence(judgements: Sequence[JudgedClaim]) -> str:
    """Return how many claims have which verdict: "Claims: 2 supported and 3 not run."."""
    answers = [judgement.verdict for judgement in judgements]
    counted = [f"{answers.count(answer)} {answer}" for answer in SHAPES if answer in answers]
    return f"Claims: {join_names(counted)}."


def _count(judgement: JudgedClaim) -> str:
    findings = judgement.findings
    agreeing = sum(finding.verdict == "supported" for finding in findings)
    return f"{agreeing} of {len(findings)} supported" if findings else "–"


def _measured_on(judgement: JudgedClaim) -> str:
    """Return models, tasks and seeds of what was measured: "minilm on mrpc and sst2 (accuracy), 3 seeds"."""
    measured = [finding for finding in judgement.findings if finding.difference]
    if not measured:
        return "–"
    models = join_names(list(dict.fromkeys(finding.model for finding in measured)))
    tasks = join_names(list(dict.fromkeys(finding.task for finding in measured)))
    metrics = join_names(list(dict.fromkeys(metric_name(finding.metric) for finding in measured)))
    seeds = sorted({finding.seeds for finding in measured})
    counts = f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else str(seeds[0])
    return f"{models} on {tasks} ({metrics}), {counts} seed" + "s" * (seeds[-1] != 1)


def _difference(finding: Finding) -> str:
    if finding.difference is None:
        return "–"
    interval = finding.difference.interval
    return difference_text(interval)


def _comparison(claim: Claim, finding: Finding) -> str:
    """Return which rows are compared: "tlora − lora", or "lora r=8 → r=16 → r=32" for a rise."""
    if claim.expect != "rising":
        return " − ".join(finding.rows)
    first, *others = finding.rows
    method = first.partition(" ")[0] + " "
    is_one = all(label.startswith(method) for label in others)
    return " → ".join([first, *(label.removeprefix(method) if is_one else label for label in others)])


def claims_section(judgements: Sequence[JudgedClaim]) -> dict[str, Any]:
    """Return the claims as the template wants them."""
    return {
        "sentence": claims_sentence(judgements),
        "columns": CLAIM_COLUMNS[:-1],
        "numbers": FINDING_COLUMNS,
        "rows": [_claim(judgement) for judgement in judgements],
    }


def _claim(judgement: JudgedClaim) -> dict[str, Any]:
    claim = judgement.claim
    number, answer, text, source, count, measured = claim_cells(judgement)
    low, high = _extent(judgement)
    return {
        "id": number,
        "answer": answer,
        "kind": judgement.verdict.replace(" ", "-"),
        "text": text,
        "source": source,
        "count": count,
        "measured": measured,
        "findings": [
            {
                "cells": cells,
                "kind": finding.verdict.replace(" ", "-"),
                "plot": _plot(finding, claim.bound, low, high),
            }
            for finding, cells in zip(judgement.findings, finding_cells(judgement), strict=True)
        ],
    }


def _extent(judgement: JudgedClaim) -> tuple[float, float]:
    """Return the ends of the scale that all intervals of a claim are drawn on; the bound is on it."""
    intervals = [each.difference.interval for each in judgement.findings if each.difference]
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
