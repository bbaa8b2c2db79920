"""What an export promises, as a value: what was written, how far from the adapter it is, made from what."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast, final, get_args

FORMAT = 1
NAME = "certificate.json"

Target = Literal["lora", "gguf", "merged"]
"""A folder of PEFT's LoRA, a LoRA file for llama.cpp, or a model with the adapter in its weights."""

TARGETS: tuple[Target, ...] = get_args(Target)
PLAIN_LORA, LLAMA_CPP, MERGED = TARGETS

Method = Literal["folded", "compressed", "merged"]
"""By algebra alone; by a truncated decomposition, which is approximate; or added to the base weights."""


@final
@dataclass(frozen=True, slots=True)
class LayerPart:
    """One layer: the rank it was written with, and its relative errors.

    Args:
        name: The layer's name in the base model.
        rank: That of the written matrices; of a merged one that of the adapter.
        fp32: Error of the result in float32; of a merged weight what rounding takes of the change.
        written: Error of what the files hold.
    """

    name: str
    rank: int
    fp32: float
    written: float


@final
@dataclass(frozen=True, slots=True)
class LogitsPart:
    """The base with the result, as other programs load it, against the base with the adapter.

    Args:
        source: Where the texts are from.
        texts: How many.
        sha256: Hash of the texts.
        largest: The largest difference of a text's logits, relative to the size of all texts' logits.
        mean: The mean of them.
    """

    source: str
    texts: int
    sha256: str
    largest: float
    mean: float


@final
@dataclass(frozen=True, slots=True)
class BasePart:
    """The base model: its name and the hash of its weights, None where they were not at hand."""

    name: str | None
    sha256: str | None


@final
@dataclass(frozen=True, slots=True)
class AdapterPart:
    """The adapter: its folder as it was named, and the hash of each of its files."""

    folder: str
    sha256: Mapping[str, str]


@final
@dataclass(frozen=True, slots=True)
class Certificate:
    """An export's promise; `certificate.json` is this as JSON.

    Args:
        target: What was written.
        method: How. Only what was folded or merged is exact up to the rounding that is stated.
        dtype: That of the written weights.
        rank: The largest rank.
        layers: Every adapted layer.
        logits: What the model says, compared; None if it was not.
        logits_skipped: Why not.
        base: The base model.
        adapter: What was exported.
        result: Hash of each written file.
        versions: Of the programs that took part.
        format: Of this record.
    """

    target: Target
    method: Method
    dtype: str
    rank: int
    layers: tuple[LayerPart, ...]
    logits: LogitsPart | None
    logits_skipped: str | None
    base: BasePart
    adapter: AdapterPart
    result: Mapping[str, str]
    versions: Mapping[str, str]
    format: Literal[1] = FORMAT

    @property
    def is_exact(self) -> bool:
        """Whether only rounding is between the adapter and the result."""
        return self.method != "compressed"

    @property
    def worst_fp32(self) -> LayerPart:
        """The layer with the largest error in float32."""
        return max(self.layers, key=lambda layer: layer.fp32)

    @property
    def worst_written(self) -> LayerPart:
        """The layer with the largest error in the files."""
        return max(self.layers, key=lambda layer: layer.written)

    def to_dict(self) -> dict[str, Any]:
        """Return the certificate as JSON values, the format first."""
        values = cast("dict[str, Any]", json.loads(json.dumps(asdict(self))))
        return {"format": values.pop("format"), **values}
