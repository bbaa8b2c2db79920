"""Kinds of tasks, by name: those of rankfold, and those of other packages.

A kind is one file with a subclass of `TaskKind`. Another package adds its own through the entry point group
`rankfold.task_kinds`.
"""

from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import entry_points
from types import MappingProxyType

from rankfold.errors import DataError, unknown_name
from rankfold.models.base import BaseModel
from rankfold.models.meta import MetaBase, meta_base
from rankfold.plugins import file_values, find_plugin
from rankfold.tasks.data.columns import Columns
from rankfold.tasks.data.read import Rows
from rankfold.tasks.kinds.kind import Evaluation, Examples, LabelHints, TaskKind
from rankfold.tasks.kinds.learner import Features, Learner

__all__ = [
    "KINDS",
    "Evaluation",
    "Examples",
    "Features",
    "LabelHints",
    "Learner",
    "TaskKind",
    "claiming_base",
    "claiming_kind",
    "default_kind",
    "find_kind",
    "infer_kind",
    "kind_base",
    "kind_names",
]

GROUP = "rankfold.task_kinds"

KINDS: Mapping[str, TaskKind] = MappingProxyType({kind.name: kind for kind in file_values(__name__, "KIND")})
"""The kinds that come with rankfold: the `KIND` of each file of this package that has one."""


def kind_names() -> tuple[str, ...]:
    """Return the names of all kinds, those of other packages last; none of these is loaded."""
    return (*KINDS, *sorted(set(entry_points(group=GROUP).names) - set(KINDS)))


def find_kind(name: str) -> TaskKind:
    """Return the kind of a name; of other packages only the one that has it is loaded.

    Raises:
        SpecError: If there is none, with the nearest name, or two packages have it, or its package is broken.
    """
    kind = find_plugin(GROUP, name, "task kind", TaskKind, is_ours=name in KINDS) or KINDS.get(name)
    if kind is None:
        raise unknown_name("kind", name, kind_names())
    return kind


def claiming_kind(rows: Rows, overrides: Columns) -> TaskKind | None:
    """Return the kind of rows whose columns only one kind reads; None if they are of a usual sort.

    Args:
        rows: At least one row.
        overrides: Columns that the user has named.
    """
    return next((kind for kind in KINDS.values() if kind.claims(rows, overrides)), None)


def claiming_base(base: BaseModel) -> TaskKind | None:
    """Return the kind that is all a base model learns, such as drawing pictures; None for usual models."""
    return next((kind for kind in KINDS.values() if kind.claims_base(base)), None)


def infer_kind(rows: Rows, columns: Columns, *, is_causal: bool) -> TaskKind:
    """Return the kind of rows that nobody has named: the one of rankfold's that suits them.

    Args:
        rows: At least one row.
        columns: Those that `find_columns` found.
        is_causal: Whether the model generates text; if so, instructions and choices are trained as text.

    Raises:
        DataError: If the rows could mean two kinds, or the model cannot learn them.
    """
    for kind in KINDS.values():
        if kind.suits(rows, columns, is_causal=is_causal):
            return kind
    raise DataError("the rows suit no kind of task; name one with --kind.")


def default_kind(*, is_causal: bool) -> TaskKind:
    """Return the usual kind for a model, where there is no data to infer it from."""
    return next(kind for kind in KINDS.values() if kind.default_for_causal is is_causal)


def kind_base(model: str, *, kind: str | None, num_labels: int) -> MetaBase:
    """Return a model for a kind of task on the meta device: its structure without weights.

    Args:
        model: As for `rankfold train`, or the path of a `config.json`.
        kind: The name of the kind of task; if None the usual one of texts, or else the first that a model of
            this type can be built for.
        num_labels: Classes, for a kind that has any.

    Raises:
        SpecError: If there is no such model or kind, or the model's configuration cannot be read.
    """
    task_kind = None if kind is None else find_kind(kind)
    labels = [f"LABEL_{index}" for index in range(num_labels)]
    base = meta_base(model, lambda is_causal: (task_kind or default_kind(is_causal=is_causal)).head(labels))
    if kind is None and not base.has_class:
        bases = (replace(base, head=other.head(labels)) for other in KINDS.values())
        base = next((other for other in bases if other.head.auto_class and other.has_class), base)
        base.config.num_labels = base.head.num_labels or 1
    return base
