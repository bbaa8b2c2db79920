"""Instruction: a prompt that a model answers in text, perhaps with one of few answers."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from pydantic import JsonValue
from transformers import AutoModelForCausalLM

from rankfold.errors import DataError, SpecError
from rankfold.models.base import BaseModel, LoadedModel, TaskHead
from rankfold.tasks.data.columns import CHOICE_COLUMNS, Columns, has_columns, layout_of
from rankfold.tasks.data.read import Row, Rows, Table
from rankfold.tasks.kinds.answers import (
    AnsweredKind,
    Instruction,
    answer_collator,
    check_room,
    choose,
    encode_answers,
    generate_answers,
    likeliest_answers,
    log_likelihoods,
    write_answers,
)
from rankfold.tasks.kinds.chat_template import CHAT_TEMPLATE, ChatTemplate, read_template
from rankfold.tasks.kinds.conversations import InstructionReader, drop_empty
from rankfold.tasks.kinds.kind import Collate, Evaluation, Examples, LabelHints, TaskKind
from rankfold.tasks.kinds.labelled import read_rows
from rankfold.tasks.kinds.learner import TEXT_SAMPLING, Features, Learner
from rankfold.tasks.kinds.packing import pack_rows
from rankfold.tasks.kinds.prompts import closed_answers
from rankfold.tasks.metrics import ANSWER_LOSS, TEXT_METRICS, UNPARSED
from rankfold.tasks.scoring import NO_CHOICE, Scoring, check_scoring

logger = logging.getLogger("rankfold.tasks")

_ANSWERS = "answers"
"""The setting with the answers to choose from, where training has few."""


class InstructionKind(AnsweredKind):
    """Answers in text, scored by their loss; by accuracy too where there are few to choose from.

    The choice among candidates is made by likelihood or by generation, as the learner's `scoring` says.
    """

    name: ClassVar[str] = "instruction"
    default_for_causal: ClassVar[bool | None] = True
    sampling_options: ClassVar[frozenset[str]] = TEXT_SAMPLING
    uses_chat_template: ClassVar[bool] = True
    derived_settings: ClassVar[frozenset[str]] = frozenset({_ANSWERS})
    setting_types: ClassVar[Mapping[str, type] | None] = {_ANSWERS: list, CHAT_TEMPLATE: str}

    def suits(self, rows: Rows, columns: Columns, *, is_causal: bool) -> bool:
        """Return whether rows have no label column, for a model that generates text.

        Raises:
            DataError: If the rows are instructions and the model does not generate text.
        """
        if columns.label is not None:
            return False
        if not is_causal and not has_columns(rows[0], CHOICE_COLUMNS):
            layout = layout_of(rows[0]) or (columns.text or "",)
            raise DataError(
                f"the rows are instructions ({', '.join(map(repr, layout))}), which this model cannot "
                "answer; use a causal language model, such as 'smollm2' (not an encoder-decoder), or name "
                "the columns to classify by with --text-column and --label-column."
            )
        return is_causal and not has_columns(rows[0], ("choices", "answer"))

    def examples(self, tables: Mapping[str, Table], columns: Columns, hints: LabelHints) -> Examples:
        """Return prompts with answers; few different answers in training are the candidates of all rows."""
        reader = InstructionReader(columns, hints.choice_word)
        splits, findings = drop_empty(tables, read_rows(tables, reader.read))
        answers = _learned_answers(hints)
        if answers is None:
            answers = closed_answers([item.answer for item in next(iter(splits.values()))])
        splits = {
            split: [_with_candidates(item, answers) for item in items] for split, items in splits.items()
        }
        for split, items in splits.items():
            open_ones = sum(not item.candidates for item in items)
            if answers and open_ones:
                logger.info(
                    "%d of %d answers of the split '%s' are none of the %d that training has; "
                    "these rows are left out of the accuracy.",
                    open_ones,
                    len(items),
                    split,
                    len(answers),
                )
        settings: dict[str, JsonValue] = {_ANSWERS: list(answers)} if answers else {}
        if (template := _template_of(hints)) is not None:
            settings[CHAT_TEMPLATE] = template
        return Examples(None, splits, (*reader.findings(), *findings), settings)

    def model_settings(self, base: LoadedModel, examples: Examples) -> Mapping[str, JsonValue]:
        """Return the settings with the model's own chat template, where conversations are written by it."""
        template = ChatTemplate(base.processor).source
        is_chat = any(item.turns for items in examples.splits.values() for item in items)
        if not is_chat or template is None or CHAT_TEMPLATE in examples.settings:
            return examples.settings
        return {**examples.settings, CHAT_TEMPLATE: template}

    def input_columns(self, rows: Rows, overrides: Columns) -> Columns:
        """Return the columns as they are: those of instructions have fixed names."""
        return overrides

    def text_row(self, text: str, pair: str | None, columns: Columns) -> Row:
        """Return a bare text as an instruction, and a second one as its input."""
        return {"instruction": text} if pair is None else {"instruction": text, "input": pair}

    def inputs(self, rows: Rows, columns: Columns, hints: LabelHints | None = None) -> list[Instruction]:
        """Return rows as prompts without answers; choices are their candidates."""
        hints = hints or LabelHints()
        answers = _learned_answers(hints) or ()
        reader = InstructionReader(columns, hints.choice_word)
        return [reader.read_prompt(row, index, answers) for index, row in enumerate(rows)]

    def conversation_row(self, learner: Learner, turns: Sequence[tuple[str, str]]) -> Row:
        """Return all turns, or without a chat template the last one alone, as an instruction."""
        if learner.chat_template.source is None:
            return {"instruction": turns[-1][1]}
        return {"messages": [{"role": role, "content": text} for role, text in turns]}

    def input_texts(self, example: Instruction) -> dict[str, str]:
        """Return the prompt."""
        return {"prompt": example.prompt}

    def describe_label(
        self, example: Instruction, label: Any, label_names: Sequence[str] | None
    ) -> JsonValue:
        """Return the candidate of an index; None for an answer that names no candidate."""
        if not example.candidates or not isinstance(label, int):
            return label
        return None if label == NO_CHOICE else example.choice_names[label]

    def head(self, label_names: Sequence[str] | None = None) -> TaskHead:
        """Return a model that continues text."""
        return TaskHead(self.name, AutoModelForCausalLM, "CAUSAL_LM", max_length=256)

    def load(self, base: BaseModel, label_names: Sequence[str] | None = None) -> LoadedModel:
        """Load a model that continues text.

        Raises:
            SpecError: If the base model was not trained to.
        """
        if not base.is_causal:
            words = (
                "is an encoder-decoder model, which instructions are not trained on here"
                if base.config().is_encoder_decoder
                else "does not generate text, which an instruction task needs"
            )
            raise SpecError(f"'{base.name}' {words}; use a causal language model, such as 'smollm2'.")
        return super().load(base, label_names)

    def encode(
        self, learner: Learner, examples: Sequence[Instruction], *, training: bool
    ) -> Sequence[Features]:
        """Tokenise prompts with their answers."""
        return encode_answers(learner, [(item, item.answer) for item in examples])

    def pack(self, learner: Learner, rows: Sequence[Features]) -> Sequence[Features]:
        """Return encoded rows, several of them in one, which do not see each other.

        Raises:
            SpecError: If the model reads packed texts in another way than each alone.
        """
        return pack_rows(learner, rows)

    def collate(self, learner: Learner) -> Collate:
        """Return the function that pads rows and the labels of their tokens."""
        return answer_collator(learner)

    def check(self, learner: Learner, examples: Sequence[Instruction]) -> None:
        """Check that every answer that will be scored or generated leaves room for a prompt.

        Raises:
            DataError: If an answer does not.
            SpecError: If the tokens to generate do not.
        """
        if learner.scoring == Scoring.GENERATED:
            check_room(learner)
        owners = {answer: item for item in examples for answer in item.candidates}
        encode_answers(learner, [(item, answer) for answer, item in owners.items()], is_compared=True)
        encode_answers(learner, [(item, item.answer) for item in examples if not item.candidates])

    def scoring(self, name: str | None, metrics: Sequence[str], task: str) -> str | None:
        """Return the way in which answers with choices are found: by likelihood if nobody asked.

        Raises:
            SpecError: If one was asked for that is unknown, or all answers are open.
        """
        check_scoring(name)
        if metrics[0] == ANSWER_LOSS:
            return super().scoring(name, metrics, task)
        return Scoring(name or Scoring.LIKELIHOOD).value

    def predict(self, learner: Learner, examples: Sequence[Instruction]) -> list[Any]:
        """Return the index of the chosen candidate, or the generated text where the answer is open."""
        return _answer_each(
            learner, examples, [bool(item.candidates) for item in examples], choose, generate_answers
        )

    def answer(self, learner: Learner, examples: Sequence[Instruction]) -> list[dict[str, JsonValue]]:
        """Return the text that answers each prompt, and the probabilities of its candidates if there are any.

        The probabilities compare the candidates by the likelihood that the choice is made by; they are left
        out where the model's own text is read.
        """
        is_generated = learner.scoring == Scoring.GENERATED
        are_scored = [bool(item.candidates) and not is_generated for item in examples]
        return _answer_each(learner, examples, are_scored, likeliest_answers, _generated_answers)

    def evaluate(
        self,
        learner: Learner,
        examples: Sequence[Instruction],
        metrics: Sequence[str],
        *,
        is_final: bool = True,
    ) -> Evaluation:
        """Return the mean loss of an answer's token, and predictions where there are candidates.

        The metrics of texts compare what the model writes, greedily, with the right answers.
        """
        likelihoods = log_likelihoods(learner, self.encode(learner, examples, training=True))
        loss = -sum(total for total, _ in likelihoods) / sum(tokens for _, tokens in likelihoods)
        scores = {ANSWER_LOSS: loss}
        is_final &= math.isfinite(loss)  # a diverged model has no answers; its loss says so
        questions = [item for item in examples if item.candidates]
        text_metrics = [name for name in metrics if name in TEXT_METRICS]
        texts = write_answers(learner, examples) if text_metrics and is_final else []
        if texts:
            scores = self.score(text_metrics, [item.answer for item in examples], texts) | scores
        if not questions or not is_final:
            return _text_evaluation(loss, scores, examples if texts else [], texts, likelihoods)
        predictions = choose(learner, questions)
        labels = [self.label(item) for item in questions]
        if learner.scoring == Scoring.GENERATED:
            scores[UNPARSED] = predictions.count(NO_CHOICE) / len(predictions)
        scores = self.score(("accuracy",), labels, predictions) | scores
        losses = [
            -total / tokens
            for item, (total, tokens) in zip(examples, likelihoods, strict=True)
            if item.candidates
        ]
        return Evaluation(loss, scores, [item.id for item in questions], labels, predictions, losses)

    def mixture_kind(self, kinds: Sequence[TaskKind]) -> TaskKind | None:
        """Return the kind that all tasks have, or instruction if some have choices and some have not."""
        if not all(isinstance(kind, InstructionKind) for kind in kinds):
            return None
        return self if all(kind is self for kind in kinds) else KIND

    def mixture_metrics(self, metrics: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
        """Return the accuracy first if some task has it."""
        return max(metrics, key=len)


def _answer_each(
    learner: Learner,
    examples: Sequence[Instruction],
    are_first: Sequence[bool],
    first: Callable[[Learner, Sequence[Instruction]], Sequence[Any]],
    second: Callable[[Learner, Sequence[Instruction]], Sequence[Any]],
) -> list[Any]:
    """Return the answer to each example in order, by the first or by the second of two ways."""
    answers: list[Any] = [None] * len(examples)
    for is_first, answer in ((True, first), (False, second)):
        indices = [index for index, flag in enumerate(are_first) if flag is is_first]
        for index, value in zip(indices, answer(learner, [examples[i] for i in indices]), strict=True):
            answers[index] = value
    return answers


def _text_evaluation(
    loss: float,
    scores: dict[str, float],
    examples: Sequence[Instruction],
    texts: Sequence[str],
    likelihoods: Sequence[tuple[float, int]],
) -> Evaluation:
    """Return an evaluation without choices: of the texts that were written, if any were."""
    labels = [item.answer for item in examples]
    losses = [-total / tokens for total, tokens in likelihoods[: len(examples)]]
    return Evaluation(loss, scores, [item.id for item in examples], labels, list(texts), losses)


def _template_of(hints: LabelHints) -> str | None:
    """Return the text of the chat template that the user named, or that a model was trained with."""
    if hints.chat_template is not None:
        return read_template(hints.chat_template)
    template = (hints.learned_settings or {}).get(CHAT_TEMPLATE)
    return template if isinstance(template, str) else None


def _generated_answers(learner: Learner, examples: Sequence[Instruction]) -> list[dict[str, JsonValue]]:
    return [{"text": text} for text in generate_answers(learner, examples)]


def _learned_answers(hints: LabelHints) -> tuple[str, ...] | None:
    """Return the few answers that a model has learned to choose from; None if that is not known."""
    answers = (hints.learned_settings or {}).get(_ANSWERS)
    return tuple(map(str, answers)) if isinstance(answers, list) else None


def _with_candidates(item: Instruction, answers: tuple[str, ...]) -> Instruction:
    if item.candidates or item.answer not in answers:
        return item
    return replace(item, candidates=answers)


KIND = InstructionKind()
