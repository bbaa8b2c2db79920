"""The tokenizer of a base model: loaded without running code of its files, and checked against the model."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from transformers import AutoTokenizer, PreTrainedConfig
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from rankfold.errors import SpecError

logger = logging.getLogger("rankfold.models")

_LEAST_VOCABULARY = 0.5
"""Embeddings are padded to round numbers of rows, but not to twice their tokens."""


def load_tokenizer(location: str, name: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a folder or hub id.

    Args:
        location: For `from_pretrained`.
        name: The model as the user wrote it, for messages.
        trust_remote_code: Whether code that comes with the files may run.

    Raises:
        SpecError: If its files are missing.
        OSError: If they cannot be read; so do other errors of transformers.
    """
    folder = Path(location)
    try:
        tokenizer = cast(
            PreTrainedTokenizerBase,
            cast(Any, AutoTokenizer).from_pretrained(location, trust_remote_code=trust_remote_code),
        )
    except (OSError, ValueError) as error:
        # Where the class is not known, these are the files that nearly every tokenizer has.
        pair = {"vocab_file": "vocab.json", "merges_file": "merges.txt"}
        has_pair = any((folder / file).is_file() for file in pair.values())
        missing = _missing_files(folder, {"tokenizer_file": "tokenizer.json", **(pair if has_pair else {})})
        if missing and folder.is_dir() and "trust_remote_code" not in str(error):
            raise _missing_error(name, missing) from error
        raise
    # Without its files a class may make a tokenizer without words, to which every text is unknown.
    missing = _missing_files(folder, cast(Any, tokenizer).vocab_files_names)
    if folder.is_dir() and missing:
        raise _missing_error(name, missing)
    return tokenizer


def _missing_files(folder: Path, names: Mapping[str, str]) -> str:
    """Return in words the files of a vocabulary that a folder lacks; empty if it has enough."""
    present = {role for role, name in names.items() if (folder / name).is_file()}
    halves = [role for role in ("vocab_file", "merges_file") if role in names]
    if "tokenizer_file" in present or not names:
        return ""
    if len(halves) > 1 and len(present.intersection(halves)) == 1:
        return next(names[role] for role in halves if role not in present)
    if present or any(file.suffix in (".model", ".spm", ".tiktoken") for file in folder.glob("*")):
        return ""
    return " or ".join(dict.fromkeys([names.get("tokenizer_file", "tokenizer.json"), *names.values()]))


def _missing_error(name: str, files: str) -> SpecError:
    return SpecError(
        f"the model '{name}' lacks its tokenizer's file {files}; copy it from where the model is from, or "
        "write it with the tokenizer's `save_pretrained`."
    )


def check_vocabulary(tokenizer: Any, config: PreTrainedConfig, name: str) -> None:
    """Check that a tokenizer's vocabulary is that of the model.

    Raises:
        SpecError: If it has more tokens than the model's embedding, or far fewer.
    """
    rows = getattr(cast(Any, config).get_text_config(), "vocab_size", None)
    tokens: int | None = getattr(tokenizer, "vocab_size", None)
    if not isinstance(rows, int) or not isinstance(tokens, int) or tokens == 0:
        return
    if tokens > rows or len(tokenizer) < _LEAST_VOCABULARY * rows:
        raise SpecError(
            f"the tokenizer of '{name}' has {tokens:,} tokens, but the model has {rows:,}; they do not "
            "belong together: copy the tokenizer's files from where the model is from."
        )


def set_padding(tokenizer: Any, config: PreTrainedConfig, name: str) -> None:
    """Give a tokenizer without padding token, or with one that the model does not have, another of its own.

    Raises:
        SpecError: If it has no special token at all.
    """
    rows = getattr(cast(Any, config).get_text_config(), "vocab_size", None)
    is_known = tokenizer.pad_token is not None and not (
        isinstance(rows, int) and tokenizer.pad_token_id >= rows
    )
    if not is_known:
        # The mask says what is padding, so that any token will do.
        token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.bos_token
        if token is None:
            raise SpecError(
                f"the tokenizer of '{name}' has no padding token, and no other special token to pad with; "
                "set its `pad_token`, and save it into the model's folder."
            )
        tokenizer.pad_token = token
    cast(Any, config).pad_token_id = tokenizer.pad_token_id


def unknown_share(tokenizer: Any, token_ids: Iterable[Sequence[int]]) -> float:
    """Return the share of tokens that the tokenizer does not know, without special tokens; 0 for no token."""
    unknown: int | None = tokenizer.unk_token_id
    special = {token for token in tokenizer.all_special_ids if token != unknown}
    if unknown is None or unknown in (tokenizer.eos_token_id, tokenizer.pad_token_id):
        return 0.0
    words = [token for ids in token_ids for token in ids if token not in special]
    return words.count(unknown) / len(words) if words else 0.0
