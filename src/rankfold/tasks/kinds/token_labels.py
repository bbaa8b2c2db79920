"""Token labels: one tag for each token of a row, such as the entities of a text (NER)."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from pydantic import JsonValue
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForTokenClassification, DataCollatorForTokenClassification

from rankfold.errors import DataError, SpecError
from rankfold.models.base import TaskHead
from rankfold.tasks.data.columns import Columns
from rankfold.tasks.data.label_findings import counts_text, near_duplicates
from rankfold.tasks.data.labels import DROP_REMEDY, check_label_lists, count_labels, sort_names
from rankfold.tasks.data.read import Row, Rows, Table
from rankfold.tasks.data.table import Finding, quote_list
from rankfold.tasks.kinds.kind import IGNORED_LABEL, Batch, Collate, Evaluation, Examples, LabelHints
from rankfold.tasks.kinds.labelled import WeighedClasses, note_cut, read_rows
from rankfold.tasks.kinds.learner import Features, Learner, check_finite
from rankfold.tasks.list_metrics import OUTSIDE, TAG_METRICS, find_entities, score_lists, split_tag
from rankfold.tasks.metrics import balanced_weights, most_common

_TOKENS = ("tokens", "words")
_TAGS = ("ner_tags", "tags", "labels", "ner", "entities", "pos_tags", "upos", "chunk_tags", "token_labels")
_TAG = re.compile(r"\s*([BIESLUMbieslum])\s*([-_])\s*(.*)", re.DOTALL)
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, slots=True)
class TokenExample:
    """The tokens of one row with their tags; None if these are not known."""

    id: int | str
    tokens: tuple[str, ...]
    label: list[str] | None = None


class TokenLabels(WeighedClasses):
    """Tags of tokens, scored by the F1 of entities, or by the accuracy of tokens if there are none.

    The tokens are joined by spaces and tokenised by the model's tokenizer; the first piece of each token is
    labelled, the others are not looked at. Tokens that are cut off are predicted to be outside of entities.
    """

    name: ClassVar[str] = "token_labels"
    setting_types: ClassVar[Mapping[str, type] | None] = {}
    metric_names: ClassVar[tuple[str, ...]] = tuple(TAG_METRICS)

    def claims(self, rows: Rows, overrides: Columns) -> bool:
        """Return whether a column holds lists of tokens, and another their tags."""
        tokens, tags = _columns_of(rows[0], overrides)
        return (
            tokens is not None
            and tags is not None
            and isinstance(rows[0].get(tokens), list)
            and isinstance(rows[0].get(tags), list)
        )

    def columns(self, rows: Rows, overrides: Columns) -> Columns:
        """Return the columns of the tokens and of their tags.

        Raises:
            DataError: If there are none.
        """
        tokens, tags = _columns_of(rows[0], overrides)
        for name, noun, option, usual in (
            (tokens, "tokens", "--text-column", _TOKENS),
            (tags, "tags", "--label-column", _TAGS[:2]),
        ):
            if name is None or name not in rows[0]:
                raise DataError(
                    f"there is no column of {noun}; call it '{usual[0]}' or name it with {option}; "
                    f"the data has {quote_list(rows[0])}."
                )
        return replace(overrides, text=tokens, pair=None, label=tags)

    def examples(self, tables: Mapping[str, Table], columns: Columns, hints: LabelHints) -> Examples:
        """Return tokens with their tags.

        Raises:
            DataError: If a row has not as many tags as tokens, or a split has tags of its own.
        """
        column = columns.label or ""
        first = next(iter(tables))
        names = tables[first].class_names.get(column) or hints.names
        splits = read_rows(tables, lambda row, name: _example(row, name, columns, names))
        label_names = tuple(hints.learned_names or names or ()) or sort_names(
            tag for item in splits[first] for tag in item.label or ()
        )
        tags = {split: [item.label or [] for item in items] for split, items in splits.items()}
        check_label_lists(column, tables, tags, label_names, hints.learned_names, noun="tag")
        findings = () if hints.learned_names else _findings(column, splits[first], tables[first])
        return Examples(label_names, splits, tuple(findings))

    def strata(self, table: Table, columns: Columns, hints: LabelHints) -> list[frozenset[str]]:
        """Return the tags of each row, each of which has to stay in the training part."""
        names = table.class_names.get(columns.label or "") or hints.names
        items = read_rows({"train": table}, lambda row, name: _example(row, name, columns, names))["train"]
        return [frozenset(item.label or ()) for item in items]

    def input_columns(self, rows: Rows, overrides: Columns) -> Columns:
        """Return the column of the tokens, or of a text that is split into tokens.

        Raises:
            DataError: If there is none.
        """
        tokens, _ = _columns_of(rows[0], overrides)
        if tokens is None or tokens not in rows[0]:
            tokens = next((name for name, value in rows[0].items() if isinstance(value, str)), None)
        if tokens is None:
            raise DataError(f"there is no column of tokens; call it '{_TOKENS[0]}' or name --text-column.")
        return replace(overrides, text=tokens, pair=None)

    def inputs(self, rows: Rows, columns: Columns, hints: LabelHints | None = None) -> list[TokenExample]:
        """Return rows without tags; a text is split into words and punctuation marks."""
        return [TokenExample(index, _tokens_of(row, columns.text or "")) for index, row in enumerate(rows)]

    def metrics(self, examples: Examples, task_metrics: Sequence[str] = ()) -> tuple[str, ...]:
        """Return the F1 of entities first, or the accuracy of tokens if every tag is of one (POS)."""
        if task_metrics:
            return tuple(task_metrics)
        has_entities = OUTSIDE & set(examples.label_names or ())
        return tuple(TAG_METRICS) if has_entities else ("token_accuracy",)

    def input_texts(self, example: TokenExample) -> dict[str, str]:
        """Return the tokens, with spaces between them."""
        return {"text": " ".join(example.tokens)}

    def balanced_weights(self, examples: Sequence[TokenExample], names: Sequence[str]) -> list[float]:
        """Return `tokens / (tags * tokens of the tag)`."""
        order = {name: index for index, name in enumerate(names)}
        return balanced_weights([order[tag] for item in examples for tag in item.label or ()], len(names))

    def head(self, label_names: Sequence[str] | None = None) -> TaskHead:
        """Return a token classification model with an output for each tag."""
        names = label_names or ("LABEL_0", "LABEL_1")
        options = {
            "ignore_mismatched_sizes": True,
            "num_labels": len(names),
            "id2label": dict(enumerate(names)),
            "label2id": {name: index for index, name in enumerate(names)},
        }
        return TaskHead(self.name, AutoModelForTokenClassification, "TOKEN_CLS", len(names), options)

    def encode(
        self, learner: Learner, examples: Sequence[TokenExample], *, training: bool
    ) -> Sequence[Features]:
        """Tokenise rows; in training with the id of a tag at the first piece of each token, else -100."""
        ids = {name: index for index, name in enumerate(learner.label_names)}
        rows: list[Features] = []
        for example in examples:
            tokens, starts = _pieces(learner, example)
            if training:
                labels = [IGNORED_LABEL] * len(tokens["input_ids"])
                for word, piece in starts.items():
                    labels[piece] = ids[(example.label or [])[word]]
                tokens["labels"] = labels
            rows.append(tokens)
        note_cut("rows", [row["input_ids"] for row in rows], learner.max_length)
        return rows

    def collate(self, learner: Learner) -> Collate:
        """Return the function that pads rows and the labels of their tokens."""
        collator: Any = DataCollatorForTokenClassification(learner.processor)
        return collator

    def weighted_loss(self, logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """Return the cross-entropy over labelled tokens, weighted by tag."""
        return functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), weights, ignore_index=IGNORED_LABEL
        )

    def loss_items(self, batch: Batch) -> float:
        """Return the number of labelled tokens, or the sum of their weights, by which the loss is a mean."""
        labels: list[int] = batch["labels"][batch["labels"] != IGNORED_LABEL].tolist()
        return float(len(labels)) if self.weights is None else sum(self.weights[label] for label in labels)

    def predict(self, learner: Learner, examples: Sequence[TokenExample]) -> list[list[str]]:
        """Return the tag of each token of each example."""
        return [tags for _, tags in self._predictions(learner, examples, is_checked=True)]

    def answer(self, learner: Learner, examples: Sequence[TokenExample]) -> list[dict[str, JsonValue]]:
        """Return the tags of each example's tokens, the entities these make, and the tokens."""
        answers: list[dict[str, JsonValue]] = []
        for example, tags in zip(examples, self.predict(learner, examples), strict=True):
            entities: list[JsonValue] = [
                {"type": kind, "text": " ".join(example.tokens[start:end]), "start": start, "end": end}
                for kind, start, end in find_entities(tags)
            ]
            answers.append(
                {
                    "tags": list[JsonValue](tags),
                    "entities": entities,
                    "tokens": list[JsonValue](example.tokens),
                }
            )
        return answers

    def evaluate(
        self,
        learner: Learner,
        examples: Sequence[TokenExample],
        metrics: Sequence[str],
        *,
        is_final: bool = True,
    ) -> Evaluation:
        """Return the mean cross-entropy of a token, metrics and predictions."""
        pairs = self._predictions(learner, examples)
        losses = [value for values, _ in pairs for value in values]
        loss = sum(losses) / max(1, len(losses))
        labels, predictions = [item.label for item in examples], [tags for _, tags in pairs]
        # A diverged model has no metric; its loss says so.
        scores = self.score(metrics, labels, predictions) if math.isfinite(loss) else {}
        means = [sum(values) / max(1, len(values)) for values, _ in pairs]
        return Evaluation(loss, scores, [item.id for item in examples], labels, predictions, means)

    def _predictions(
        self, learner: Learner, examples: Sequence[TokenExample], *, is_checked: bool = False
    ) -> list[tuple[list[float], list[str]]]:
        """Return the losses of the tokens of each example, where tags are known, and the predicted tags.

        Args:
            learner: The model, and how to run it.
            examples: The rows.
            is_checked: Whether outputs that are not finite are an error.
        """
        names = learner.label_names
        ids = {name: index for index, name in enumerate(names)}
        outside = next((name for name in names if name in OUTSIDE), names[0])
        encoded = [_pieces(learner, example) for example in examples]
        results: list[tuple[list[float], list[str]]] = [([], [])] * len(examples)
        for indices, batch in learner.batches([tokens for tokens, _ in encoded], self.collate(learner)):
            logits = learner.logits(batch)
            offset = logits.shape[1] if learner.processor.padding_side == "left" else 0
            for row, index in enumerate(indices):
                example, (tokens, starts) = examples[index], encoded[index]
                first = offset - len(tokens["input_ids"]) if offset else 0
                outputs = logits[row, [first + piece for piece in starts.values()]]
                if is_checked:
                    check_finite(outputs[None], [example.id])
                tags = [outside] * len(example.tokens)
                for word, best in zip(starts, cast(Any, outputs.argmax(-1)).tolist(), strict=True):
                    tags[word] = names[best]
                losses: list[float] = []
                if example.label is not None:
                    truth = torch.tensor([ids[example.label[word]] for word in starts], dtype=torch.long)
                    losses = cast(Any, functional.cross_entropy(outputs, truth, reduction="none")).tolist()
                results[index] = losses, tags
        return results

    def score(
        self, metrics: Sequence[str], labels: Sequence[Any], predictions: Sequence[Any]
    ) -> dict[str, float]:
        """Return metrics of tags and entities."""
        return score_lists(metrics, labels, predictions)

    @staticmethod
    def most_common_tag(labels: Sequence[Any]) -> str:
        """Return the tag that most tokens have, which stands for all tokens of a row."""
        return most_common([tag for row in labels for tag in row])

    baselines: ClassVar[Mapping[str, Callable[[Sequence[Any]], Any]]] = {"majority": most_common_tag}


def _columns_of(row: Row, overrides: Columns) -> tuple[str | None, str | None]:
    tokens = overrides.text or next((name for name in _TOKENS if name in row), None)
    tags = overrides.label or next((name for name in _TAGS if isinstance(row.get(name), list)), None)
    return tokens, tags


def _tokens_of(row: Row, column: str) -> tuple[str, ...]:
    """Return the tokens of a row.

    Raises:
        DataError: If they are no list of texts, and no text.
    """
    value = row.get(column)
    if isinstance(value, str):
        return tuple(_WORD.findall(value))
    tokens = cast("list[object]", value) if isinstance(value, list) else [None]
    if not all(isinstance(item, str) for item in tokens):
        remedy = DROP_REMEDY if value is None else "give a list of texts"
        raise DataError(f"'{column}' holds '{value}' where a list of tokens is needed; {remedy}.")
    return tuple(cast("list[str]", tokens))


def _example(row: Row, name: int | str, columns: Columns, names: Sequence[str] | None) -> TokenExample:
    """Return a row as an example; numbers among its tags are places among `names`, if these are known."""
    tokens, value = _tokens_of(row, columns.text or ""), row.get(columns.label or "")
    if not isinstance(value, list):
        remedy = DROP_REMEDY if value is None else "give a list with a tag for each token"
        raise DataError(f"'{columns.label}' holds '{value}' where a list of tags is needed; {remedy}.")
    tags = [_tag_name(tag, columns.label or "", names) for tag in cast("list[object]", value)]
    if len(tags) != len(tokens):
        raise DataError(
            f"'{columns.text}' has {len(tokens)} tokens and '{columns.label}' {len(tags)} tags; "
            "give each token one tag."
        )
    return TokenExample(name, tokens, tags)


def _tag_name(tag: object, column: str, names: Sequence[str] | None) -> str:
    if isinstance(tag, int) and not isinstance(tag, bool):
        return names[tag] if names is not None and 0 <= tag < len(names) else str(tag)
    if not isinstance(tag, str) or not tag:
        raise DataError(f"'{column}' holds the tag '{tag}', which is no name; {DROP_REMEDY}.")
    return tag


def _pieces(learner: Learner, example: TokenExample) -> tuple[dict[str, Any], dict[int, int]]:
    """Return the token ids of an example, and the place of the first piece of each word that has one."""
    if not learner.processor.is_fast:
        raise SpecError(
            "the model's tokenizer does not say which letters a token is made of; use a model with a fast "
            "tokenizer (tokenizer.json)."
        )
    tokens: dict[str, Any] = dict(
        learner.processor(
            " ".join(example.tokens),
            truncation=True,
            max_length=learner.max_length,
            return_offsets_mapping=True,
        )
    )
    owners = [word for word, token in enumerate(example.tokens) for _ in range(len(token) + 1)]
    starts: dict[int, int] = {}
    offsets: list[tuple[int, int]] = tokens.pop("offset_mapping")
    for piece, (start, end) in enumerate(offsets):
        # The space before a word may be part of its first piece.
        if end > start and end <= len(owners):
            starts.setdefault(owners[end - 1], piece)
    return tokens, starts


def _findings(column: str, items: Sequence[TokenExample], table: Table) -> Iterator[Finding]:
    rows = [item.label or [] for item in items]
    counts = dict(count_labels(tag for row in rows for tag in row))
    entities = Counter(kind for row in rows for kind, _, _ in find_entities(row))
    entity_text = counts_text(dict(entities.most_common())) or "none"
    yield Finding("classes", f"{len(counts)} tags in '{column}': {counts_text(counts)}.")
    if OUTSIDE & counts.keys():
        yield Finding("entities", f"{sum(entities.values()):,} entities: {entity_text}.")
    if all(tag.isdigit() for tag in counts):
        yield Finding(
            "unnamed_tags",
            f"the tags in '{column}' are numbers without names: 0 is read as outside of entities, and equal "
            "neighbours as one entity; give names such as 'B-PER' to tell entities apart that touch.",
        )
    odd = _odd_tags(counts)
    for tag, remedy in odd.items():
        positions = [position for position, row in enumerate(rows) if tag in row]
        yield Finding(
            "odd_tags",
            f"the tag '{tag}' in '{column}' counts as one of its own ({table.locate_rows(positions)}); "
            f"write '{remedy}' if that is meant.",
        )
    types = [[split_tag(tag)[1] or "O" for tag in row if tag not in odd] for row in rows]
    yield from near_duplicates(column, types, table)
    yield from _inconsistent(column, rows, table)


def _odd_tags(tags: Iterable[str]) -> dict[str, str]:
    """Return the tags that look like another one, with that: "B_PER", "b-per" or "B-PER " for "B-PER"."""
    matches = {tag: _TAG.fullmatch(tag) for tag in tags}
    strict = [match for match in matches.values() if match and match[1].isupper() and match[2] == "-"]
    types = {match[3] for match in strict if match[3]}
    by_letters = {name.casefold(): name for name in sorted(types)}
    odd: dict[str, str] = {}
    for tag, match in matches.items():
        plain = tag.strip()
        if match and types:
            kind = match[3].strip()
            kind = kind if kind in types else by_letters.get(kind.casefold(), kind)
            plain = f"{match[1].upper()}-{kind}" if kind else "O"
        elif types and plain.casefold() == "o":
            plain = "O"
        if plain != tag:
            odd[tag] = plain
    return odd


def _inconsistent(column: str, rows: Sequence[Sequence[str]], table: Table) -> Iterator[Finding]:
    """Yield a finding on tags that go on with an entity that has not begun, or has ended."""
    faults: defaultdict[str, list[int]] = defaultdict(list)
    has_begins = any(split_tag(tag)[0] == "B" for row in rows for tag in row)
    for position, row in enumerate(rows):
        for before, tag in zip(["O", *row], row, strict=False):
            (earlier_prefix, earlier_kind), (prefix, kind) = split_tag(before), split_tag(tag)
            is_open = earlier_kind == kind and earlier_prefix in ("B", "I", "M")
            if has_begins and prefix in ("I", "M", "E", "L") and not is_open:
                faults[tag].append(position)
    for tag, positions in faults.items():
        yield Finding(
            "inconsistent_tags",
            f"'{tag}' in '{column}' goes on with an entity that has not begun, {_times(len(positions))} "
            f"({table.locate_rows(list(dict.fromkeys(positions)))}); it counts as the beginning of one.",
        )


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"


KIND = TokenLabels()
