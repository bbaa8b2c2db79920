"""Image classification: one class for each picture."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import nn
from transformers import AutoModelForImageClassification

from rankfold.errors import DataError, SpecError
from rankfold.models.base import BaseModel, LoadedModel, TaskHead, head_options, reads_pictures
from rankfold.tasks.data.columns import LABEL_NAMES, Columns
from rankfold.tasks.data.picture_columns import check_pictures, find_picture_column, with_cells
from rankfold.tasks.data.pictures import OWN_PATHS, Picture, PictureCell
from rankfold.tasks.data.table import Row, Rows, Table, quote_list
from rankfold.tasks.data.texts import find_name
from rankfold.tasks.kinds.classification import Classification
from rankfold.tasks.kinds.kind import Collate, Examples, LabelHints
from rankfold.tasks.kinds.labelled import read_rows
from rankfold.tasks.kinds.learner import Features, LazyRows, Learner

_SAMPLE_ROWS = 200
_WORDS_OF_TEXT = 3


@dataclass(frozen=True, slots=True)
class LabelledPicture:
    """One picture with its class id; None if it is not known."""

    id: int | str
    picture: Picture
    label: Any = None


class ImageClassification(Classification):
    """Pictures in classes, scored by accuracy."""

    name: ClassVar[str] = "image_classification"
    default_for_causal: ClassVar[bool | None] = None
    reads_text: ClassVar[bool] = False

    def suits(self, rows: Rows, columns: Columns, *, is_causal: bool) -> bool:
        """Return that rows of texts are of another kind."""
        return False

    def claims(self, rows: Rows, overrides: Columns) -> bool:
        """Return whether rows have a picture and a label, and no text beside them."""
        if overrides.text is not None or overrides.pair is not None:
            return False
        try:
            columns = self.columns(rows, overrides)
        except DataError:
            return False
        others = [name for name in rows[0] if name not in (columns.picture, columns.label, columns.group)]
        return not any(_is_text(row.get(name)) for row in rows[:_SAMPLE_ROWS] for name in others)

    def columns(self, rows: Rows, overrides: Columns) -> Columns:
        """Return the columns of a picture and a label.

        Raises:
            DataError: If one is missing, or several hold pictures.
        """
        columns = self.input_columns(rows, overrides)
        label = overrides.label or find_name(LABEL_NAMES, rows[0])
        if label is None or label not in rows[0]:
            raise _no_column("label", label, rows[0])
        return Columns(label=label, group=overrides.group, picture=columns.picture)

    def input_columns(self, rows: Rows, overrides: Columns) -> Columns:
        """Return the column of pictures.

        Raises:
            DataError: If there is none, or several columns hold pictures.
        """
        picture = find_picture_column(rows, overrides.picture)
        if picture is None:
            raise _no_column("picture", None, rows[0])
        return Columns(label=overrides.label, group=overrides.group, picture=picture)

    def labelled_rows(
        self, tables: Mapping[str, Table], columns: Columns, label: Callable[[Row], Any]
    ) -> Mapping[str, Sequence[Any]]:
        """Return the rows of every split as pictures with labels."""
        column = columns.picture or ""

        def example(row: Row, name: int | str) -> LabelledPicture:
            cell = row[column]
            assert isinstance(cell, PictureCell)
            return LabelledPicture(name, cell.picture(), label(row))

        return read_rows(with_cells(tables, column), example)

    def examples(self, tables: Mapping[str, Table], columns: Columns, hints: LabelHints) -> Examples:
        """Return pictures with class ids; all of them have been opened once."""
        examples = super().examples(tables, columns, hints)
        pictures = [item.picture for items in examples.splits.values() for item in items]
        return replace(examples, findings=(*examples.findings, *check_pictures(pictures)))

    def inputs(self, rows: Rows, columns: Columns, hints: LabelHints | None = None) -> list[Any]:
        """Return rows as pictures without labels."""
        folder = (None if hints is None else hints.folder) or OWN_PATHS
        return [
            LabelledPicture(index, PictureCell(row.get(columns.picture or ""), folder).picture())
            for index, row in enumerate(rows)
        ]

    def text_row(self, text: str, pair: str | None, columns: Columns) -> Row:
        """Return a path, or base64, as the row of a picture.

        Raises:
            SpecError: If there is a second text.
        """
        if pair is not None:
            raise SpecError("pictures were learned, and this is a pair; give the path of one picture.")
        return {columns.picture or "image": text}

    def input_texts(self, example: LabelledPicture) -> dict[str, str]:
        """Return the name of the picture."""
        return {"picture": example.picture.title}

    def head(self, label_names: Sequence[str] | None = None) -> TaskHead:
        """Return an image classification model with an output for each class."""
        outputs = max(2, len(label_names or ()))
        options = head_options(outputs, label_names)
        return TaskHead(self.name, AutoModelForImageClassification, None, outputs, options, inputs="picture")

    def load(self, base: BaseModel, label_names: Sequence[str] | None = None) -> LoadedModel:
        """Load a model whose head is trained, also where its files have one with as many classes.

        Raises:
            SpecError: If the model's files cannot be read.
        """
        loaded = super().load(base, label_names)
        head = _head_of(loaded.model, max(2, len(label_names or ())))
        return replace(loaded, fresh_modules=tuple(sorted({*loaded.fresh_modules, *head})))

    def check_base(self, base: BaseModel, columns: Columns) -> None:
        """Check that a base model reads pictures.

        Raises:
            SpecError: If it does not, with the column that it would not see.
        """
        check_reads_pictures(base, columns)

    def encode(self, learner: Learner, examples: Sequence[Any], *, training: bool) -> Sequence[Features]:
        """Return rows that open, resize and normalise their picture when they are read."""

        def encode_row(index: int) -> Features:
            example: LabelledPicture = examples[index]
            pixels = learner.processor(images=example.picture.read(), return_tensors="pt")
            features: dict[str, Any] = {"pixel_values": pixels["pixel_values"][0]}
            return {**features, "labels": example.label} if training else features

        return LazyRows(encode_row, [0] * len(examples))

    def collate(self, learner: Learner) -> Collate:
        """Return the function that stacks pictures and labels."""

        def stack(rows: Sequence[Features]) -> dict[str, Any]:
            batch: dict[str, Any] = {"pixel_values": torch.stack([row["pixel_values"] for row in rows])}
            if "labels" in rows[0]:
                batch["labels"] = torch.tensor([row["labels"] for row in rows])
            return batch

        return stack


def check_reads_pictures(base: BaseModel, columns: Columns) -> None:
    """Check that a base model reads pictures.

    Raises:
        SpecError: If it does not, with the column that it would not see.
    """
    if not (base.is_pipeline or reads_pictures(base.config())):
        raise SpecError(
            f"the column '{columns.picture}' holds pictures, which a model of texts such as '{base.name}' "
            "cannot see; name a model for pictures with --model, or the text with --text-column to learn "
            "from it alone."
        )


def _head_of(model: nn.Module, outputs: int) -> list[str]:
    """Return the path of the last layer, if it has an output for each class."""
    modules: Iterable[tuple[str, nn.Module]] = cast(Any, model).named_modules()
    layers = [(name, module) for name, module in modules if isinstance(module, nn.Linear)]
    return [name for name, module in layers[-1:] if module.out_features == outputs]


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value.split()) >= _WORDS_OF_TEXT


def _no_column(role: str, name: str | None, row: Row) -> DataError:
    named = "" if name is None else f" '{name}'"
    return DataError(
        f"there is no {role} column{named}; name it with --{role}-column; the data has {quote_list(row)}."
    )


KIND = ImageClassification()
