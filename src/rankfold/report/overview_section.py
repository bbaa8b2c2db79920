"""The overview as the template wants it: methods as rows, and a column that leads to each study."""

from collections.abc import Mapping
from typing import Any

from rankfold.report.overview import overview_rows
from rankfold.report.rows import Row
from rankfold.report.study import Study
from rankfold.report.words import metric_name, range_text, score_text, verdict_text


def overview_section(studies: Mapping[str, Study]) -> dict[str, Any]:
    """Return the overview as the template wants it.

    Args:
        studies: By the ids of their elements.
    """
    several_models = len({study.model for study in studies.values()}) > 1
    return {
        "columns": [
            {
                "id": name,
                "task": study.task,
                "model": study.model if several_models else "",
                "metric": metric_name(study.metric),
            }
            for name, study in studies.items()
        ],
        "rows": [
            {"label": label, "cells": [_cell(row) for row in rows]}
            for label, rows in overview_rows(list(studies.values()))
        ],
    }


def _cell(row: Row | None) -> dict[str, Any]:
    if row is None:
        return {"text": "", "sort": "", "range": "", "verdict": "", "kind": ""}
    return {
        "text": score_text(row.score),
        "sort": row.score.value if row.score else "",
        "range": range_text(row.score),
        "verdict": verdict_text(row),
        "kind": row.verdict.replace(" ", "-") if row.records else "failed",
    }
