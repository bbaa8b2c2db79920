"""Requests on a saved adapter: to evaluate it, and to predict and generate with it."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from rankfold.errors import SpecError
from rankfold.runs.fields import Option, Request, fields_of, request_class
from rankfold.runs.request import (
    BYTES_OPTION,
    DATA_OPTION,
    DELIMITER_FIELD,
    ENCODING_FIELD,
    MOST_BYTES_FIELD,
    PLACE_OPTION,
    TRUST_FIELD,
    DataRequest,
    Device,
    Precision,
    ScoringName,
    SplitName,
)
from rankfold.tasks.data.decode import ReadOptions

if TYPE_CHECKING:
    from rankfold.runs.record import RunRecord
    from rankfold.store.manifest import Manifest
    from rankfold.tasks.kinds.learner import Sampling

_ADAPTER, _SAMPLING = Option("Adapter"), Option("How to generate")
_EVALUATION, _EVALUATION_PLACE = Option("What to evaluate"), Option("Where")

_FIELDS_OF_RUN = ("model", "batch_size")
# The text of a run's chat template is part of its settings; the file that it was read from may be gone.
_DATA_FIELDS_OF_RUN = tuple(
    name for name in fields_of(DataRequest) if name not in ("max_length", "chat_template")
)


@request_class
class EvaluateRequest(DataRequest):
    """One evaluation: a saved adapter on a split of a task.

    Fields that are None are those of the run whose `run.json` lies beside the adapter, or of the adapter's
    manifest. Where `task` or `data` names other data, only the columns are those of the run.

    Raises:
        SpecError: If a field is unknown or missing, a number is out of its range, or a name not one of its
            choices.
    """

    title: ClassVar[str] = "an evaluation"
    sections: ClassVar[tuple[str, ...]] = ("What to evaluate", "Data", "Where")

    adapter: Annotated[Path, _EVALUATION] = Field(
        strict=False, description="A folder that `rankfold train` or `save_pretrained` wrote."
    )
    model: Annotated[str | None, _EVALUATION] = Field(
        None, description="The base model; that of the run if left out."
    )
    trust_remote_code: Annotated[bool, _EVALUATION] = TRUST_FIELD
    split: Annotated[SplitName | None, _EVALUATION] = Field(
        None,
        description="train, validation, test, or validation_mismatched (of mnli).  [default: validation; all "
        "rows of a file that --data names]",
    )
    batch_size: Annotated[int | None, _EVALUATION_PLACE] = Field(
        None, gt=0, le=10**6, description="Rows at a time; those of the run if left out, else 16."
    )
    precision: Annotated[Precision | None, _EVALUATION_PLACE] = Field(
        None, description="auto, fp32 or bf16; that of the run if left out, else auto."
    )
    device: Annotated[Device, _EVALUATION_PLACE] = Field("auto", description="auto, cpu, cuda or mps.")

    @property
    def is_own_data(self) -> bool:
        """Whether the data is that of the run, because no other is named."""
        return self.task is None and self.data is None

    def completed_by(
        self, record: "RunRecord | None", manifest: "Manifest | None" = None
    ) -> "CompleteRequest":
        """Return the request with the fields of a run in place of those that are None.

        Args:
            record: That of the run, if it is beside the adapter.
            manifest: That of the adapter, which stands in for a record.

        Raises:
            SpecError: If nothing names the base model.
        """
        values = {} if self.is_own_data else _columns_of(manifest)
        values |= _values_of_manifest(manifest) if record is None else _values_of_run(self, record)
        values |= {
            name: value for name in fields_of(type(self)) if (value := getattr(self, name)) is not None
        }
        if "model" not in values:
            raise SpecError(
                f"'{self.adapter}' has no rankfold.json and no run.json that name its base model; "
                "name it with --model."
            )
        return CompleteRequest(**values)


@request_class
class CompleteRequest(EvaluateRequest):
    """An evaluation whose model, batch size and precision are known."""

    model: Annotated[str, _EVALUATION] = Field(description="The base model.")
    batch_size: Annotated[int, _EVALUATION_PLACE] = Field(16, gt=0, le=10**6, description="Rows at a time.")
    precision: Annotated[Precision, _EVALUATION_PLACE] = Field("auto", description="auto, fp32 or bf16.")


def _values_of_run(request: EvaluateRequest, record: "RunRecord") -> dict[str, Any]:
    """Return the values of a run that hold for its evaluation too."""
    names = (*_FIELDS_OF_RUN, *_DATA_FIELDS_OF_RUN) if request.is_own_data else _FIELDS_OF_RUN
    values = {name: getattr(record.request, name) for name in names}
    values |= {"max_length": record.training.max_length, "precision": record.training.precision}
    return {name: value for name, value in values.items() if value is not None}


def _columns_of(manifest: "Manifest | None") -> dict[str, Any]:
    """Return the names of the columns that an adapter was trained on, by the fields of a request."""
    columns: Mapping[str, str] = {} if manifest is None else manifest.columns
    return {
        f"{role}_column": columns[role] for role in ("text", "pair", "label", "picture") if role in columns
    }


def _values_of_manifest(manifest: "Manifest | None") -> dict[str, Any]:
    """Return the values of an adapter's manifest that hold for its evaluation too."""
    if manifest is None:
        return {}
    values = {
        "model": None if manifest.base is None else manifest.base.name,
        "max_length": manifest.max_length,
    }
    return {name: value for name, value in values.items() if value is not None}


@request_class
class SamplingRequest(Request):
    """How texts are generated.

    Raises:
        SpecError: If a number is out of its range.
    """

    title: ClassVar[str] = "sampling"
    sections: ClassVar[tuple[str, ...]] = ("How to generate",)

    max_new_tokens: Annotated[int | None, _SAMPLING] = Field(
        None, gt=0, le=10**6, description="Maximum tokens of a generated answer.  [default: 256]"
    )
    temperature: Annotated[float, _SAMPLING] = Field(
        0.0, ge=0, le=100, description="Randomness of generated tokens; 0 takes the likeliest token."
    )
    top_p: Annotated[float, _SAMPLING] = Field(
        1.0, gt=0, le=1, description="Draw among the likeliest tokens that together have this probability."
    )
    seed: Annotated[int, _SAMPLING] = Field(0, ge=0, le=2**32 - 1, description="Seed of the draws.")
    denoising_steps: Annotated[int | None, _SAMPLING] = Field(
        None, gt=0, le=10**4, description="Steps in which a picture is drawn; the pipeline's own if left out."
    )
    guidance: Annotated[float | None, _SAMPLING] = Field(
        None, ge=0, le=100, description="Weight of a caption in its picture; the pipeline's own if left out."
    )

    def sampling(self, new_tokens: int) -> "Sampling":
        """Return the settings of the generation, with a number of tokens where none was asked for."""
        from rankfold.tasks.kinds.learner import Sampling  # it needs torch

        return Sampling(
            self.max_new_tokens or new_tokens,
            self.temperature,
            self.top_p,
            self.seed,
            self.denoising_steps,
            self.guidance,
        )


@request_class
class PredictRequest(SamplingRequest):
    """The use of a saved adapter on rows without labels.

    Raises:
        SpecError: If a field is unknown or missing, or a number is out of its range.
    """

    title: ClassVar[str] = "a prediction"
    sections: ClassVar[tuple[str, ...]] = ("Adapter", "Data", "How to generate", "Where")

    adapter: Annotated[Path, _ADAPTER] = Field(
        strict=False, description="A folder, a packed file, or a record of a store as STORE#NAME."
    )
    model: Annotated[str | None, _ADAPTER] = Field(
        None, description="The base model; that which the adapter was trained on if left out."
    )
    trust_remote_code: Annotated[bool, _ADAPTER] = TRUST_FIELD
    kind: Annotated[str | None, _ADAPTER] = Field(
        None, description="The kind of task, such as regression, for an adapter that does not say."
    )
    labels: Annotated[str | None, Option("Adapter", metavar="NAME,NAME,...")] = Field(
        None, description="Class names in the order of the outputs, for an adapter that does not say."
    )
    data: Annotated[str | None, Option("Data", metavar="PATH|HUB_ID")] = Field(
        None, description="File of rows (JSONL, CSV, Parquet), a folder of splits, or a hub dataset."
    )
    encoding: Annotated[str | None, DATA_OPTION] = ENCODING_FIELD
    delimiter: Annotated[str | None, DATA_OPTION] = DELIMITER_FIELD
    max_bytes: Annotated[int, BYTES_OPTION] = MOST_BYTES_FIELD
    split: Annotated[SplitName | None, DATA_OPTION] = Field(
        None, description="Split of --data, where it has several: train, validation, test, ..."
    )
    text_column: Annotated[str | None, DATA_OPTION] = Field(
        None, description="Column of the text; that of the training data if left out."
    )
    pair_column: Annotated[str | None, DATA_OPTION] = Field(
        None, description="Column of the second text; that of the training data if left out."
    )
    max_length: Annotated[int | None, DATA_OPTION] = Field(
        None, gt=0, le=10**7, description="Maximum tokens per row; as in training if left out."
    )
    chat_template: Annotated[str | None, DATA_OPTION] = Field(
        None,
        description="Template of conversations: chatml, alpaca, vicuna or a Jinja file; as in training if "
        "left out.",
    )
    scoring: Annotated[ScoringName | None, DATA_OPTION] = Field(
        None,
        description="How an answer with choices is found: likelihood, total_likelihood or generated; as in "
        "training if left out.",
    )
    batch_size: Annotated[int, PLACE_OPTION] = Field(16, gt=0, le=10**6, description="Rows at a time.")
    precision: Annotated[Precision, PLACE_OPTION] = Field("auto", description="auto, fp32 or bf16.")
    device: Annotated[Device, PLACE_OPTION] = Field("auto", description="auto, cpu, cuda or mps.")

    def __post_init__(self) -> None:
        """Check that there is such an encoding and that the delimiter can separate cells."""
        _ = self.read_options

    @property
    def read_options(self) -> ReadOptions:
        """How files are read."""
        return ReadOptions(self.encoding, self.delimiter, self.max_bytes)
