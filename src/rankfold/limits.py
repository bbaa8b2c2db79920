"""Limits on numbers that come from files and options, checked before memory or time is taken for them.

Each is far above what any published adapter or model has. `docs/reference/files.md` lists them.
"""

from collections.abc import Iterator, Mapping
from typing import cast

from rankfold.errors import SpecError

MOST_RANK = 65_536
"""The largest rank, and the largest inner width of a factor or a core."""

MOST_MAGNITUDE = 1_000_000
"""The largest alpha and standard deviation of initial values; one over it is the smallest."""

MOST_HEADS = 4_096
"""The most heads of an adapter."""

MOST_ROUNDS = 64
"""The most rounds in which a recurrent router decides."""

MOST_LAYERS = 100_000
"""The most layers of one adapter: a few bytes of a file could name billions."""

MOST_NAMES = 20_000
"""The most names in one list of layers, parameters or patterns."""

MOST_LETTERS = 100_000
"""The longest regular expression."""

MATCH_SECONDS = 10
"""The most seconds in which a regular expression has to be done with the names of a model."""

MOST_MADE = 1 << 27
"""The most values of a factor beyond those in its file: a seed, or a relay, stands for any number."""

MOST_MADE_IN_ALL = 1 << 30
"""The same of all factors of an adapter. A model with 70 billion weights has fewer at rank 64."""

MOST_BLOCKS = 4_096
"""The most blocks of a base model."""

MOST_FEATURES = 1 << 20
"""The largest width of a base model: of hidden states, of an MLP, of a head."""

MOST_WORDS = 1 << 24
"""The largest vocabulary of a base model, and the longest text that it is made for."""

MOST_EXPERTS = 65_536
"""The most experts, attention heads, channels or groups of a base model."""


MOST_PIXELS = 1 << 27
"""The most pixels of a picture: 400 MB as RGB."""

MOST_PICTURE_BYTES = 1 << 28
"""The most bytes of the file of a picture."""


def check_most(name: str, value: int, most: int) -> None:
    """Check that a number is within its limit.

    Raises:
        SpecError: If it is not.
    """
    if value > most:
        raise SpecError(f"{name}={value} is more than {most}, which is the most that is allowed; give less.")


def check_magnitude(name: str, value: float) -> None:
    """Check that a factor on values neither drowns nor hides them in single precision.

    Raises:
        SpecError: If it is too far from 1, whatever its sign.
    """
    if not 1 / MOST_MAGNITUDE <= abs(value) <= MOST_MAGNITUDE:
        raise SpecError(
            f"{name}={value} cannot be trained: in size it may be {1 / MOST_MAGNITUDE:g} to "
            f"{MOST_MAGNITUDE}; give a number nearer to 1."
        )


# How the names of numbers in configurations of transformers end; the first that fits decides.
_MODEL_LIMITS = (
    (("layers", "n_layer", "num_blocks"), MOST_BLOCKS),
    (("vocab_size", "position_embeddings", "n_positions", "n_ctx", "sequence_length"), MOST_WORDS),
    (("hidden_size", "intermediate_size", "embedding_size", "n_embd", "n_inner"), MOST_FEATURES),
    (("_dim", "dim", "d_model", "d_ff", "d_kv"), MOST_FEATURES),
    (("heads", "experts", "channels", "groups", "num_labels"), MOST_EXPERTS),
)


def model_excess(values: Mapping[str, object]) -> str | None:
    """Return the first number of a model's configuration that is beyond its limit, as a clause; None if none.

    Args:
        values: The configuration, with those of its parts inside it.
    """
    for name, value in _numbers(values):
        for endings, most in _MODEL_LIMITS:
            if name.endswith(endings):
                if value > most:
                    return f"its '{name}' is {value}, and {most} is the most that is allowed"
                break
    return None


def _numbers(values: Mapping[str, object]) -> Iterator[tuple[str, int | float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(cast("Mapping[str, object]", value))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, value
