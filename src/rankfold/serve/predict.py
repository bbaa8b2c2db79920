"""Answers to rows of several adapters, by the same code that answers for one: that of their kind of task."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast, final

from pydantic import JsonValue
from torch import Tensor

from rankfold.errors import RankfoldError, SpecError
from rankfold.models.base import position_limit, row_length
from rankfold.store.manifest import Manifest, TaskManifest
from rankfold.tasks.data.columns import Columns
from rankfold.tasks.data.read import Row
from rankfold.tasks.kinds import LabelHints, Learner, TaskKind, find_kind
from rankfold.tasks.kinds.learner import Sampling
from rankfold.tasks.registry import choice_word_of
from rankfold.tasks.scoring import Scoring

InputRow = str | tuple[str, str] | Mapping[str, object]
"""A text, a pair of texts, or a row of named columns as in the training data."""

Serving = Callable[..., AbstractContextManager[None]]
"""`Session.serving`."""


class _RowsUnknownError(RankfoldError, LookupError):
    """A kind of task runs rows that are not one for each example."""


@final
@dataclass(frozen=True, slots=True)
class MixedLearner(Learner):
    """A model whose examples have adapters of their own.

    Args:
        serving: Lets the model serve rows with their adapters.
        adapters: The adapter of each example.
        rows: The examples of the batch that is being run.
    """

    serving: Serving | None = None
    adapters: tuple[str, ...] = ()
    rows: list[int] = field(default_factory=list[int])

    def similar(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Yield the indices of rows of similar length, a batch at a time."""
        if len(lengths) != len(self.adapters) and len(set(self.adapters)) > 1:
            raise _RowsUnknownError(
                "the rows are not one for each example; answer for one adapter at a time."
            )
        for indices in Learner.similar(self, lengths):
            self.rows[:] = indices
            yield indices
            self.rows.clear()

    def logits(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the logits of a batch on the CPU, in single precision at least."""
        with self._serve_rows(len(next(iter(batch.values()))), keep=False):
            return Learner.logits(self, batch)

    def generate(self, prompts: Sequence[Sequence[int]], names: Sequence[int | str]) -> list[str]:
        """Return the continuation of each prompt."""
        with self._serve_rows(len(prompts), keep=True):
            return Learner.generate(self, prompts, names)

    @contextmanager
    def _serve_rows(self, rows: int, *, keep: bool) -> Generator[None]:
        if len(set(self.adapters)) == 1:
            names = [self.adapters[0]] * rows
        elif len(self.rows) == rows:
            names = [self.adapters[index] for index in self.rows]
        else:
            raise _RowsUnknownError(
                "the rows are not one for each example; answer for one adapter at a time."
            )
        assert self.serving is not None
        with self.serving(names, keep=keep):
            yield


def answer_rows(
    learner: MixedLearner, texts: Sequence[InputRow], manifests: Mapping[str, Manifest | None]
) -> list[dict[str, JsonValue]]:
    """Return the answer to each text, in order.

    Examples of adapters that have learned the same task, with the same classes, run in one batch.

    Args:
        learner: Has the adapter of each text.
        texts: The texts, pairs or rows.
        manifests: Those of the adapters, by name.

    Raises:
        DataError: If a text is missing.
        SpecError: If an adapter has no task, or learned pairs and these are none, or the other way round.
    """
    groups: dict[str, list[int]] = {}
    for index, name in enumerate(learner.adapters):
        groups.setdefault(_task_key(name, manifests[name]), []).append(index)
    answers: list[dict[str, JsonValue]] = [{} for _ in texts]
    for indices in groups.values():
        names = tuple(learner.adapters[index] for index in indices)
        manifest = cast(Manifest, manifests[names[0]])
        group = replace(learner, adapters=names, rows=[])
        for index, answer in zip(indices, _answer(group, [texts[i] for i in indices], manifest), strict=True):
            answers[index] = answer
    return answers


def _task_key(name: str, manifest: Manifest | None) -> str:
    if manifest is None or manifest.task is None:
        raise SpecError(
            f"the adapter '{name}' does not say which task it has learned; use run, classify or generate, or "
            "train it with rankfold."
        )
    return repr((manifest.task, sorted(manifest.columns.items()), manifest.max_length))


def _answer(
    learner: MixedLearner, texts: Sequence[InputRow], manifest: Manifest
) -> list[dict[str, JsonValue]]:
    task = cast(TaskManifest, manifest.task)
    kind, columns = find_kind(task.kind), Columns(**manifest.columns)
    usual = kind.head(task.label_names).max_length
    config, model = cast(Any, learner.model).config, learner.model
    length = row_length(config, usual, manifest.max_length, model)
    # A generated text comes on top of a row as long as in training; half of a short model is for the prompt.
    limit = position_limit(config, model) or length + learner.sampling.max_new_tokens
    new_tokens = min(learner.sampling.max_new_tokens, limit // 2)
    is_choice = task.scoring == Scoring.GENERATED
    learner = replace(
        learner,
        max_length=length,
        sampling=Sampling() if is_choice else Sampling(new_tokens),
        generation_length=min(length + new_tokens, limit),
        scoring=task.scoring,
        settings=task.settings,
        label_names=task.label_names or (),
    )
    rows = [_row(kind, text, columns) for text in texts]
    hints = LabelHints(None, task.label_names, choice_word_of(task.name), task.settings)
    examples = kind.inputs(rows, kind.input_columns(rows, columns), hints)
    try:
        return kind.answer(learner, examples)
    except _RowsUnknownError:
        answers: list[dict[str, JsonValue]] = [{} for _ in examples]
        for name in dict.fromkeys(learner.adapters):
            indices = [index for index, own in enumerate(learner.adapters) if own == name]
            alone = replace(learner, adapters=(name,), rows=[])
            for index, answer in zip(
                indices, kind.answer(alone, [examples[i] for i in indices]), strict=True
            ):
                answers[index] = answer
        return answers


def _row(kind: TaskKind, text: InputRow, columns: Columns) -> Row:
    if isinstance(text, Mapping):
        return text
    first, second = (text, None) if isinstance(text, str) else text
    return kind.text_row(first, second, columns)
