"""An adapter in use: load it onto its base model, and ask it for labels, numbers or texts."""

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, cast, final

import torch
from peft import PeftModel
from pydantic import JsonValue

from rankfold.errors import AdapterFileError, DataError, SpecError
from rankfold.models.base import BaseModel, LoadedModel, position_limit, resolve_model, row_length
from rankfold.models.hardware import choose_device, choose_precision
from rankfold.models.loading import Loading
from rankfold.runs.adapter_request import SamplingRequest
from rankfold.runs.fields import fields_of
from rankfold.runs.record import RunRecord
from rankfold.runs.request import Device, Precision, ScoringName
from rankfold.runs.trained import TrainedAdapter, open_trained
from rankfold.store.adapter import SavedAdapter
from rankfold.store.loading import load_adapter
from rankfold.store.manifest import MANIFEST_NAME, TaskManifest
from rankfold.tasks.data.columns import Columns
from rankfold.tasks.data.read import Row, Table
from rankfold.tasks.kinds import LabelHints, Learner, TaskKind, default_kind, find_kind
from rankfold.tasks.kinds.chat_template import CHAT_TEMPLATE, read_template
from rankfold.tasks.registry import choice_word_of
from rankfold.tasks.scoring import Scoring

logger = logging.getLogger("rankfold.runs")

Answer = dict[str, JsonValue]
"""The answer to one text as JSON: `label` with `probabilities`, `value`, `text`, …, by the kind of task."""

InputText = str | tuple[str, str] | Mapping[str, object]
"""A text, a pair of texts, or a row of named columns as in the training data."""

_BATCH_SIZE = 16
_NEW_TOKENS = 256
_MOST_SHOWN = 40


@final
@dataclass(frozen=True, slots=True)
class AdaptedModel:
    """A saved adapter on its base model, ready to answer; `rankfold.load` makes one.

    Attributes:
        kind: The kind of task that the adapter has learned.
        learner: The model with its processor, and how both are run.
        columns: The columns of the training data, as far as they are known.
        hints: What the adapter has learned about labels.
    """

    kind: TaskKind
    learner: Learner
    columns: Columns
    hints: LabelHints

    @property
    def model(self) -> PeftModel:
        """The PEFT model, in evaluation mode on its device."""
        return cast(PeftModel, self.learner.model)

    @property
    def processor(self) -> Any:
        """The base model's tokenizer."""
        return self.learner.processor

    @property
    def label_names(self) -> tuple[str, ...]:
        """The class names in the order of the model's outputs; empty if the task has no classes."""
        return self.learner.label_names

    def with_columns(self, text: str | None, pair: str | None) -> Self:
        """Return the model with other names of the columns that it reads, where they are not None."""
        named = {"text": text, "pair": pair}
        changes = {role: name for role, name in named.items() if name is not None}
        return replace(self, columns=replace(self.columns, **changes))

    def predict(  # noqa: PLR0913 (each is a keyword of its own for a notebook)
        self,
        texts: InputText | Sequence[InputText],
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        denoising_steps: int | None = None,
        guidance: float | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> list[Answer]:
        """Return the answer to each text.

        Args:
            texts: Texts, pairs of texts, or rows as in the training data (the label is not needed, and not
                looked at). One text is taken as a list of one.
            max_new_tokens: The most tokens of a generated answer; 256 if None.
            temperature: Of the draws of generated tokens; 0 takes the likeliest token.
            top_p: Draw among the likeliest tokens that together have this probability.
            seed: Of the draws.
            denoising_steps: Steps in which a picture is drawn; the pipeline's own number if None.
            guidance: Weight of a caption in its picture; the pipeline's own if None.
            on_text: Gets the generated answer piece by piece, if there is one text.

        Returns:
            An object of JSON for each text: `label` and `probabilities` of a classification, `value` of a
            regression, `text` of an instruction, `text` and `choice` (an index) of a multiple choice,
            `picture` (an image of Pillow) and `seed` of image generation; other kinds have their own keys.

        Raises:
            DataError: If a text is missing, with the number of its row.
            SpecError: If pairs were learned and these are none, or the other way round, or a number is out of
                its range.
        """
        sampling = SamplingRequest(
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            denoising_steps=denoising_steps,
            guidance=guidance,
        )
        is_one = isinstance(texts, str | Mapping)
        items = cast("Sequence[InputText]", [texts] if is_one else texts)
        return self.answer(self.examples(self.rows(items)), sampling, on_text=on_text)

    def rows(self, texts: Iterable[InputText]) -> list[Row]:
        """Return texts, pairs and rows as rows that `examples` reads.

        Raises:
            DataError: If an input is none of them, with its number.
            SpecError: If pairs were learned and these are none, or the other way round.
        """
        return [self._row(number, item) for number, item in enumerate(texts, 1)]

    def _row(self, number: int, item: object) -> Row:
        """Return one input as a row; callers from Python are not held to the annotation of `InputText`."""
        match item:
            case Mapping():
                return cast(Row, item)
            case str():
                return self.kind.text_row(item, None, self.columns)
            case (str() as text, str() as pair):
                return self.kind.text_row(text, pair, self.columns)
            case _:
                raise DataError(
                    f"input {number} is {item!r}; give a text, a pair of texts, or a row with named columns."
                )

    def examples(self, rows: Sequence[Row]) -> list[Any]:
        """Return rows without labels as examples of the kind.

        Raises:
            DataError: If a column or a text is missing, with the number of its row.
        """
        if not rows:
            return []
        columns = self.kind.input_columns(rows, self.columns)
        examples: list[Any] = []
        for number, row in enumerate(rows, 1):
            try:
                examples += self.kind.inputs([row], columns, self.hints)
            except DataError as error:
                raise DataError(f"row {number}: {error}") from error
        self._note_empty(examples)
        return examples

    def _note_empty(self, examples: Sequence[Any]) -> None:
        """Log which rows have no text, since their answers say nothing about them."""
        empty = [
            position
            for position, example in enumerate(examples)
            if not any(text.strip() for text in self.kind.input_texts(example).values())
        ]
        if empty:
            places = Table([dict[str, object]()] * len(examples)).locate_rows(empty)
            logger.warning("there is no text in %s; the answer is a guess without one.", places)

    def answer(
        self,
        examples: Sequence[Any],
        sampling: SamplingRequest,
        *,
        on_text: Callable[[str], None] | None = None,
    ) -> list[Answer]:
        """Return the answer to each example.

        Args:
            examples: Those of `examples`.
            sampling: How texts are generated.
            on_text: Gets the generated answer piece by piece, if there is one example.

        Raises:
            SpecError: If options of the generation are given, and the kind generates nothing.
        """
        names = [name for name in sampling.changed_values() if name in fields_of(SamplingRequest)]
        if unused_names := [f"'{name}'" for name in names if name not in self.kind.sampling_options]:
            raise SpecError(
                f"the adapter has learned {self.kind.name}, whose answers do not depend on "
                f"{', '.join(unused_names)}; leave it out."
            )
        learner = replace(self._sampler(sampling), on_text=on_text)
        return self.kind.answer(learner, examples)

    def _sampler(self, request: SamplingRequest) -> Learner:
        """Return the learner for texts that are generated: they come on top of a row as long as in training.

        An answer that names one of several choices has the length that an evaluation gives it.
        """
        learner = self.learner
        is_choice = learner.scoring == Scoring.GENERATED
        new_tokens = request.max_new_tokens
        if new_tokens is None and is_choice:
            return replace(learner, sampling=request.sampling(learner.sampling.max_new_tokens))
        sampling = request.sampling(new_tokens or _NEW_TOKENS)
        limit = position_limit(cast(Any, learner.model).config, learner.model)
        length = learner.max_length + sampling.max_new_tokens
        if limit is not None and new_tokens is None:
            # Half of a short model's room is for the prompt.
            sampling = replace(sampling, max_new_tokens=min(sampling.max_new_tokens, limit // 2))
        length = length if limit is None else min(length, limit)
        return replace(learner, sampling=sampling, generation_length=length)


def load(  # noqa: PLR0913 (each is a keyword of its own for a notebook)
    adapter: str | Path,
    base: str | Path | None = None,
    *,
    strict: bool = True,
    kind: str | None = None,
    label_names: Sequence[str] | None = None,
    max_length: int | None = None,
    scoring: ScoringName | None = None,
    chat_template: str | None = None,
    batch_size: int = _BATCH_SIZE,
    device: Device = "auto",
    precision: Precision = "auto",
    trust_remote_code: bool = False,
) -> AdaptedModel:
    """Load a saved adapter onto its base model, ready to answer.

    Args:
        adapter: A folder that `rankfold train` or `save_pretrained` wrote, a packed file, or a record of a
            store as `STORE#NAME`.
        base: The base model: `minilm`, `smollm2`, a folder, a GGUF file or a hub id; that which the adapter
            was trained on if None.
        strict: Whether unknown fields of the adapter's configuration are an error; a warning if not.
        kind: The kind of task, for an adapter that does not say.
        label_names: The class names in the order of the model's outputs, for an adapter that does not say.
        max_length: The most tokens of a row; as in training if None.
        scoring: How answers with choices are found; as in training if None.
        chat_template: The name or file of a template of conversations; as in training if None.
        batch_size: Rows at a time.
        device: auto, cpu, cuda or mps.
        precision: auto, fp32 or bf16.
        trust_remote_code: Whether Python code that comes with the model's files may run.

    Raises:
        AdapterFileError: If there is no adapter, it is damaged, or it does not belong to the base model.
        SpecError: If nothing names the base model, it is not found, or the adapter has a head for classes and
            nothing says which.

    Example:
        >>> rankfold.load("runs/tickets").predict(["My card was charged twice."])  # doctest: +SKIP
        [{'label': 'billing', 'probabilities': {'billing': 0.97, 'technical': 0.03}}]
    """
    trained = open_trained(adapter)
    base_model = _find_base(trained, base, trust_remote_code=trust_remote_code)
    task = _find_task(trained, base_model, kind, label_names)
    task_kind = find_kind(task.kind)
    if chat_template is not None:
        task = replace(task, settings=_with_template(task, task_kind, chat_template))
    manifest = trained.manifest
    learner = make_learner(
        trained,
        base_model,
        task_kind,
        Learned(task.label_names, task.settings, _find_scoring(task_kind, task, scoring)),
        Placement(
            max_length or (None if manifest is None else manifest.max_length), batch_size, device, precision
        ),
        strict=strict,
    )
    columns = Columns(**({} if manifest is None else manifest.columns))
    hints = LabelHints(None, task.label_names, choice_word_of(task.name), task.settings)
    return AdaptedModel(task_kind, learner, columns, hints)


@dataclass(frozen=True, slots=True)
class Learned:
    """The task, the labels and the settings that an adapter has learned beside its weights.

    Args:
        label_names: Class names in the order of their ids, for kinds that have classes.
        settings: The `Examples.settings` it was trained with.
        scoring: How answers with choices are found.
    """

    label_names: tuple[str, ...] | None
    settings: Mapping[str, JsonValue]
    scoring: str | None


@dataclass(frozen=True, slots=True)
class Placement:
    """Where and how a model runs.

    Args:
        max_length: The most tokens of a row; the kind's default if None.
        batch_size: Rows at a time.
        device: auto, cpu, cuda or mps.
        precision: auto, fp32 or bf16.
    """

    max_length: int | None
    batch_size: int
    device: Device
    precision: Precision


def make_learner(
    trained: TrainedAdapter,
    base: BaseModel,
    kind: TaskKind,
    learned: Learned,
    placement: Placement,
    *,
    strict: bool = True,
) -> Learner:
    """Load a base model for a kind of task, and put an adapter on it.

    Raises:
        AdapterFileError: If the adapter is damaged or lacks its task head, or was trained on another model.
        SpecError: If the model cannot do the task, or takes fewer tokens than `max_length`.
    """
    _check_learned(trained.saved, kind, learned)
    device = choose_device(placement.device)
    loading = _loading_of(trained.record, device)
    precision = choose_precision("bf16" if loading.dtype == "bf16" else placement.precision, device)
    base = replace(base, loading=replace(loading, compute_dtype=precision))
    loaded_base = kind.load(base, learned.label_names)
    model = load_adapted(trained, base, loaded_base, strict=strict)
    usual = kind.head(learned.label_names).max_length
    return Learner(
        model.to(device),
        loaded_base.processor,
        row_length(loaded_base.model.config, usual, placement.max_length, loaded_base.model),
        placement.batch_size,
        device,
        precision,
        learned.scoring,
        learned.settings,
        learned.label_names or (),
    )


def _loading_of(record: RunRecord | None, device: torch.device) -> Loading:
    """Return the form in which a base model was trained on, so that its run is measured as it was.

    Where the package that quantises is not installed, the base is loaded as its files have it.
    """
    if record is None:
        return Loading()
    request = record.request
    loading = Loading(request.base_dtype, quantisation=request.quantise, device=device.type)
    try:
        _ = loading.keywords()
    except SpecError:
        logger.info(
            "the base was quantised to %s for the training, and is loaded whole, because no package for it "
            "is installed; figures may differ a little.",
            request.quantise,
        )
        return replace(loading, quantisation=None)
    return loading


def load_adapted(
    trained: TrainedAdapter, base: BaseModel, loaded_base: LoadedModel, *, strict: bool = True
) -> PeftModel:
    """Put a saved adapter onto its loaded base model, in evaluation mode.

    Raises:
        AdapterFileError: If the adapter is damaged or lacks its task head, or was trained on another model.
    """
    saved = trained.saved
    known_base = None if trained.manifest is None else trained.manifest.base
    if known_base is not None and known_base.sha256 not in (None, base.sha256()):
        raise AdapterFileError(
            f"{saved.title} was trained on '{known_base.name}', not on '{base.name}'; "
            "name the model it was trained on with --model."
        )
    for module in loaded_base.fresh_modules:
        if not any(f".{module}." in key for key in saved.tensors):
            raise AdapterFileError(
                f"neither the model '{base.name}' nor {saved.title} has weights for '{module}'; "
                "save the adapter with its head (task_type, or modules_to_save)."
            )
    return load_adapter(loaded_base.model, saved, strict=strict)


def _find_base(trained: TrainedAdapter, name: str | Path | None, *, trust_remote_code: bool) -> BaseModel:
    """Return the base model that is named, else that of the manifest, else that of the configuration."""
    if name is not None:
        return resolve_model(str(name), trust_remote_code=trust_remote_code)
    known_base = None if trained.manifest is None else trained.manifest.base
    known_name = known_base.name if known_base else trained.saved.config_values.get("base_model_name_or_path")
    if not isinstance(known_name, str) or not known_name:
        raise SpecError(f"{trained.saved.title} does not name its base model; name it with --model.")
    try:
        return resolve_model(known_name, trust_remote_code=trust_remote_code)
    except SpecError as error:
        raise SpecError(
            f"{trained.saved.title} was trained on '{known_name}', which is not found here; name the "
            "base model with --model (in Python, as `base`)."
        ) from error


def _find_task(
    trained: TrainedAdapter, base: BaseModel, kind: str | None, label_names: Sequence[str] | None
) -> TaskManifest:
    """Return the task that an adapter has learned; of one without manifest, the task of its head.

    Raises:
        SpecError: If another kind or other classes are named than were learned, or the head does not tell.
    """
    known_task = None if trained.manifest is None else trained.manifest.task
    title = trained.saved.title
    if known_task is not None:
        if kind not in (None, known_task.kind):
            raise SpecError(f"kind is '{kind}', and what {title} learned is {known_task.kind}; leave it out.")
        if label_names is not None and known_task.label_names not in (None, tuple(label_names)):
            raise SpecError(f"{title} has learned its own class names; leave yours out.")
        return known_task
    task_type = trained.saved.config_values.get("task_type")
    is_causal = base.is_causal if task_type is None else task_type == "CAUSAL_LM"
    task_kind = default_kind(is_causal=is_causal) if kind is None else find_kind(kind)
    if task_kind.head(("a", "b")).num_labels is None:
        return TaskManifest(trained.saved.source, task_kind.name)
    outputs = _head_outputs(trained.saved)
    if outputs == 1 and kind is None:
        raise SpecError(f"{title} has a head with one output; add --kind regression, if it is a number.")
    if label_names is not None and outputs not in (None, len(label_names)):
        raise SpecError(f"{title} has a head with {outputs} outputs, not {len(label_names)} classes.")
    if label_names is None and outputs is None:
        raise SpecError(f"{title} does not name its classes; name them with --labels.")
    names = tuple(label_names or (f"LABEL_{index}" for index in range(outputs or 0)))
    return TaskManifest(trained.saved.source, task_kind.name, names if len(names) > 1 else None)


def _with_template(task: TaskManifest, kind: TaskKind, name: str) -> dict[str, JsonValue]:
    """Return the settings of a task with another chat template.

    Raises:
        SpecError: If the kind writes no conversations, or there is no such template.
    """
    if not kind.uses_chat_template:
        raise SpecError(f"a chat template is of no use to the kind {kind.name}; leave it out.")
    return {**task.settings, CHAT_TEMPLATE: read_template(name)}


def _check_learned(saved: SavedAdapter, kind: TaskKind, learned: Learned) -> None:
    """Check that a kind of task goes with an adapter's head and settings.

    Raises:
        AdapterFileError: If the head is one for other tasks, or the kind knows no such setting.
    """
    remedy = f"restore the '{MANIFEST_NAME}' of {saved.title} from its run, or update rankfold."
    for name, value in learned.settings.items():
        if kind.setting_types is not None and not isinstance(value, kind.setting_types.get(name, ())):
            raise AdapterFileError(
                f"the setting '{name[:_MOST_SHOWN]}' = {json.dumps(value)[:_MOST_SHOWN]} is none of the kind "
                f"'{kind.name}'; {remedy}"
            )
    task_type, wanted = saved.config_values.get("task_type"), kind.head(learned.label_names).task_type
    if None not in (task_type, wanted) and task_type != wanted:
        raise AdapterFileError(
            f"the kind '{kind.name}' takes a head for {wanted}, and the adapter has one for {task_type}; "
            f"{remedy}"
        )


def _head_outputs(saved: SavedAdapter) -> int | None:
    """Return the outputs of the head that is saved with an adapter: the rows of its last matrix."""
    heads = [
        tensor
        for key, tensor in saved.tensors.items()
        if key.endswith(".weight") and any(f".{name}." in key for name in saved.modules_to_save)
    ]
    return heads[-1].shape[0] if heads else None


def _find_scoring(kind: TaskKind, task: TaskManifest, name: str | None) -> str | None:
    """Return how answers with choices are found: as asked, else as in training."""
    if name is None:
        return task.scoring
    return kind.scoring(name, task.metrics or ("accuracy",), task.name)
