"""The certificate of a rounding: the measured change of an adapter that was rounded to integers.

It goes with the rounded adapter, into its packed file or its record in a store.
"""

import json
from dataclasses import asdict, dataclass
from functools import cache
from typing import Annotated, Any, Literal, final

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config

from rankfold.errors import AdapterFileError
from rankfold.store.manifest import Sha256
from rankfold.store.strict_json import parse

FORMAT = 1

Measure = Literal["outputs", "updates", "numbers"]
"""The compared values: outputs of base and adapter, updates of the base weights, or the numbers."""

_STRICT = ConfigDict(extra="forbid", strict=True)

Share = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Score = Annotated[float, Field(allow_inf_nan=False)]


@final
@with_config(_STRICT)
@dataclass(frozen=True, slots=True)
class ScoreChange:
    """The metric of a task with the exact and with the rounded numbers.

    Args:
        task: Name of the task or of its data.
        name: The metric.
        rows: How many rows were measured.
        exact: The metric with the exact numbers.
        rounded: The metric with the rounded ones.
    """

    task: str
    name: str
    rows: int
    exact: Score
    rounded: Score


@final
@with_config(_STRICT)
@dataclass(frozen=True, slots=True)
class RoundingCertificate:
    """How much a rounding changes an adapter.

    Args:
        dtype: The type that it was rounded to, such as "int4".
        measure: `outputs`: for each text, the RMS of the change of the outputs over the RMS of the change
            that the adapter makes to all texts' outputs; `updates`: for each layer, the Frobenius norm of the
            change of its update over that of the update; `numbers`: the same for each tensor.
        largest: The largest of these errors.
        mean: Their mean.
        count: How many texts, layers or tensors there are.
        exact_sha256: The SHA-256 of the exact adapter's weights file.
        worst: The layer or tensor of the largest error; "" for outputs.
        inputs: The texts' data, or "seeded tokens"; None where no outputs were compared.
        inputs_sha256: Hash of the texts.
        base: The base model's name, where outputs were compared.
        base_sha256: Hash of its weights.
        reason: The reason that no outputs were compared, as a sentence.
        score: The change of a metric, if one was measured.
    """

    dtype: str
    measure: Measure
    largest: Share
    mean: Share
    count: int
    exact_sha256: Sha256
    worst: str = ""
    inputs: str | None = None
    inputs_sha256: Sha256 | None = None
    base: str | None = None
    base_sha256: str | None = None
    reason: str | None = None
    score: ScoreChange | None = None
    format: Literal[1] = FORMAT

    def __str__(self) -> str:
        """Return the certificate as one line."""
        subject = {
            "outputs": f"outputs change by at most {self.largest:.2%} of the adapter's effect "
            f"({self.mean:.2%} on average, {self.count} texts of {self.inputs})",
            "updates": f"updates change by at most {self.largest:.2%} ({self.mean:.2%} on average of "
            f"{self.count} layers, weights alone)",
            "numbers": f"tensors change by at most {self.largest:.2%} ({self.mean:.2%} on average of "
            f"{self.count}, weights alone)",
        }[self.measure]
        if (score := self.score) is None:
            return subject
        return f"{subject}; {score.name} on {score.task} {score.exact:.4f}, rounded {score.rounded:.4f}"

    def to_dict(self) -> dict[str, Any]:
        """Return the certificate as JSON values, the format first, without unknown ones."""
        values = {name: value for name, value in asdict(self).items() if value not in (None, "")}
        return {"format": values.pop("format"), **values}

    def to_json(self) -> bytes:
        """Return the certificate as text."""
        return json.dumps(self.to_dict(), ensure_ascii=False).encode()

    @classmethod
    def from_json(cls, text: bytes) -> "RoundingCertificate":
        """Read a certificate, strictly.

        Raises:
            AdapterFileError: If it is no strict JSON, a field is missing, unknown, or of another type.
        """
        parse(text, "the certificate")
        try:
            return _adapter().validate_json(text)
        except ValidationError as error:
            fault = error.errors()[0]
            field = ".".join(map(str, fault["loc"]))[:80] or "the text"
            raise AdapterFileError(
                f"the certificate of the rounding is damaged ({field}: {fault['msg']}); "
                "pack the adapter again."
            ) from error


@cache
def _adapter() -> TypeAdapter[RoundingCertificate]:
    return TypeAdapter(RoundingCertificate)
