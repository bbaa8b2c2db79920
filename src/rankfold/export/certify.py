"""Measuring what a certificate says: errors of layers, and what the model says on real text."""

import logging
import math
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from rankfold.errors import NotExactError, SpecError
from rankfold.export.base import Base
from rankfold.export.certificate import LLAMA_CPP, NAME, LayerPart, LogitsPart, Target
from rankfold.export.fold import Folded
from rankfold.export.measure import frobenius, relative_error
from rankfold.export.plain_math import written_rank
from rankfold.export.texts import Texts
from rankfold.export.written import model_with_result
from rankfold.files import sha256_of_file

logger = logging.getLogger("rankfold.export")

_MOST_TOKENS = 128

# Rounding grows on its way through a model, a hundredfold in narrow ones with strong adapters. But logits
# that miss half their size are another model's, however coarse the dtype.
_GROWTH, _GROSS = 1e4, 0.5


def layer_parts(
    trained: Mapping[str, Folded], folded: Mapping[str, Folded], written: Mapping[str, Folded]
) -> tuple[LayerPart, ...]:
    """Return the errors of every layer.

    Args:
        trained: What the adapter computes.
        folded: What was to be written, in float64.
        written: What the files hold.
    """
    return tuple(
        LayerPart(
            name,
            written_rank(folded[name]),
            relative_error(folded[name].rounded(torch.float32), product),
            relative_error(written[name], product),
        )
        for name, product in trained.items()
    )


def reads_text(model: nn.Module) -> bool:
    """Return whether a model's input is tokens."""
    return getattr(model, "main_input_name", "input_ids") == "input_ids"


def text_logits(model: nn.Module, tokenizer: PreTrainedTokenizerBase, texts: Texts) -> list[Tensor]:
    """Return a model's logits for each text, one text at a time, so that none is padded.

    A model without a head gives its hidden states; a decoder beside an encoder reads the same text.
    """
    return list(_each(model.eval(), tokenizer, texts))


@torch.inference_mode()
def _each(model: nn.Module, tokenizer: PreTrainedTokenizerBase, texts: Texts) -> Iterator[Tensor]:
    config: Any = getattr(model, "config", None)
    # Some models have no such number, or none that is meant.
    most = getattr(config, "max_position_embeddings", None) or _MOST_TOKENS
    for text in texts.texts:
        encoded = tokenizer(text, truncation=True, max_length=min(_MOST_TOKENS, most), return_tensors="pt")
        if getattr(config, "is_encoder_decoder", False):
            encoded["decoder_input_ids"] = encoded["input_ids"]
        yield model(**encoded)[0].float()


def compared_logits(target: Target, base: Base | None, texts: Texts | str, folder: Path) -> LogitsPart | str:
    """Return how far the base with the result is from the base with the adapter, or why that is not told.

    Args:
        target: What was exported.
        base: The base model, if it is at hand.
        texts: The texts, or why there are none.
        folder: What was written.

    Raises:
        AdapterFileError: If the adapter does not fit the model.
    """
    if isinstance(texts, str) or base is None or target == LLAMA_CPP:
        return _obstacle(base, texts)
    try:
        model = base.adapted()
    except SpecError as error:
        return str(error)
    tokenizer = base.tokenizer()
    if tokenizer is None or not reads_text(model):
        return f"the base model '{base.found.name}' has no tokenizer, or reads no text."
    logger.info("comparing logits on %d texts (%s).", len(texts.texts), texts.source)
    expected = text_logits(model, tokenizer, texts)
    actual = text_logits(model_with_result(target, folder, base), tokenizer, texts)
    # Against the size of all texts' logits: those of a single text may be near zero.
    size = _root_mean_square(torch.cat([each.flatten() for each in expected]))
    differences = [_root_mean_square(one - two) / size for one, two in zip(actual, expected, strict=True)]
    return LogitsPart(
        texts.source, len(differences), texts.sha256(), max(differences), sum(differences) / len(differences)
    )


def exact_bound(dtype: torch.dtype) -> float:
    """Return how far rounding to a dtype may move the logits of an exact export, relative to their size."""
    return min(_GROSS, _GROWTH * torch.finfo(dtype).eps / 2)


def check_exact_logits(logits: LogitsPart, dtype: torch.dtype) -> None:
    """Check that no more than rounding is between the logits of an exact export and the adapter's.

    Raises:
        NotExactError: If something else is.
    """
    bound = exact_bound(dtype)
    if not logits.largest <= bound:
        raise NotExactError(
            "the base says something else with the export than with the adapter: logits differ by "
            f"{logits.largest:.1e} of their size, where rounding explains {bound:.1e}; serve the adapter "
            "with rankfold, and report its configuration."
        )


def _obstacle(base: Base | None, texts: Texts | str) -> str:
    if isinstance(texts, str):
        return texts
    if base is None:
        return "the base model is not at hand; name it with --model."
    return "llama.cpp, which reads the file, was not run."


def _root_mean_square(values: Tensor) -> float:
    return frobenius(values.double()) / math.sqrt(values.numel())


def hashes(folder: Path) -> dict[str, str]:
    """Return the hash of each file of an export but its certificate."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != NAME)
    return {path.relative_to(folder).as_posix(): sha256_of_file(path) for path in files}


def versions() -> dict[str, str]:
    """Return the versions of the programs that take part in an export."""
    return {name: version(name) for name in ("rankfold", "torch", "peft", "transformers", "safetensors")}
