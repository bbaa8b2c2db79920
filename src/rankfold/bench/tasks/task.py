"""What a task is, and the tasks whose metric, classes and licence are known.

The primary metric is the first. Where GLUE states F1 and accuracy (mrpc, qqp), accuracy is the primary one: a
model that always says "equivalent" has an F1 of 0.81 on mrpc, which hides whether anything was learned.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from rankfold.train.examples import Examples
from rankfold.train.models import Kind


@dataclass(frozen=True, slots=True)
class Task:
    """A task with a known meaning.

    Args:
        name: The name of its folder and on the command line.
        kind: What is learned; None if it depends on the model: a choice can be text or a class.
        metrics: The primary one first.
        label_names: Class names in the order of their ids; None if the data says, or there are none.
        licence: The terms of the data as far as they are known, for the record.
        parts: The tasks of a mixture.
    """

    name: str
    kind: Kind | None
    metrics: tuple[str, ...]
    label_names: tuple[str, ...] | None = None
    licence: str | None = None
    parts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TaskData:
    """A task with its examples.

    Args:
        task: What it means; its kind, metrics and class names are known now.
        kind: What is learned.
        source: Where the rows are from.
        sha256: Hash of the content of the rows that were read.
        examples: By split.
    """

    task: Task
    kind: Kind
    source: str
    sha256: str
    examples: Examples


_ENTAILMENT = ("entailment", "not_entailment")
_PARAPHRASE = ("accuracy", "f1")
_CLASS = Kind.CLASSIFICATION
_NEWS_METRICS = ("accuracy", "macro_f1")

_TASKS = (
    Task(
        "bbc_news",
        _CLASS,
        _NEWS_METRICS,
        ("business", "entertainment", "politics", "sport", "tech"),
        "BBC articles; for non-commercial research",
    ),
    Task("ag_news", _CLASS, _NEWS_METRICS, ("World", "Sports", "Business", "Sci/Tech"), "non-commercial"),
    Task("cola", _CLASS, ("matthews", "accuracy"), ("unacceptable", "acceptable"), "not stated"),
    Task("sst2", _CLASS, ("accuracy",), ("negative", "positive"), "not stated"),
    Task("mrpc", _CLASS, _PARAPHRASE, ("not_equivalent", "equivalent"), "research only"),
    Task("qqp", _CLASS, _PARAPHRASE, ("not_duplicate", "duplicate"), "non-commercial"),
    Task(
        "mnli", _CLASS, ("accuracy",), ("entailment", "neutral", "contradiction"), "several; see its authors"
    ),
    Task("qnli", _CLASS, ("accuracy",), _ENTAILMENT, "CC BY-SA 4.0"),
    Task("rte", _CLASS, ("accuracy",), _ENTAILMENT, "not stated"),
    Task("wnli", _CLASS, ("accuracy",), ("not_entailment", "entailment"), "CC BY 4.0"),
    Task("stsb", Kind.REGRESSION, ("pearson", "spearman"), None, "CC BY-SA 4.0 and others"),
    Task("boolq", None, ("accuracy",), None, "CC BY-SA 3.0"),
    Task("arc_easy", None, ("accuracy",), None, "CC BY-SA 4.0"),
    Task("arc_challenge", None, ("accuracy",), None, "CC BY-SA 4.0"),
    Task("openbookqa", None, ("accuracy",), None, "Apache-2.0"),
    Task("piqa", None, ("accuracy",), None, "AFL-3.0"),
    Task("social_i_qa", None, ("accuracy",), None, "not stated"),
    Task("winogrande", None, ("accuracy",), None, "CC BY 4.0"),
    Task("hellaswag", None, ("accuracy",), None, "MIT"),
)

NAMED: Mapping[str, Task] = MappingProxyType({task.name: task for task in _TASKS})
"""The known tasks by name."""
