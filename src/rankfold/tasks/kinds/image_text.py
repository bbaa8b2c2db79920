"""Questions about pictures and captions, answered in text by a vision-language model.

The loss is on the answer. Where training has few different answers, they are the ones that a model chooses
from. Every final evaluation is made again with gray pictures: what a model answers right without looking.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, cast

from pydantic import JsonValue
from torch.nn import functional
from transformers import AutoModelForImageTextToText

from rankfold.errors import DataError, SpecError
from rankfold.models.base import BaseModel, TaskHead
from rankfold.tasks.data.columns import Columns
from rankfold.tasks.data.picture_columns import check_pictures, find_picture_column, with_cells
from rankfold.tasks.data.pictures import OWN_PATHS, PictureCell
from rankfold.tasks.data.table import Row, Rows, Table, quote_list
from rankfold.tasks.data.texts import find_name
from rankfold.tasks.kinds.answers import AnsweredKind
from rankfold.tasks.kinds.conversations import CONVERSATION_COLUMNS
from rankfold.tasks.kinds.image_classification import check_reads_pictures
from rankfold.tasks.kinds.kind import IGNORED_LABEL, Collate, Evaluation, Examples, LabelHints
from rankfold.tasks.kinds.labelled import read_rows
from rankfold.tasks.kinds.learner import Features, LazyRows, Learner
from rankfold.tasks.kinds.picture_questions import (
    ANSWERS,
    PictureQuestion,
    closed_answers,
    has_inner_pictures,
    learned_answers,
    question_groups,
    read_question,
    with_candidates,
)
from rankfold.tasks.kinds.picture_tokens import encode_question, generate_replies, question_collator
from rankfold.tasks.metrics import ANSWER_LOSS, TEXT_METRICS

_QUESTIONS = ("question", "instruction", "prompt", "query")
_REPLIES = ("answer", "answers", "output", "response", "completion", "caption", "captions", "text")
_TYPES = ("question_type", "type", "answer_type", "category")


class ImageText(AnsweredKind):
    """Questions about pictures, and captions."""

    name: ClassVar[str] = "image_text"
    derived_settings: ClassVar[frozenset[str]] = frozenset({ANSWERS})
    setting_types: ClassVar[Mapping[str, type] | None] = {ANSWERS: list}
    metric_names: ClassVar[tuple[str, ...]] = (ANSWER_LOSS, *TEXT_METRICS)

    # Rows become examples.

    def claims(self, rows: Rows, overrides: Columns) -> bool:
        """Return whether rows have pictures with questions and answers, captions, or conversations."""
        if overrides.text is not None and overrides.picture is None:
            return False  # to learn from the text alone
        try:
            columns = self.columns(rows, overrides)
        except DataError:
            return False
        return columns.picture is not None or has_inner_pictures(rows[0], columns.text)

    def columns(self, rows: Rows, overrides: Columns) -> Columns:
        """Return the columns of pictures, a question and an answer; a conversation holds all of them.

        Raises:
            DataError: If there are no pictures, or no answers.
        """
        columns = self.input_columns(rows, overrides)
        if columns.text in CONVERSATION_COLUMNS:
            return columns
        free = [name for name in rows[0] if name not in (columns.picture, columns.text, columns.group)]
        label = overrides.label or find_name(_REPLIES, free)
        if label is None or label not in rows[0]:
            raise DataError(
                "there is no column of answers; name it with --label-column; the data has "
                f"{quote_list(rows[0])}."
            )
        return replace(columns, label=label)

    def input_columns(self, rows: Rows, overrides: Columns) -> Columns:
        """Return the columns of pictures and a question.

        Raises:
            DataError: If there are no pictures, or a named column is missing.
        """
        picture = find_picture_column(rows, overrides.picture)
        text = overrides.text or find_name((*CONVERSATION_COLUMNS, *_QUESTIONS), rows[0])
        if text is not None and text not in rows[0]:
            raise DataError(
                f"there is no column '{text}'; name one that the data has: {quote_list(rows[0])}."
            )
        if picture is None and not has_inner_pictures(rows[0], text):
            raise DataError(
                "there is no column of pictures; name it with --picture-column; the data has "
                f"{quote_list(rows[0])}."
            )
        return Columns(text=text, label=overrides.label, group=overrides.group, picture=picture)

    def examples(self, tables: Mapping[str, Table], columns: Columns, hints: LabelHints) -> Examples:
        """Return questions with answers; few different ones in training are the candidates of all rows."""
        column = columns.picture or columns.text or ""
        folders = with_cells(tables, column)
        types = find_name(_TYPES, next(iter(tables.values())).rows[0])

        def read(row: Row, name: int | str) -> PictureQuestion:
            cell = cast("PictureCell", row[column])
            whole = row if columns.picture else {**row, column: cell.value}
            item = read_question(whole, name, columns, cell)
            if not item.answer:
                raise DataError("the answer is missing; mend or remove the row.")
            group = str(row.get(types) or "") if types not in (None, columns.label, columns.text) else ""
            return replace(item, group=group)

        splits = read_rows(folders, read)
        answers = learned_answers(hints)
        if answers is None:
            answers = closed_answers([item.answer for item in next(iter(splits.values()))])
        splits = {
            split: [with_candidates(item, answers) for item in items] for split, items in splits.items()
        }
        pictures = [picture for items in splits.values() for item in items for picture in item.pictures]
        settings: dict[str, JsonValue] = {ANSWERS: list(answers)} if answers else {}
        return Examples(None, splits, tuple(check_pictures(pictures)), settings)

    def inputs(self, rows: Rows, columns: Columns, hints: LabelHints | None = None) -> list[Any]:
        """Return rows as questions without answers."""
        hints = hints or LabelHints()
        folder, answers = hints.folder or OWN_PATHS, learned_answers(hints) or ()
        column = columns.picture or columns.text or ""
        cells = [PictureCell(row.get(column), folder) for row in rows]
        without_label = replace(columns, label=None)
        return [
            replace(read_question(row, index, without_label, cell), answer="", candidates=answers)
            for index, (row, cell) in enumerate(zip(rows, cells, strict=True))
        ]

    def text_row(self, text: str, pair: str | None, columns: Columns) -> Row:
        """Return a question and the path of a picture as a row; a text alone is the path, to be described.

        Raises:
            SpecError: If questions were learned and there is no picture.
        """
        picture = columns.picture or "image"
        if pair is not None:
            return {columns.text or "question": text, picture: pair}
        if columns.text is not None:
            raise SpecError("questions about pictures were learned; give the picture as the second text too.")
        return {picture: text}

    def input_texts(self, example: PictureQuestion) -> dict[str, str]:
        """Return the question, and the names of the pictures."""
        names = ", ".join(picture.title for picture in example.pictures)
        return {"question": example.question, "picture": names}

    def describe_label(
        self, example: PictureQuestion, label: Any, label_names: Sequence[str] | None
    ) -> JsonValue:
        """Return the candidate of an index."""
        is_index = isinstance(label, int) and 0 <= label < len(example.candidates)
        return example.candidates[label] if is_index else label

    # Base model and training.

    def head(self, label_names: Sequence[str] | None = None) -> TaskHead:
        """Return a model that reads pictures and text, and writes text."""
        auto_class = AutoModelForImageTextToText
        return TaskHead(self.name, auto_class, None, max_length=2048, inputs="picture_and_text")

    def check_base(self, base: BaseModel, columns: Columns) -> None:
        """Check that a base model reads pictures.

        Raises:
            SpecError: If it does not, with the column that it would not see.
        """
        check_reads_pictures(base, columns)

    def encode(self, learner: Learner, examples: Sequence[Any], *, training: bool) -> Sequence[Features]:
        """Return rows that open their pictures and are tokenised when they are read."""
        return self._rows(learner, examples, with_answers=training)

    def _rows(
        self,
        learner: Learner,
        examples: Sequence[PictureQuestion],
        *,
        with_answers: bool,
        is_blind: bool = False,
    ) -> LazyRows:
        def encode_row(index: int) -> Features:
            item = examples[index]
            return encode_question(learner, item, item.answer if with_answers else None, is_blind=is_blind)

        return LazyRows(encode_row, [0] * len(examples))

    def collate(self, learner: Learner) -> Collate:
        """Return the function that pads tokens on the right, and joins pictures."""
        return question_collator(learner, on_left=False)

    # Prediction and evaluation.

    def predict(self, learner: Learner, examples: Sequence[Any]) -> list[Any]:
        """Return the index of the chosen candidate, or the generated text where the answer is open."""
        return self._predict(learner, examples)

    def _predict(
        self, learner: Learner, examples: Sequence[PictureQuestion], *, is_blind: bool = False
    ) -> list[Any]:
        texts = [""] * len(examples)
        for is_open in (False, True):
            indices = [index for index, item in enumerate(examples) if is_open is not bool(item.candidates)]
            items = [examples[index] for index in indices]
            rows = self._rows(learner, items, with_answers=False, is_blind=is_blind)
            with learner.reporting(len(items), "answering") as report:
                for places, batch in learner.batches(rows, question_collator(learner, on_left=True)):
                    answers = generate_replies(learner, batch, [items[place] for place in places])
                    for place, text in zip(places, answers, strict=True):
                        texts[indices[place]] = text
                    report(len(places))
        return [
            item.candidates.index(text) if text in item.candidates else text
            for item, text in zip(examples, texts, strict=True)
        ]

    def answer(self, learner: Learner, examples: Sequence[Any]) -> list[dict[str, JsonValue]]:
        """Return the text that answers each question."""
        answers = self.predict(learner, examples)
        return [
            {"text": self.describe_label(item, answer, None)}
            for item, answer in zip(examples, answers, strict=True)
        ]

    def evaluate(
        self, learner: Learner, examples: Sequence[Any], metrics: Sequence[str], *, is_final: bool = True
    ) -> Evaluation:
        """Return the mean loss of an answer's token, and the scores of answers, also to gray pictures."""
        losses = self._losses(learner, examples)
        loss = sum(total for total, _ in losses) / max(1, sum(count for _, count in losses))
        row_losses = [total / max(1, count) for total, count in losses]
        scores = {ANSWER_LOSS: loss}
        if not is_final or not math.isfinite(loss):
            return Evaluation(loss, scores)
        closed = [place for place, item in enumerate(examples) if item.candidates]
        places = closed or list(range(len(examples)))
        text_metrics = [name for name in metrics if name in TEXT_METRICS]
        if not closed and not text_metrics:
            return Evaluation(loss, scores)
        items = [examples[place] for place in places]
        names = ("accuracy",) if closed else tuple(text_metrics)
        labels = [self.label(item) if closed else item.answer for item in items]
        predictions = self.predict(learner, items)
        scores = self.score(names, labels, predictions) | scores
        blind = self._predict(learner, items, is_blind=True)
        scores |= {f"{name}_blind": value for name, value in self.score(names, labels, blind).items()}
        for group, rows in question_groups(items).items():
            part = self.score(names, [labels[row] for row in rows], [predictions[row] for row in rows])
            unseen = self.score(names, [labels[row] for row in rows], [blind[row] for row in rows])
            scores |= {f"{name}_{group}": value for name, value in part.items()}
            scores |= {f"{name}_{group}_blind": value for name, value in unseen.items()}
        ids = [item.id for item in items]
        return Evaluation(loss, scores, ids, labels, predictions, [row_losses[place] for place in places])

    def _losses(self, learner: Learner, examples: Sequence[Any]) -> list[tuple[float, int]]:
        """Return of each answer the summed loss of its tokens, and their number."""
        losses = [(0.0, 0)] * len(examples)
        rows = self.encode(learner, examples, training=True)
        with learner.reporting(len(rows), "measuring answers") as report:
            for indices, batch in learner.batches(rows, self.collate(learner)):
                targets = batch.pop("labels")[:, 1:].cpu()
                logits = learner.logits(batch)[:, :-1]
                values = functional.cross_entropy(
                    logits.transpose(1, 2), targets, ignore_index=IGNORED_LABEL, reduction="none"
                )
                totals: list[float] = cast(Any, values.sum(1)).tolist()
                counts: list[int] = (targets != IGNORED_LABEL).sum(1).tolist()
                for index, total, count in zip(indices, totals, counts, strict=True):
                    losses[index] = (total, count)
                report(len(indices))
        return losses


KIND = ImageText()
