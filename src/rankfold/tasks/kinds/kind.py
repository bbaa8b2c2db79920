"""`TaskKind`: how rows become examples, and how a model learns, predicts and is scored on them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

from pydantic import JsonValue
from torch import Tensor, nn

from rankfold.errors import SpecError
from rankfold.models.base import BaseModel, LoadedModel, TaskHead, load_model
from rankfold.tasks.data.columns import Columns, find_columns, find_text_columns
from rankfold.tasks.data.numbers import Decimal
from rankfold.tasks.data.pictures import PictureFolder
from rankfold.tasks.data.read import Row, Rows, Table
from rankfold.tasks.data.splits import Stratum, value_strata
from rankfold.tasks.data.table import Finding
from rankfold.tasks.kinds.learner import Features, Learner
from rankfold.tasks.metrics import measure, most_common

IGNORED_LABEL = -100
"""The label of a token that does not count in the loss; torch's own convention."""

Batch = Mapping[str, Any]
Collate = Callable[[Sequence[Features]], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Examples:
    """The examples of a task.

    Args:
        label_names: Class names in the order of their ids; None if the kind has no classes.
        splits: Examples by split name. An example is a value of its kind, with an `id`.
        findings: Remarks on the rows that are worth reading before a training.
        settings: JSON that the kind needs to use a trained model again, such as the scale of its numbers; a
            record keeps it beside the class names, and a learner brings it back.
    """

    label_names: tuple[str, ...] | None
    splits: Mapping[str, Sequence[Any]]
    findings: tuple[Finding, ...] = ()
    settings: Mapping[str, JsonValue] = field(default_factory=dict[str, JsonValue])

    @property
    def counts(self) -> dict[str, int]:
        """Number of examples by split."""
        return {split: len(examples) for split, examples in self.splits.items()}

    def part(self, splits: Iterable[str]) -> Self:
        """Return the examples of some of the splits, in this order."""
        return replace(self, splits={split: self.splits[split] for split in splits})


@dataclass(frozen=True, slots=True)
class LabelHints:
    """Knowledge about labels that the rows do not hold.

    Args:
        names: Class names in the order that the data has them; None if they are not known.
        learned_names: Class names in the order in which a model has learned them, if one has; they decide the
            ids.
        choice_word: The word for a choice in a prompt that is written from `question` and `choices`.
        learned_settings: The `Examples.settings` that a model was trained with; None if none has been yet.
        decimal: The decimal separator of numbers that are written as texts; found in the data if None.
        folder: Where paths of pictures begin in rows without a table; the working folder if None.
        is_published: Whether the task is a known one, whose protocol is not changed.
        chat_template: The name or file of a chat template, if the user named one.
    """

    names: Sequence[str] | None = None
    learned_names: Sequence[str] | None = None
    choice_word: str = "answer"
    learned_settings: Mapping[str, JsonValue] | None = None
    decimal: Decimal | None = None
    is_published: bool = False
    chat_template: str | None = None
    folder: PictureFolder | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Predictions of a model on a split, with loss and metrics.

    Args:
        loss: Mean loss of a row, or of an answer's token.
        metrics: By name.
        ids: Ids of the examples that were predicted; open instructions have only a loss.
        labels: The right predictions: class ids, numbers, indices of candidates.
        predictions: Those of the model; -1 where its text names no candidate.
        row_losses: The loss of each predicted row, by which mistakes are sorted; empty if not known.
        baselines: Metrics of other models on the same rows by name, such as the base without the adapter.
    """

    loss: float
    metrics: dict[str, float]
    ids: list[int | str] = field(default_factory=list[int | str])
    labels: list[Any] = field(default_factory=list[Any])
    predictions: list[Any] = field(default_factory=list[Any])
    row_losses: list[float] = field(default_factory=list[float])
    baselines: Mapping[str, Mapping[str, float]] = field(default_factory=dict[str, Mapping[str, float]])


class TaskKind(ABC):
    """A kind of task, such as classification: everything that depends on the kind of label.

    A kind has no state. Another package adds one through the entry point group `rankfold.task_kinds`, as an
    object of a subclass; nothing else in rankfold needs to know it. Required are `name`, `head`, `examples`,
    `metrics`, `encode`, `collate` and `predict`; the rest has defaults.

    Attributes:
        name: The name on the command line and in records.
        former_names: Names under which earlier versions recorded the same tasks, so that their runs are
            evaluated, and stopped ones resume.
        derived_settings: Settings that follow from the data and change no training, which stopped runs of
            earlier versions may lack.
        setting_types: The names of all settings that its examples may have, each with the type of its value;
            None if they are not checked.
        default_for_causal: Whether it is the usual kind of models that generate text (True), or of all others
            (False), where there is no data to infer it from; None if neither.
        loss_per_token: Whether the loss is a mean over labelled tokens rather than over rows.
        reads_text: Whether its examples have words, whose number is their length.
        uses_chat_template: Whether its examples are written by the model's chat template.
        sampling_options: The fields of a sampling request that its answers depend on.
        draws: Whether its answers are pictures, which are written into a folder.
        reads_training: Whether the examples of any split depend on the training split.
        takes_empty_labels: Whether an empty text is a label, that of no class, rather than a missing one.
        metric_names: The metrics that can be asked for; those of `metrics` alone if empty.
        baselines: Constant predictions by name, each computed from the training labels: the scores of a model
            that never looks at its input.
    """

    name: ClassVar[str]
    default_for_causal: ClassVar[bool | None] = None
    former_names: ClassVar[tuple[str, ...]] = ()
    derived_settings: ClassVar[frozenset[str]] = frozenset()
    setting_types: ClassVar[Mapping[str, type] | None] = None
    loss_per_token: ClassVar[bool] = False
    reads_text: ClassVar[bool] = True
    uses_chat_template: ClassVar[bool] = False
    sampling_options: ClassVar[frozenset[str]] = frozenset()
    draws: ClassVar[bool] = False
    reads_training: ClassVar[bool] = False
    takes_empty_labels: ClassVar[bool] = False
    baselines: ClassVar[Mapping[str, Callable[[Sequence[Any]], Any]]] = {"majority": most_common}
    metric_names: ClassVar[tuple[str, ...]] = ()

    def __repr__(self) -> str:
        return f"<task kind '{self.name}'>"

    def with_options(self, options: Mapping[str, JsonValue]) -> "TaskKind":
        """Return this kind with options of its own; by default it has none.

        Args:
            options: By name.

        Raises:
            SpecError: If there is no such option, or a value is not possible.
        """
        for name in options:
            raise SpecError(f"tasks of the kind {self.name} have no option '{name}'; leave it out.")
        return self

    # Rows become examples.

    def claims_base(self, base: BaseModel) -> bool:
        """Return whether a base model learns this kind alone, whatever the rows are; by default not.

        Args:
            base: What `resolve_model` found.
        """
        return False

    def suits(self, rows: Rows, columns: Columns, *, is_causal: bool) -> bool:
        """Return whether rows are of this kind, where nobody has named one; by default never.

        Args:
            rows: At least one row.
            columns: Those that `find_columns` found.
            is_causal: Whether the model generates text.

        Raises:
            DataError: If the rows could mean this kind or another, or the model cannot learn them.
        """
        return False

    def claims(self, rows: Rows, overrides: Columns) -> bool:
        """Return whether only this kind reads the columns of rows, such as lists of tags; by default never.

        This is asked before the columns of a text and a label are looked for.

        Args:
            rows: At least one row.
            overrides: Columns that the user has named.
        """
        return False

    def columns(self, rows: Rows, overrides: Columns) -> Columns:
        """Return the columns to read; by default a text, perhaps a second one, and a label.

        Args:
            rows: At least one row.
            overrides: Columns that the user has named.

        Raises:
            DataError: If a column is missing, or cannot be told from others.
        """
        return find_columns(rows, overrides)

    @abstractmethod
    def examples(self, tables: Mapping[str, Table], columns: Columns, hints: LabelHints) -> Examples:
        """Return the rows of every split as examples.

        Args:
            tables: Tables by split name; the first, the training split, defines the labels.
            columns: Those that `columns` returned.
            hints: What is known about the labels beside the rows.

        Raises:
            DataError: If a value is missing or of the wrong type, or a label is not one of the training
                split's, or was not learned.
        """

    def strata(self, table: Table, columns: Columns, hints: LabelHints) -> Sequence[Stratum]:
        """Return the label of each row, which an automatic validation split keeps in proportion.

        A set of labels says that each has to stay in the training part; None, that the row may go anywhere.
        By default these are the values of the label column, unless they are lists or measurements.

        Args:
            table: All rows that are to be cut.
            columns: Those that `columns` returned.
            hints: What is known about the labels beside the rows.

        Raises:
            DataError: If a label is missing or of the wrong type.
        """
        return value_strata(table.rows, columns.label)

    def input_columns(self, rows: Rows, overrides: Columns) -> Columns:
        """Return the columns to read of rows without labels; by default a text, perhaps a second one.

        Args:
            rows: At least one row.
            overrides: Columns that the user has named, or that were read in training; a label need not be
                there.

        Raises:
            DataError: If a column is missing, or cannot be told from others.
        """
        return find_text_columns(rows, overrides)

    def inputs(self, rows: Rows, columns: Columns, hints: LabelHints | None = None) -> list[Any]:
        """Return rows without labels as examples that `predict` takes.

        Args:
            rows: In any number.
            columns: Those that `input_columns` returned.
            hints: What a model has learned about labels, such as the answers to choose from.

        Raises:
            DataError: If a text is missing.
            SpecError: If this kind cannot.
        """
        raise SpecError(f"the task kind '{self.name}' reads no rows without labels; evaluate it on a split.")

    def text_row(self, text: str, pair: str | None, columns: Columns) -> Row:
        """Return a bare text, perhaps with a second one, as a row that `inputs` reads.

        Args:
            text: The first or only text.
            pair: The second text.
            columns: Those that were read in training; of others the usual names are taken.

        Raises:
            SpecError: If pairs were learned and this is none, or the other way round.
        """
        if pair is None and columns.pair is not None:
            raise SpecError("pairs of texts were learned, and this is one text; give the second one too.")
        if pair is not None and columns.text is not None and columns.pair is None:
            raise SpecError("single texts were learned, and this is a pair; leave the second text out.")
        if pair is None:
            return {columns.text or "text": text}
        return {columns.text or "sentence1": text, columns.pair or "sentence2": pair}

    def conversation_row(self, learner: Learner, turns: Sequence[tuple[str, str]]) -> Row:
        """Return a conversation, up to where the assistant answers, as a row that `inputs` reads.

        Args:
            learner: The model, whose chat template may write the turns.
            turns: Role (`system`, `user` or `assistant`) and text of each turn; the last is the user's.

        Raises:
            SpecError: If this kind answers no conversation.
        """
        raise SpecError(
            f"the adapter learned {self.name}, which holds no conversation; use `rankfold predict`."
        )

    @abstractmethod
    def metrics(self, examples: Examples, task_metrics: Sequence[str] = ()) -> tuple[str, ...]:
        """Return the names of the metrics, the primary one first.

        Args:
            examples: With every split that will be used.
            task_metrics: Those of the task, if it is a named one; most kinds return these.
        """

    def possible_metrics(self, examples: Examples) -> tuple[str, ...]:
        """Return the metrics that can be asked for; by default `metric_names`.

        Args:
            examples: With every split that will be used.
        """
        return self.metric_names

    def label(self, example: Any) -> Any:
        """Return the label that a prediction is compared with; None if the example has none."""
        return example.label

    def input_texts(self, example: Any) -> dict[str, str]:
        """Return the inputs of an example by name, as people read them; by default its text and its pair."""
        texts = {"text": getattr(example, "text", None), "pair": getattr(example, "pair", None)}
        return {name: text for name, text in texts.items() if isinstance(text, str)}

    def describe_label(self, example: Any, label: Any, label_names: Sequence[str] | None) -> JsonValue:
        """Return a label or a prediction of an example as people read it; by default the name of a class id.

        Args:
            example: The one that it is of.
            label: A label, or a prediction that `predict` returned.
            label_names: Class names in the order of their ids, for a kind with classes.
        """
        is_class = label_names is not None and type(label) is int and 0 <= label < len(label_names)
        return label_names[label] if label_names is not None and is_class else label

    def reference(self, example: Any) -> JsonValue:
        """Return the right answer to an example without a label, beside which people read the model's."""
        return self.label(example)

    def pictures(self, learner: Learner, examples: Sequence[Any]) -> list[tuple[Any, dict[str, Any]]]:
        """Return examples that people look at, each with pictures (PIL) by name; by default none.

        Args:
            learner: The trained model, and how to run it.
            examples: Those of the held-out split.
        """
        return []

    # Base model.

    @abstractmethod
    def head(self, label_names: Sequence[str] | None = None) -> TaskHead:
        """Return the class of model and the task head that the kind needs.

        Args:
            label_names: Class names in the order of their ids, for a kind with classes.
        """

    def check_base(self, base: BaseModel, columns: Columns) -> None:
        """Check that a base model reads values such as those of the columns; by default it does.

        Raises:
            SpecError: If it does not, with the column.
        """
        _ = base, columns

    def load(self, base: BaseModel, label_names: Sequence[str] | None = None) -> LoadedModel:
        """Load a base model and its processor; a new head is drawn from torch's global generator.

        Raises:
            SpecError: If the model cannot do the task, or its files cannot be read.
            DataError: If a GGUF file cannot be read.
        """
        return load_model(base, self.head(label_names))

    def model_settings(self, base: LoadedModel, examples: Examples) -> Mapping[str, JsonValue]:
        """Return the settings of examples with those that come from the model; by default none do.

        Args:
            base: The model with its processor.
            examples: With every split that will be used.
        """
        return examples.settings

    def start_head(self, base: LoadedModel, examples: Examples) -> None:
        """Set a new head up for the training examples; by default it stays as it was drawn."""
        _ = base, examples

    def output_note(self, settings: Mapping[str, JsonValue]) -> str | None:
        """Return how a program without rankfold reads the model's outputs; None if as usual.

        Args:
            settings: Those of the examples that were learned.
        """
        _ = settings

    def output_scale(self, settings: Mapping[str, JsonValue]) -> tuple[float, float]:
        """Return the mean and the standard deviation between a model's outputs and the unit of its labels.

        Args:
            settings: Those of the examples that were learned.
        """
        return 0.0, 1.0

    def rescale(self, settings: Mapping[str, JsonValue], mean: float, std: float) -> dict[str, JsonValue]:
        """Return the settings of a model whose outputs are this far from the unit of its labels.

        Args:
            settings: Those of the examples that were learned.
            mean: The number to add to an output that was multiplied by `std`.
            std: The number to multiply an output by.
        """
        return dict(settings)

    # Training.

    @abstractmethod
    def encode(self, learner: Learner, examples: Sequence[Any], *, training: bool) -> Sequence[Features]:
        """Return each example as features of one row, not padded yet.

        Args:
            learner: Has the processor and the most tokens of a row.
            examples: Those of one split.
            training: Whether the labels belong to the features; predictions are made without.
        """

    @abstractmethod
    def collate(self, learner: Learner) -> Collate:
        """Return the function that pads and stacks features into a batch, and does not change them."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the loss of a batch with labels; by default the model's own.

        Args:
            model: With the adapter.
            batch: From `collate`, on the model's device.
        """
        return model(**batch).loss

    def loss_items(self, batch: Batch) -> float:
        """Return how many items the loss of a batch is a mean over: rows, or labelled tokens.

        Where several batches make one update, their losses are weighed by it. A kind whose loss weighs items
        itself returns the sum of their weights.

        Args:
            batch: From `collate`.
        """
        labels = batch.get("labels")
        if self.loss_per_token and labels is not None:
            # Models predict the next token, so the first one is no label.
            return float((labels[..., 1:] != IGNORED_LABEL).sum())
        return float(len(next(iter(batch.values())) if labels is None else labels))

    def weigh_classes(self, examples: Examples, weights: Mapping[str, float] | None = None) -> "TaskKind":
        """Return this kind with a loss that weighs classes.

        Args:
            examples: With the training split.
            weights: By class name, 1 where one is not named; if None, all classes count alike.

        Raises:
            SpecError: If the kind has no classes, or none of a name.
        """
        raise SpecError(f"class weights are for kinds with classes, not for {self.name}; leave them out.")

    def balanced_order(self, examples: Sequence[Any]) -> list[int]:
        """Return the indices of training rows, repeated until each class has as many as the largest.

        Raises:
            SpecError: If the kind has not one class for each row.
        """
        raise SpecError(
            f"balanced sampling is for kinds with one class a row, not for {self.name}; leave it out."
        )

    @property
    def has_own_loss(self) -> bool:
        """Whether the loss is another than the model's own."""
        return type(self).loss is not TaskKind.loss

    def pack(self, learner: Learner, rows: Sequence[Features]) -> Sequence[Features]:
        """Return encoded rows, several of them in one, which do not see each other; by default none can be.

        Raises:
            SpecError: If the kind's rows or the model cannot be packed.
        """
        raise SpecError(f"packing is for kinds that learn to write text, not for {self.name}; leave it out.")

    def findings(self, learner: Learner, examples: Mapping[str, Sequence[Any]]) -> list[Finding]:
        """Return remarks on examples as the model will see them, such as unknown tokens; by default none.

        Args:
            learner: Has the processor and the most tokens of a row.
            examples: By split name.
        """
        return []

    def check(self, learner: Learner, examples: Sequence[Any]) -> None:
        """Check, before any training, that examples can be evaluated.

        Raises:
            DataError: If one cannot.
            SpecError: If a setting of the learner makes it impossible.
        """
        _ = learner, examples

    # Prediction and evaluation.

    def scoring(self, name: str | None, metrics: Sequence[str], task: str) -> str | None:
        """Return the way in which answers with choices are found; None for kinds without.

        Args:
            name: The way that was asked for, if any.
            metrics: Those of the task.
            task: The task's name, for the error.

        Raises:
            SpecError: If one was asked for that is unknown, or that the task has no use for.
        """
        if name is None:
            return None
        raise SpecError(
            f"the scoring '{name}' is for questions with choices that a model answers in text, but '{task}' "
            f"is measured as {self.name} by {metrics[0]}; leave it out."
        )

    @abstractmethod
    def predict(self, learner: Learner, examples: Sequence[Any]) -> list[Any]:
        """Return the prediction of each example, comparable with its label; labels are not looked at."""

    def answer(self, learner: Learner, examples: Sequence[Any]) -> list[dict[str, JsonValue]]:
        """Return the answer to each example for people, as an object of JSON; by default the prediction.

        Args:
            learner: The model, and how to run it.
            examples: Those of `inputs`, or of a split.
        """
        return [{"prediction": value} for value in self.predict(learner, examples)]

    def evaluate(
        self, learner: Learner, examples: Sequence[Any], metrics: Sequence[str], *, is_final: bool = True
    ) -> Evaluation:
        """Return loss, metrics and predictions.

        Args:
            learner: The model, and how to run it.
            examples: Those of one split.
            metrics: Names, the primary one first.
            is_final: False may leave out predictions that take much longer than the loss.
        """
        rows = self.encode(learner, examples, training=True)
        total = 0.0
        for indices, batch in learner.batches(rows, self.collate(learner)):
            with learner.evaluating():
                total += float(self.loss(learner.model, batch)) * len(indices)
        labels, predictions = [self.label(item) for item in examples], self.predict(learner, examples)
        return Evaluation(
            total / len(examples),
            self.score(metrics, labels, predictions),
            [item.id for item in examples],
            labels,
            predictions,
        )

    @property
    def predicts_at_end(self) -> bool:
        """Whether evaluations during training leave out predictions, so that one at the end is needed."""
        return False

    def score(
        self, metrics: Sequence[str], labels: Sequence[Any], predictions: Sequence[Any]
    ) -> dict[str, float]:
        """Return metrics by name; by default those of `rankfold.tasks.metrics`.

        Raises:
            SpecError: If a metric is unknown.
        """
        return measure(metrics, labels, predictions)

    # Mixtures: several tasks in one adapter.

    def mixture_kind(self, kinds: Sequence["TaskKind"]) -> "TaskKind | None":
        """Return the kind of a mixture of tasks; None, the default, if they cannot be learned together.

        Args:
            kinds: Those of the tasks, this one first.
        """
        return None

    def mixture_metrics(self, metrics: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
        """Return the metrics of a mixture from those of its tasks; by default those of the first."""
        return metrics[0]

    def shift_label(self, example: Any, first: int) -> Any:
        """Return an example whose class ids begin at `first` in a mixture; by default as it is."""
        return example
