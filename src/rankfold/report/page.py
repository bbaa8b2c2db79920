"""One HTML file that is complete: results, charts and every run, opened without a network."""

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, cast

import vl_convert
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from rankfold.bench.stats import LEVEL, RESAMPLES
from rankfold.report.charts import Mark, mark_of
from rankfold.report.choice import CHOSEN, Choice
from rankfold.report.choice_table import choice_cells, choice_columns, choice_text
from rankfold.report.figures import figures
from rankfold.report.runs import run_facts
from rankfold.report.study import Row, Study
from rankfold.report.table import baseline_name, cells, columns, reason
from rankfold.report.words import headline, listed, metric_name

_TEMPLATES = Path(__file__).parent / "templates"

_READING = (
    "A value is the mean over the seeds. Its interval says where the mean could be with other examples, and "
    f"with other seeds where there are at least two ({LEVEL:.0%}; Wilson's interval for the accuracy of one "
    f"seed, otherwise a bootstrap with {RESAMPLES:,} resamples of examples and seeds).",
    "A difference is paired: both methods on the same examples with the same seeds. It can be clear while "
    "the intervals of the two values overlap.",
    "“Better” and “worse” hold for all comparisons of a table together (Holm's correction). “Not separated” "
    "means that this much data cannot tell the two apart; it does not mean that they are equal.",
    "Trainable numbers are those of the adapter; a task head beside it is the same for every method and "
    "counted apart. The size on disk is that of the weights file, task head included.",
)


def html_page(studies: Sequence[Study], *, version: str) -> str:
    """Return the page as one HTML text that loads nothing.

    Args:
        studies: What to show; at least one.
        version: The version of rankfold that makes the page.
    """
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown = [_study(f"study-{number}", study) for number, study in enumerate(studies, start=1)]
    has_charts = any(study["charts"] for study in shown)
    page = {
        "title": _title(studies),
        "version": version,
        "facts": _facts(studies),
        "studies": shown,
        "reading": _READING,
        "has_charts": has_charts,
    }
    return environment.get_template("page.html.j2").render(
        page=page,
        style=_asset("page.css"),
        script=_asset("page.js"),
        vega=_vega() if has_charts else "",
    )


def _asset(name: str) -> Markup:
    return Markup((_TEMPLATES / name).read_text("utf-8"))  # noqa: S704 (our own file, not a user's text)


@cache
def _vega() -> Markup:
    # `</script` inside a string of the library would end the element.
    script: str = cast("Any", vl_convert).javascript_bundle()
    return Markup(script.replace("</script", "<\\/script"))  # noqa: S704 (a library's code)


def _title(studies: Sequence[Study]) -> str:
    names = [f"{study.task} with {study.model}" for study in studies]
    return names[0] if len(names) == 1 else f"{len(names)} comparisons"


def _facts(studies: Sequence[Study]) -> list[str]:
    records = [record for study in studies for record in study.records]
    failed = sum(record.status == "failed" for record in records)
    last = max(datetime.fromisoformat(record.created) for record in records).astimezone(UTC)
    runs = f"{len(records)} run" + "s" * (len(records) != 1) + (f", {failed} failed" if failed else "")
    machines = sorted({record.hardware.gpu or record.hardware.cpu for record in records})
    return [runs, f"{last:%d %B %Y, %H:%M} UTC".lstrip("0"), *machines]


def _study(name: str, study: Study) -> dict[str, Any]:
    marks = {row.label: mark_of(number) for number, row in enumerate(study.rows)}
    charts = figures(study, marks)
    drawn = [row for row in study.rows if row.records]
    return {
        "id": name,
        "heading": f"{study.task} with {study.model}",
        "headline": headline(study),
        "columns": [
            {"name": head, "number": number in (1, 2, 4, 5, 6, 7)}
            for number, head in enumerate(columns(study))
        ],
        "rows": [
            *(_row(row, text, marks[row.label]) for row, text in zip(study.rows, cells(study), strict=False)),
            *_baselines(study),
        ],
        "failures": [
            {
                "label": f"{row.label}, seed {run.training.seed}",
                "error": reason(run),
            }
            for row in study.rows
            for run in row.failures
        ],
        "fine": _fine(study),
        "legend": [{"label": row.label, "mark": marks[row.label]} for row in drawn],
        "charts": charts if drawn else [],
        "choices": [_choice(choice) for choice in study.choices],
        "runs": [run_facts(label, run, study.metric) for label, run in study.labelled_runs()],
    }


def _choice(choice: Choice) -> dict[str, Any]:
    return {
        "explanation": choice_text(choice),
        "columns": choice_columns(choice),
        "numbers": range(1, 2 + len(choice.steps)),
        "rows": [
            # A name and its options, a score and its range: the second of them is set smaller.
            {
                "is_chosen": each.outcome == CHOSEN,
                "cells": [*(cell.partition(" ") for cell in text[:-1])],
                "outcome": text[-1],
            }
            for each, text in zip(choice.contenders, choice_cells(choice), strict=True)
        ],
    }


def _row(row: Row, text: Sequence[str], mark: Mark) -> dict[str, Any]:
    value, _, score_range = text[1].partition(" ")
    difference, _, difference_range = text[2].partition(" ")
    verdict = text[3]
    sizes = [
        row.mean(lambda run: run.parameters.trainable),
        row.mean(lambda run: run.bytes.weights_file),
        row.mean(lambda run: run.seconds.total),
        float(len(row.records)),
    ]
    return {
        "label": row.label,
        "note": "",
        "kind": "" if row.records else "lost",
        "mark": mark if row.records else None,
        "cells": [
            _cell(value, row.score and row.score.value, score_range),
            _cell(difference, row.difference and row.difference.interval.value, difference_range),
            {**_cell(verdict, verdict), "number": False, "kind": verdict.replace(" ", "-")},
            *(_cell(shown, size) for shown, size in zip(text[4:], sizes, strict=True)),
        ],
    }


def _baselines(study: Study) -> list[dict[str, Any]]:
    return [
        {
            "label": baseline_name(name),
            "note": "no training",
            "kind": "baseline",
            "mark": None,
            "cells": [_cell(f"{value:.3f}", value), *(_cell("", None) for _ in columns(study)[2:])],
        }
        for name, value in study.baselines.items()
    ]


def _cell(text: str, sort: float | str | None, shown_range: str = "") -> dict[str, Any]:
    return {
        "text": text,
        "sort": "" if sort is None else sort,
        "range": shown_range,
        "number": True,
        "kind": "",
    }


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _fine(study: Study) -> str:
    """Return the small print of one table: what was measured on how much, the head, what was left out."""
    heads = sorted({run.parameters.head for row in study.rows for run in row.records})
    sentences = [
        f"{_capital(metric_name(study.metric))} on the {study.examples:,} held-out examples of all runs.",
        f"The reference is {study.rows[0].label}." if len(study.rows) > 1 else "",
        f"The task head has {listed([f'{head:,}' for head in heads])} numbers."
        if heads and heads != [0]
        else "",
        f"{study.repeats} earlier runs of the same method and seed were left out." if study.repeats else "",
    ]
    return " ".join(filter(None, sentences))
