"""The claims as the template wants them: verdicts, and the numbers behind each, drawn as intervals."""

from collections.abc import Sequence
from typing import Any

from rankfold.bench.statistics.claims import Finding, Judgement
from rankfold.report.claims_table import (
    CLAIM_COLUMNS,
    FINDING_COLUMNS,
    claim_cells,
    claims_sentence,
    finding_cells,
)


def claims_section(judgements: Sequence[Judgement]) -> dict[str, Any]:
    """Return the claims as the template wants them."""
    return {
        "sentence": claims_sentence(judgements),
        "columns": CLAIM_COLUMNS[:-1],
        "numbers": FINDING_COLUMNS,
        "rows": [_claim(judgement) for judgement in judgements],
    }


def _claim(judgement: Judgement) -> dict[str, Any]:
    claim = judgement.claim
    number, answer, text, source, count, measured = claim_cells(judgement)
    low, high = _extent(judgement)
    return {
        "id": number,
        "answer": answer,
        "kind": judgement.answer.replace(" ", "-"),
        "text": text,
        "source": source,
        "count": count,
        "measured": measured,
        "findings": [
            {
                "cells": cells,
                "kind": finding.answer.replace(" ", "-"),
                "plot": _plot(finding, claim.bound, low, high),
            }
            for finding, cells in zip(judgement.findings, finding_cells(judgement), strict=True)
        ],
    }


def _extent(judgement: Judgement) -> tuple[float, float]:
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
