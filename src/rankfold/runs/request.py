"""The request of one run: every field with its range, default and help text."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import BeforeValidator, Field, JsonValue
from pydantic.fields import FieldInfo

from rankfold.errors import SpecError, unknown_name
from rankfold.models.names import EMBEDDED_LIST
from rankfold.runs.fields import (
    Option,
    Request,
    Values,
    fields_of,
    flag_of,
    option_of,
    request_class,
    split_list,
    value_type,
)
from rankfold.tasks.data.columns import Columns
from rankfold.tasks.data.decode import MAX_BYTES, ReadOptions
from rankfold.tasks.data.numbers import Decimal
from rankfold.tasks.task import Mixture, TaskRequest
from rankfold.train.reducer.spec import ReducerSpec
from rankfold.train.schedule import Moments, OptimizerName, Rates, Scheduler

DEFAULT_EPOCHS = 3.0

PEFT_PREFIX = "peft:"
"""Methods of PEFT itself have names that begin so."""

HEAD_ONLY_NAME = "head_only"
"""The method that trains the task head alone."""

FULL_NAME = "full"
"""The method that trains every linear layer whole."""

LOGGERS = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}
"""Integrations of transformers' Trainer, with the packages that they take."""

Precision = Literal["auto", "fp32", "bf16"]
Device = Literal["auto", "cpu", "cuda", "mps"]
BaseDtype = Literal["fp32", "bf16"]
StoredType = Literal["fp16", "bf16", "int8", "int4", "int3", "int2"]
Quantisation = Literal["4bit", "8bit"]
Attention = Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"]
BaseRole = Literal["down", "core", "up"]
ScoringName = Literal["likelihood", "total_likelihood", "generated"]
SplitName = Literal["train", "validation", "test", "validation_mismatched"]

_SUBJECT = Option("What to train")
DATA_OPTION = Option("Data")
_TRAINING = Option("How to train")
_TRAINING_METHOD = Option("How to train", is_per_method=True)
_RATES = Option("Learning rates by role", is_per_method=True)
_PATHS = Option("What to train", is_identity=False)
PLACE_OPTION = Option("Where", is_identity=False)

# Fields of every request that reads files.
BYTES_OPTION = Option("Data", metavar="BYTES", is_identity=False)
ENCODING_FIELD: Any = Field(
    None, description="Encoding of text files, such as cp1252; found by their bytes if left out."
)
DELIMITER_FIELD: Any = Field(
    None, description="Delimiter of CSV files: a character, or tab; found by the header if left out."
)
TRUST_FIELD: Any = Field(
    default=False, description="Run Python code that comes with the model's files; read it first."
)
MOST_BYTES_FIELD: Any = Field(MAX_BYTES, gt=0, le=2**50, description="Most bytes of a split, decompressed.")


BALANCED = "balanced"
"""The class weights with which all classes count alike."""


def read_class_weights(value: object) -> object:
    """Return class weights by name, which may be written as spam=5,ham=1 or as JSON; "balanced" as it is.

    Raises:
        SpecError: If they are neither.
    """
    if value is None or value == BALANCED:
        return value
    weights = value
    try:
        if isinstance(value, str):
            parts = (part.rpartition("=") for part in value.split(","))
            is_json = value.lstrip().startswith("{")
            weights = json.loads(value) if is_json else {name.strip(): float(text) for name, _, text in parts}
        numbers = {str(name): float(weight) for name, weight in cast("Mapping[Any, Any]", weights).items()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        numbers = {}
    if not numbers or "" in numbers or not all(0 < number < math.inf for number in numbers.values()):
        raise SpecError(
            f"class_weights is {value!r}; give balanced, or a number above 0 for each class, as spam=5,ham=1."
        )
    return numbers


@request_class
class DataRequest(Request):
    """The fields that say which data is read, and how; each is an option of `rankfold train` of this name."""

    title: ClassVar[str] = "data"
    sections: ClassVar[tuple[str, ...]] = ("Data",)

    data_root: Annotated[
        str | None, Option("Data", metavar="DIR", envvar="RANKFOLD_DATA", is_identity=False)
    ] = Field(None, description="Folder with one subfolder per task.")
    data: Annotated[str | None, Option("Data", metavar="PATH|HUB_ID")] = Field(
        None, description="Folder of splits, a JSONL, CSV or Parquet file, or a hub dataset."
    )
    encoding: Annotated[str | None, DATA_OPTION] = ENCODING_FIELD
    delimiter: Annotated[str | None, DATA_OPTION] = DELIMITER_FIELD
    max_bytes: Annotated[int, BYTES_OPTION] = MOST_BYTES_FIELD
    task: Annotated[str | None, DATA_OPTION] = Field(
        None,
        description="A task whose metric is known: bbc_news (embedded), mrpc, stsb, boolq, ...; several as "
        "mrpc+sst2.",
    )
    kind: Annotated[str | None, DATA_OPTION] = Field(
        None, description="The kind of task, such as regression; inferred from the data if left out."
    )
    text_column: Annotated[str | None, DATA_OPTION] = Field(None, description="Column of the text.")
    pair_column: Annotated[str | None, DATA_OPTION] = Field(None, description="Column of the second text.")
    label_column: Annotated[str | None, DATA_OPTION] = Field(None, description="Column of the label.")
    choices_column: Annotated[str | None, DATA_OPTION] = Field(
        None, description="Column of the choices of a question, or several as A,B,C,D."
    )
    picture_column: Annotated[str | None, DATA_OPTION] = Field(
        None, description="Column of the pictures: paths, base64 or bytes."
    )
    group_column: Annotated[str | None, DATA_OPTION] = Field(
        None,
        description="Column of the speaker, person or document, of which none is on both sides of a split.",
    )
    metric: Annotated[str | None, Option("Data", metavar="NAMES", is_list=True)] = Field(
        None,
        description="Metrics such as macro_f1, the first of which results are compared by; may be repeated; "
        "those of the kind of task if left out.",
    )
    decimal: Annotated[Decimal | None, DATA_OPTION] = Field(
        None,
        description="Decimal separator of numbers in the label column, '.' or ','; found in the data if "
        "left out.",
    )
    drop_missing: Annotated[bool | None, DATA_OPTION] = Field(
        None, description="Leave out rows whose text or label is missing, instead of refusing them."
    )
    chat_template: Annotated[str | None, DATA_OPTION] = Field(
        None,
        description="Template of conversations: chatml, alpaca, vicuna or a Jinja file; the model's own if "
        "left out.",
    )
    scoring: Annotated[ScoringName | None, DATA_OPTION] = Field(
        None,
        description="How a model that writes text chooses: likelihood (a token's, on average), "
        "total_likelihood, or generated (what it answers is read); likelihood if left out.",
    )
    max_length: Annotated[int | None, DATA_OPTION] = Field(
        None,
        gt=0,
        le=10**7,
        description="Maximum tokens per row; longer rows are truncated.  "
        "[default: 128; 256 for instructions]",
    )

    def __post_init__(self) -> None:
        """Check the encoding, the delimiter of cells, and the list of metrics."""
        _ = self.read_options, self.metrics

    @property
    def task_request(self) -> TaskRequest:
        """The data to read, as a value of `rankfold.tasks`."""
        columns = Columns(
            self.text_column,
            self.pair_column,
            self.label_column,
            self.group_column,
            self.choices_column,
            self.picture_column,
        )
        return TaskRequest(
            self.task,
            self.data,
            self.data_root,
            self.kind,
            columns,
            decimal=self.decimal,
            drops_missing=bool(self.drop_missing),
            chat_template=self.chat_template,
            reading=self.read_options,
        )

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names in `metric`."""
        return split_list("metric", self.metric)

    @property
    def read_options(self) -> ReadOptions:
        """How files are read."""
        return ReadOptions(self.encoding, self.delimiter, self.max_bytes)


@request_class
class RunRequest(DataRequest):
    """One run: a model learns a task with a method.

    Each field is an option of `rankfold train` of the same name; `options`, `kind_options`,
    `lr_groups` and `reducer` are given there as `--set`, `--kind-set`, `--lr-group` and `--reducer-set`.

    Raises:
        SpecError: If a field is unknown or missing, a number is out of its range, a name is not one of its
            choices, both epochs and steps are given, or the options of learning rates or of the Reducer are
            not possible.
    """

    title: ClassVar[str] = "a run"
    sections: ClassVar[tuple[str, ...]] = (
        "What to train",
        "Data",
        "How to train",
        "Learning rates by role",
        "Where",
    )

    model: Annotated[str, _SUBJECT] = Field(
        description=f"{EMBEDDED_LIST}, a folder, a GGUF file or a hub id."
    )
    method: Annotated[str, _SUBJECT] = Field(
        description="A method of `rankfold methods`, or one of PEFT's, such as peft:lora."
    )
    options: Annotated[
        Mapping[str, JsonValue], Option("What to train", flag="--set", metavar="KEY=VALUE")
    ] = Field(default_factory=dict, description="An option of the method; may be repeated.")
    init_from: Annotated[str | None, Option("What to train", metavar="ADAPTER")] = Field(
        None, description="Begin with the weights of a saved adapter of the same method and options."
    )
    out: Annotated[Path, _PATHS] = Field(strict=False, description="Folder to write; it must not exist.")
    overwrite: Annotated[bool, _PATHS] = Field(
        default=False, description="Replace the run in --out, once this one has succeeded."
    )
    resume: Annotated[bool, _PATHS] = Field(
        default=False,
        description="Go on with a run that was stopped, if there is one; with --out alone, as it began.",
    )
    trust_remote_code: Annotated[bool, _SUBJECT] = TRUST_FIELD
    freeze_head: Annotated[bool, Option("What to train", is_per_method=True)] = Field(
        default=False, description="Keep a new classification head at its random initial values (frozen)."
    )
    packing: Annotated[bool, _TRAINING] = Field(
        default=False,
        description="Put several short texts into one row, which do not see each other; for kinds that write "
        "text.",
    )
    kind_options: Annotated[
        Mapping[str, JsonValue], Option("How to train", flag="--kind-set", metavar="KEY=VALUE")
    ] = Field(
        default_factory=dict,
        description="An option of the kind of task, such as side=512 of image_generation; may be repeated.",
    )
    train_rows: Annotated[int | None, DATA_OPTION] = Field(
        None, gt=0, le=10**12, description="Train on this many rows, drawn with a fixed seed."
    )
    eval_rows: Annotated[int | None, DATA_OPTION] = Field(
        None, gt=0, le=10**12, description="Evaluate on this many rows, drawn with a fixed seed."
    )
    class_weights: Annotated[
        str | Mapping[str, float] | None,
        BeforeValidator(read_class_weights),
        Option("How to train", metavar="balanced|CLASS=W,..."),
    ] = Field(
        None,
        description="Weights of classes in the loss, such as spam=5,ham=1 (1 where left out); balanced: all "
        "classes count alike.",
    )
    sampling: Annotated[Literal["balanced"] | None, _TRAINING] = Field(
        None,
        description="balanced: rows of rarer classes are repeated until each class has as many as the "
        "largest.",
    )
    hold_out: Annotated[bool, DATA_OPTION] = Field(
        default=False,
        description="Evaluate on a tenth of the training split, not trained on, instead of on the validation "
        "split.",
    )
    mixture: Annotated[Mixture, DATA_OPTION] = Field(
        "equal",
        description="Training rows of each task of a mixture: equal, as many as the smallest has, or all.",
    )
    epochs: Annotated[float | None, _TRAINING] = Field(
        None, gt=0, le=10**6, description="Passes over the training split.  [default: 3]"
    )
    steps: Annotated[int | None, _TRAINING] = Field(
        None, gt=0, le=10**12, description="Updates, instead of epochs."
    )
    batch_size: Annotated[int, _TRAINING] = Field(
        16, gt=0, le=10**6, description="Rows of a batch, and of an update without --gradient-accumulation."
    )
    gradient_accumulation: Annotated[int, Option("How to train", metavar="BATCHES")] = Field(
        1, gt=0, le=10**6, description="Batches of an update, whose loss is the mean over all their rows."
    )
    learning_rate: Annotated[float | None, _TRAINING_METHOD] = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Highest learning rate; the method's own if left out.",
    )
    scheduler: Annotated[Scheduler, _TRAINING_METHOD] = Field(
        "linear", description="Learning rate after the warm-up: linear, cosine, constant, ..."
    )
    warmup: Annotated[float, _TRAINING_METHOD] = Field(
        0.06, ge=0, lt=1, description="Share of the steps in which the rate rises."
    )
    weight_decay: Annotated[float, _TRAINING_METHOD] = Field(
        0.0, ge=0, allow_inf_nan=False, description="Weight decay of the optimiser."
    )
    optimizer: Annotated[OptimizerName, _TRAINING_METHOD] = Field(
        "adamw", description="The optimiser; those in 8 bits take the package bitsandbytes."
    )
    max_grad_norm: Annotated[float, _TRAINING_METHOD] = Field(
        1.0,
        ge=0,
        le=10**9,
        allow_inf_nan=False,
        description="Norm that gradients are scaled down to, if any.",
    )
    store: Annotated[StoredType | None, _TRAINING_METHOD] = Field(
        None,
        description="Write the adapter rounded to this type as well, into adapter.rankfold, and measure it: "
        "fp16, bf16, int8, int4, int3 or int2.",
    )
    store_bits: Annotated[int | None, Option("How to train", metavar="BITS", is_per_method=True)] = Field(
        None,
        ge=2,
        le=8,
        description="Train with numbers rounded to 8, 4, 3 or 2 bits in the last third of the updates, and "
        "store them in that type.",
    )
    seed: Annotated[int, _TRAINING] = Field(
        0, ge=0, le=2**32 - 1, description="Seed of head, adapter, data order and dropout."
    )
    precision: Annotated[Precision, _TRAINING] = Field("auto", description="auto, fp32 or bf16.")
    base_dtype: Annotated[BaseDtype, _TRAINING] = Field(
        "fp32", description="Number type of the frozen base model; adapters and new heads are in fp32."
    )
    quantise: Annotated[Quantisation | None, _TRAINING] = Field(
        None, description="Quantise the frozen base model; takes bitsandbytes, or torchao for 8bit."
    )
    attn: Annotated[Attention | None, _TRAINING] = Field(
        None, description="Attention of the base model; what transformers chooses if left out."
    )
    gradient_checkpointing: Annotated[bool, _TRAINING] = Field(
        default=False,
        description="Compute activations again in the backward pass: less memory, a third more time.",
    )
    compile: Annotated[bool, _TRAINING] = Field(
        default=False, description="Compile the training step with torch.compile; takes a C++ compiler."
    )
    group_by_length: Annotated[bool, _TRAINING] = Field(
        default=False, description="Make batches of rows of similar length: less padding."
    )
    validate: Annotated[Moments, Option("How to train", is_identity=False)] = Field(
        "auto",
        description="When held-out rows are measured: auto (before, after, and some in between in at most "
        "2 % of the time), epochs (before, and after every epoch) or end.",
    )
    eval_every: Annotated[int | None, Option("How to train", metavar="STEPS", is_identity=False)] = Field(
        None, gt=0, le=10**12, description="Measure all held-out rows every STEPS updates instead."
    )
    early_stopping: Annotated[int | None, Option("How to train", metavar="N")] = Field(
        None,
        gt=0,
        le=10**6,
        description="Stop after N evaluations without a better --save-best metric, or else held-out loss.",
    )
    save_best: Annotated[str | None, Option("How to train", metavar="METRIC")] = Field(
        None, description="Save the adapter of the best evaluation by a metric, or by loss, not the last one."
    )
    reducer: Annotated[
        Mapping[str, JsonValue] | None,
        Option(
            "How to train", flag="--reducer-set", switch="--reducer", metavar="KEY=VALUE", is_per_method=True
        ),
    ] = Field(
        None,
        description="An option of the Reducer, such as active_fraction=0.5, which turns it on; may be "
        "repeated.",
    )
    tlora_ratio: Annotated[
        float | None, Option("Learning rates by role", metavar="R", is_per_method=True)
    ] = Field(None, description="TLoRA+: down : core : up = 1 : R^1.5 : R^0.5.")
    loraplus_ratio: Annotated[
        float | None, Option("Learning rates by role", metavar="R", is_per_method=True)
    ] = Field(None, description="LoRA+: the up factor learns R times as fast.")
    lr_groups: Annotated[
        Mapping[str, JsonValue],
        Option("Learning rates by role", flag="--lr-group", metavar="ROLE=FACTOR", is_per_method=True),
    ] = Field(
        default_factory=dict,
        description="Multiple of the rate of down, core, up, scale, router or head; may be repeated.",
    )
    lr_per_module: Annotated[bool, _RATES] = Field(
        default=False, description="TLoRA+ with the sizes of each layer in place of a ratio."
    )
    lr_base_role: Annotated[BaseRole, _RATES] = Field(
        "down", description="TLoRA+: which of down, core and up has the learning rate itself."
    )
    report_to: Annotated[str | None, Option("Where", metavar="LOGGERS", is_identity=False)] = Field(
        None, description=f"Log the curve, separated by commas: {', '.join(LOGGERS)}."
    )
    checkpoint_every: Annotated[int, Option("Where", metavar="STEPS", is_identity=False)] = Field(
        200, ge=0, le=10**12, description="Save a checkpoint every STEPS updates; 0 disables."
    )
    keep_texts: Annotated[bool, Option("Where", is_identity=False)] = Field(
        default=True,
        description="Write the texts of the worst held-out rows to examples.jsonl, for `rankfold report`.",
    )
    device: Annotated[Device, PLACE_OPTION] = Field("auto", description="auto, cpu, cuda or mps.")
    threads: Annotated[int | None, PLACE_OPTION] = Field(None, gt=0, le=4096, description="CPU threads.")

    def __post_init__(self) -> None:
        """Check the fields that depend on each other, which their values do by being made."""
        super().__post_init__()
        if self.epochs is not None and self.steps is not None:
            raise SpecError(
                f"epochs ({self.epochs:g}) and steps ({self.steps}) are both given; give one of them."
            )
        self._check_evaluations()
        if self.class_weights is not None and self.sampling is not None:
            raise SpecError(
                "class_weights and sampling are both given, and either makes rare classes count more; give "
                "one of them."
            )
        if self.base_dtype == "bf16" and self.precision == "fp32":
            raise SpecError("base_dtype 'bf16' cannot be trained with precision 'fp32'; use bf16 or auto.")
        self._check_store()
        _ = self.rates
        if self.reducer is not None:
            ReducerSpec.of(self.reducer)

    @property
    def task_request(self) -> TaskRequest:
        """The data to read, as a value of `rankfold.tasks`."""
        return replace(
            super().task_request,
            holds_out=self.hold_out,
            mixture=self.mixture,
        )

    @property
    def rates(self) -> Rates:
        """The learning rates of the adapter's parts."""
        return Rates(
            tlora_ratio=self.tlora_ratio,
            per_module=self.lr_per_module,
            base_role=self.lr_base_role,
            loraplus_ratio=self.loraplus_ratio,
            groups=cast("Mapping[str, float]", self.lr_groups),
        )

    def _check_evaluations(self) -> None:
        if self.validate == "end" and self.selects and self.eval_every is None:
            option = "save_best" if self.save_best else "early_stopping"
            raise SpecError(
                f"validate is 'end', but {option} takes evaluations in between; "
                "use epochs, or give eval_every."
            )
        for name in self.loggers:
            if name not in LOGGERS:
                raise unknown_name("logger of report_to", name, LOGGERS)

    def _check_store(self) -> None:
        if self.store_bits is None:
            return
        if self.store_bits not in (8, 4, 3, 2):
            raise SpecError(f"store_bits is {self.store_bits}; give 8, 4, 3 or 2.")
        if self.store not in (None, f"int{self.store_bits}"):
            raise SpecError(
                f"store is '{self.store}', and store_bits {self.store_bits} are stored as "
                f"int{self.store_bits}; leave store out."
            )

    @property
    def stored_type(self) -> str | None:
        """The type that the adapter is written in beside its folder's own files; None if it is not."""
        return self.store if self.store_bits is None else f"int{self.store_bits}"

    @property
    def selects(self) -> bool:
        """Whether evaluations in between decide about the result."""
        return self.save_best is not None or self.early_stopping is not None

    @property
    def loggers(self) -> tuple[str, ...]:
        """The names in `report_to`."""
        return split_list("report_to", self.report_to)

    def identity(self) -> Values:
        """Return the JSON values that decide the run's result: equal for the same run, wherever it is."""
        values = self.to_dict()
        if self.epochs is None and self.steps is None:
            values["epochs"] = DEFAULT_EPOCHS
        # Evaluations decide nothing, unless the best of them does.
        names = (*IDENTITY_FIELDS, "eval_every") if self.selects else IDENTITY_FIELDS
        return {name: value for name, value in values.items() if name in names}

    def identity_of_seeds(self) -> str:
        """Return the identity without the seed, as a text: the same for all seeds of a variant."""
        return json.dumps({**self.identity(), "seed": None}, sort_keys=True)

    def command(self) -> tuple[str, ...]:
        """Return the command line that repeats this run, from its beginning."""
        words = ["rankfold", "train"]
        for name, value in self.changed_values().items():
            if name != "resume":
                words += _option_words(name, fields_of(RunRequest)[name], value)
        return tuple(words)


def _option_words(name: str, field: FieldInfo, value: JsonValue) -> list[str]:
    """Return one field of a request as words of a command line."""
    flag, switch = flag_of(name, field), option_of(field).switch
    if isinstance(value, dict) and value_type(field) is not dict:
        return [flag, json.dumps(value)]
    if isinstance(value, dict):
        switch = [] if switch is None else [switch]
        return [
            *switch,
            *(word for key, item in value.items() for word in (flag, f"{key}={json.dumps(item)}")),
        ]
    if isinstance(value, bool):
        return [flag]
    return [flag, _number_text(value) if isinstance(value, float) else str(value)]


def _number_text(value: float) -> str:
    """Return the shortest text that is read as the same number."""
    return short if float(short := f"{value:g}") == value else repr(value)


IDENTITY_FIELDS = tuple(name for name, field in fields_of(RunRequest).items() if option_of(field).is_identity)
"""The fields that decide a run's result; not where it is, what it runs on, or how it is watched and kept."""

METHOD_FIELDS = tuple(name for name, field in fields_of(RunRequest).items() if option_of(field).is_per_method)
"""The fields that belong to how a method is trained, and may differ from method to method in a comparison."""


@request_class
class PreviewRequest(DataRequest):
    """One preview: data as a run with the same options would learn it.

    Raises:
        SpecError: If a field is unknown, a number is out of its range, or a name not one of its choices.
    """

    title: ClassVar[str] = "a preview"
    sections: ClassVar[tuple[str, ...]] = ("What to show", "Data")

    model: Annotated[str | None, Option("What to show")] = Field(
        None,
        description=f"The model whose tokens are shown: {EMBEDDED_LIST}, a folder, a hub id.",
    )


def overlay(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with some of them changed; epochs and steps exclude and so replace each other."""
    return {**without_changed(settings, changes), **changes}


def without_changed(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that stay as they are where others are changed."""
    left_out = {*changes, *(("epochs", "steps") if changes.keys() & {"epochs", "steps"} else ())}
    return {key: value for key, value in settings.items() if key not in left_out}
