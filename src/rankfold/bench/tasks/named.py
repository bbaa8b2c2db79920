"""The tasks whose metric, classes, official rows and licence are known.

The primary metric is the first. Where GLUE states F1 and accuracy (mrpc, qqp), accuracy is the primary one: a
model that always says "equivalent" has an F1 of 0.81 on mrpc, which hides whether anything was learned.
"""

from collections.abc import Mapping
from types import MappingProxyType

from rankfold.bench.tasks.task import Task
from rankfold.train.kind import Kind

_ENTAILMENT = ("entailment", "not_entailment")
_PARAPHRASE = ("accuracy", "f1")
_NEWS_METRICS = ("accuracy", "macro_f1")


def _news(name: str, labels: tuple[str, ...], licence: str, *rows: int, hub: str | None = None) -> Task:
    return Task(
        name,
        Kind.CLASSIFICATION,
        _NEWS_METRICS,
        labels,
        licence,
        version=1,
        rows=dict(zip(("train", "test", "validation"), rows, strict=False)),
        hub=hub,
    )


def _glue(
    name: str, metrics: tuple[str, ...], labels: tuple[str, ...] | None, licence: str, *rows: int
) -> Task:
    """Return a task of GLUE; its rows are those of train, validation and, for mnli, a second validation."""
    return Task(
        name,
        Kind.REGRESSION if labels is None else Kind.CLASSIFICATION,
        metrics,
        labels,
        licence,
        version=1,
        rows=dict(zip(("train", "validation", "validation_mismatched"), rows, strict=False)),
        hub=f"nyu-mll/glue:{name}",
    )


def _commonsense(name: str, hub: str, licence: str, *rows: int, word: str = "answer") -> Task:
    """Return a question with choices: of one class if they are the same everywhere, else answered as text."""
    return Task(
        name,
        None,
        ("accuracy",),
        licence=licence,
        version=1,
        rows=dict(zip(("train", "validation", "test"), rows, strict=False)),
        hub=hub,
        choice_word=word,
    )


_TASKS = (
    _news(
        "bbc_news",
        ("business", "entertainment", "politics", "sport", "tech"),
        "BBC articles; for non-commercial research",
        *(1274, 425, 425),
    ),
    _news(
        "ag_news",
        ("World", "Sports", "Business", "Sci/Tech"),
        "non-commercial",
        *(120_000, 7_600),
        hub="fancyzhx/ag_news",
    ),
    _glue("cola", ("matthews", "accuracy"), ("unacceptable", "acceptable"), "not stated", 8_551, 1_043),
    _glue("sst2", ("accuracy",), ("negative", "positive"), "not stated", 67_349, 872),
    _glue("mrpc", _PARAPHRASE, ("not_equivalent", "equivalent"), "research only", 3_668, 408),
    _glue("qqp", _PARAPHRASE, ("not_duplicate", "duplicate"), "non-commercial", 363_846, 40_430),
    _glue("stsb", ("pearson", "spearman"), None, "CC BY-SA 4.0 and others", 5_749, 1_500),
    _glue(
        "mnli",
        ("accuracy",),
        ("entailment", "neutral", "contradiction"),
        "several; see its authors",
        *(392_702, 9_815, 9_832),
    ),
    _glue("qnli", ("accuracy",), _ENTAILMENT, "CC BY-SA 4.0", 104_743, 5_463),
    _glue("rte", ("accuracy",), _ENTAILMENT, "not stated", 2_490, 277),
    _glue("wnli", ("accuracy",), ("not_entailment", "entailment"), "CC BY 4.0", 635, 71),
    _commonsense("boolq", "google/boolq", "CC BY-SA 3.0", 9_427, 3_270),
    _commonsense("arc_easy", "allenai/ai2_arc:ARC-Easy", "CC BY-SA 4.0", 2_251, 570, 2_376),
    _commonsense("arc_challenge", "allenai/ai2_arc:ARC-Challenge", "CC BY-SA 4.0", 1_119, 299, 1_172),
    _commonsense("openbookqa", "allenai/openbookqa:main", "Apache-2.0", 4_957, 500, 500),
    # Of piqa and social_i_qa the authors' own place has a script, which the hub's library runs no more.
    _commonsense("piqa", "baber/piqa", "AFL-3.0", 16_113, 1_838, word="solution"),
    _commonsense("social_i_qa", "lighteval/siqa", "not stated", 33_410, 1_954),
    _commonsense("winogrande", "allenai/winogrande:winogrande_xl", "CC BY 4.0", 40_398, 1_267, word="option"),
    _commonsense("hellaswag", "Rowan/hellaswag", "MIT", 39_905, 10_042, word="ending"),
)

NAMED: Mapping[str, Task] = MappingProxyType({task.name: task for task in _TASKS})
"""The known tasks by name."""
