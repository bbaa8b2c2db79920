"""Preview of data: what a run would learn, from its files to one example as the model sees it."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean, median
from typing import Any, cast

from rankfold.errors import DataError
from rankfold.models.base import LoadedModel, load_processor, resolve_model, row_length
from rankfold.models.meta import meta_base
from rankfold.runs.request import PreviewRequest
from rankfold.tasks import TaskData, load_task
from rankfold.tasks.data.table import Finding
from rankfold.tasks.kinds import Features, Learner, TaskKind
from rankfold.tasks.kinds.kind import IGNORED_LABEL
from rankfold.tasks.kinds.learner import row_lengths
from rankfold.tasks.load import SPLITS, TRAINING_SPLITS
from rankfold.tasks.registry import find_task

MEASURED_ROWS = 2000
"""The most rows of a split whose tokens are counted, spread over the split."""

_ENDLESS = 10**6


@dataclass(frozen=True, slots=True)
class Lengths:
    """Lengths of the examples of a split.

    Args:
        unit: `tokens` with a model, else `words`.
        rows: How many were measured.
        median: Half of them are longer.
        longest: The longest.
        max_length: The most tokens that a row keeps; None without a model.
        cut: The share of the measured rows that are longer than that.
        lost: The share of all their tokens that is cut off.
    """

    unit: str
    rows: int
    median: float
    longest: int
    max_length: int | None = None
    cut: float = 0.0
    lost: float = 0.0


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive tokens of an example as text, and whether the model learns to write them."""

    text: str
    is_learned: bool


@dataclass(frozen=True, slots=True)
class ExamplePreview:
    """One example.

    Args:
        id: Its id in the data.
        segments: Its tokens as text, special ones included, in runs that are learned or only read; the texts
            themselves without a model.
        label: Its label in words; None if the answer is part of the text.
    """

    id: int | str
    segments: tuple[Segment, ...]
    label: str | None


@dataclass(frozen=True, slots=True)
class DataPreview:
    """The data of a run, as `rankfold data show` prints it.

    Args:
        source: Where it is from.
        files: The files of each split; empty for embedded data and the hub.
        kind: The kind of task.
        metrics: Those it is measured by, the primary one first.
        columns: The columns that are read, by their role.
        unused_columns: Those that are not.
        rows: The number of rows by split.
        labels: The number of rows of each label by split; empty where labels are numbers or open texts.
        numbers: Least, mean and greatest label by split, where labels are numbers.
        lengths: By split.
        example: The first of the training split, or of the first split if there is none.
        findings: Remarks, those of training among them.
    """

    source: str
    files: Mapping[str, Sequence[str]]
    kind: str
    metrics: tuple[str, ...]
    columns: Mapping[str, str]
    unused_columns: tuple[str, ...]
    rows: Mapping[str, int]
    labels: Mapping[str, Mapping[str, int]]
    numbers: Mapping[str, tuple[float, float, float]]
    lengths: Mapping[str, Lengths]
    example: ExamplePreview
    findings: tuple[Finding, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the preview as JSON values."""
        return asdict(self)


def preview_data(request: PreviewRequest) -> DataPreview:
    """Return a preview of the data that a run of the same options would learn from; no weights are loaded.

    Args:
        request: The data, and perhaps the model, without which lengths are counted in words.

    Raises:
        SpecError: If the task, the kind or the model is unknown, or does not fit.
        DataError: If the data cannot be read or understood.
    """
    data = _load(request)
    learner = None if request.model is None else _learner(request, data)
    splits = data.examples.splits
    findings = list(data.all_findings)
    if learner is not None:
        findings += data.kind.findings(learner, splits)
        findings += learner.token_findings(_encode_sample(data.kind, learner, next(iter(splits.values()))))
    labels = {split: _label_counts(data, examples) for split, examples in splits.items()}
    numbers = {split: _number_range(data.kind, examples) for split, examples in splits.items()}
    return DataPreview(
        source=data.source,
        files=_files(request),
        kind=data.kind.name,
        metrics=data.task.metrics,
        columns=data.columns.by_role(),
        unused_columns=data.unused_columns,
        rows=data.examples.counts,
        labels={split: counts for split, counts in labels.items() if counts},
        numbers={split: span for split, span in numbers.items() if span is not None},
        lengths={
            split: _lengths(data.kind, learner, examples)
            for split, examples in splits.items()
            if data.kind.reads_text
        },
        example=_example(data, learner),
        findings=tuple(dict.fromkeys(findings)),
    )


def _load(request: PreviewRequest) -> TaskData:
    """Return the task for a model that generates text or not; without a model, for the one that suits."""
    task = request.task_request
    files = _files(request)
    splits = tuple(files) if files and "train" not in files else TRAINING_SPLITS
    if request.model is not None:
        return load_task(task, is_causal=resolve_model(request.model).is_causal, splits=splits)
    try:
        return load_task(task, is_causal=False, splits=splits)
    except DataError as error:
        try:
            return load_task(task, is_causal=True, splits=splits)
        except DataError:
            raise error from None


def _files(request: PreviewRequest) -> dict[str, list[str]]:
    names = (request.task or "").split("+")
    sources = [find_task(replace(request.task_request, task=name or None))[1] for name in names]
    files: dict[str, list[str]] = {split: [] for split in SPLITS}
    for source in filter(None, sources):
        for split, paths in source.files.items():
            files[split] += map(str, paths)
    return {split: paths for split, paths in files.items() if paths}


def _learner(request: PreviewRequest, data: TaskData) -> Learner:
    """Return a model without weights, with its processor."""
    model = cast(str, request.model)
    base = resolve_model(model)
    data.kind.check_base(base, data.columns)
    head = data.kind.head(data.examples.label_names)
    structure = meta_base(model, lambda _is_causal: head)
    loaded = LoadedModel(structure.model(), load_processor(base, head.inputs), ())
    length = row_length(structure.config, head.max_length, request.max_length, loaded.model)
    return Learner(
        loaded.model,
        loaded.processor,
        length,
        settings=data.kind.model_settings(loaded, data.examples),
        label_names=data.examples.label_names or (),
    )


# Labels.


def _label_counts(data: TaskData, examples: Iterable[Any]) -> dict[str, int]:
    """Return how many examples have each label, the commonest first; none where labels have no names."""
    names = data.examples.label_names
    counts = Counter(label for item in examples for label in set(_labels(data.kind, item, names)))
    return dict(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])))


def _labels(kind: TaskKind, example: Any, names: Sequence[str] | None) -> list[str]:
    """Return the labels of an example in words; none if it has a number, or a text of its own."""
    label = kind.describe_label(example, kind.label(example), names)
    values: Sequence[object] = tuple(label) if isinstance(label, list) else (label,)
    return [str(value) for value in values if isinstance(value, str)]


def _number_range(kind: TaskKind, examples: Iterable[Any]) -> tuple[float, float, float] | None:
    labels = [kind.label(item) for item in examples]
    numbers = [label for label in labels if isinstance(label, float)]
    return (min(numbers), fmean(numbers), max(numbers)) if numbers and len(numbers) == len(labels) else None


# Lengths, and one example.


def _sample(examples: Sequence[Any]) -> Sequence[Any]:
    return examples[:: max(1, -(-len(examples) // MEASURED_ROWS))]


def _encode_sample(kind: TaskKind, learner: Learner, examples: Sequence[Any]) -> Sequence[Features]:
    return kind.encode(learner, _sample(examples), training=True)


def _lengths(kind: TaskKind, learner: Learner | None, examples: Sequence[Any]) -> Lengths:
    if learner is None:
        words = [len(" ".join(_texts(kind, item)).split()) for item in _sample(examples)]
        return Lengths("words", len(words), median(words), max(words))
    whole = _encode_sample(kind, replace(learner, max_length=_ENDLESS), examples)
    sizes = row_lengths(whole)
    most = learner.max_length
    cut = sum(size > most for size in sizes) / len(sizes)
    lost = sum(max(0, size - most) for size in sizes) / max(1, sum(sizes))
    return Lengths("tokens", len(sizes), median(sizes), max(sizes), most, cut, lost)


def _texts(kind: TaskKind, example: Any) -> list[str]:
    """Return the inputs of an example, and its answer if that is a text too."""
    answer = kind.reference(example)
    texts = list(kind.input_texts(example).values())
    return [*texts, answer] if kind.loss_per_token and isinstance(answer, str) else texts


def _example(data: TaskData, learner: Learner | None) -> ExamplePreview:
    example = next(iter(data.examples.splits.values()))[0]
    names = _labels(data.kind, example, data.examples.label_names)
    number = data.kind.label(example)
    label = ", ".join(names) or (f"{number:g}" if isinstance(number, float) else None)
    if learner is None:
        segments = _plain_segments(data.kind, example)
    else:
        (features,) = data.kind.encode(learner, [example], training=True)
        segments = _segments(features, learner.processor) or _plain_segments(data.kind, example)
    is_written = any(segment.text == label for segment in segments)
    return ExamplePreview(example.id, segments, None if is_written else label)


def _plain_segments(kind: TaskKind, example: Any) -> tuple[Segment, ...]:
    return tuple(Segment(text, is_learned=False) for text in _texts(kind, example))


def _segments(features: Features, processor: Any) -> tuple[Segment, ...]:
    """Return the tokens of an example as text, in runs that are learned or only read."""
    tokens: list[int] = list(features.get("input_ids", ()))
    labels: Any = features.get("labels")
    if not isinstance(labels, list | tuple) or len(cast("Sequence[int]", labels)) != len(tokens):
        labels = [IGNORED_LABEL] * len(tokens)  # the label is of the whole text
    learned = [label != IGNORED_LABEL for label in cast("Sequence[int]", labels)]
    segments: list[Segment] = []
    start = 0
    for end in range(1, len(tokens) + 1):
        if end == len(tokens) or learned[end] != learned[start]:
            text = processor.decode(tokens[start:end], skip_special_tokens=False)
            segments.append(Segment(text, learned[start]))
            start = end
    return tuple(segments)
