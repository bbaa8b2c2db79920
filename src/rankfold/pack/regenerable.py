"""Which tensors of an adapter can be made again, and the proof: they are made, and every bit is compared.

The formulas in `draws` and `places` are PEFT 0.21's. Nothing here trusts them, nor the seed that the
configuration names: a tensor for which no recipe gives exactly its bytes is not regenerable.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from torch import Tensor

from rankfold.pack.finders import FINDERS, Recipe, Search
from rankfold.pack.tensors import DTYPES, TensorEntry, bytes_of
from rankfold.pack.weights_file import WeightsFile

# What sizes that do not fit, or a seed that no generator takes, come to.
_FAILURES = (ValueError, RuntimeError, LookupError, ArithmeticError, MemoryError)

# What a method never trains: from the base model's weights, so that the file must have it, or from a seed.
_FROZEN = {
    "ADAMSS": ("adamss_newB",),
    "DELORA": ("delora_w_norm",),
    "FROD": ("frod_V", "frod_s_size", "frod_s_indices"),
    "PVERA": ("pvera_A", "pvera_B"),
    "RANDLORA": ("randlora_A", "randlora_B"),
    "SHIRA": ("shira_indices",),
    "TINYLORA": ("tinylora_A", "tinylora_B", "tinylora_P"),
    "UNILORA": ("unilora_indices_A", "unilora_indices_B", "unilora_scales_A", "unilora_scales_B"),
    "VERA": ("vera_A", "vera_B"),
}


@final
@dataclass(frozen=True, slots=True)
class Proof:
    """A recipe that gave exactly the bytes of its tensors.

    Args:
        recipe: What was followed.
        sha256: Of the bytes of its tensors, one after another.
    """

    recipe: Recipe
    sha256: str


def is_frozen(peft_type: str, name: str) -> bool:
    """Return whether a tensor of this name is one that the method never trains."""
    return not set(_FROZEN.get(peft_type, ())).isdisjoint(name.split("."))


def prove(search: Search) -> tuple[Proof, ...]:
    """Find the tensors that follow from a seed, and prove it by making them again."""
    find = FINDERS.get(search.config.peft_type)
    proofs: list[Proof] = []
    proven: set[int] = set()
    if find is None:
        return ()
    try:
        for recipe in find(search):
            if proven.isdisjoint(recipe.tensors) and (sha256 := _proof(search.file, recipe)):
                proofs.append(Proof(recipe, sha256))
                proven.update(recipe.tensors)
    except _FAILURES:
        # What cannot be drawn cannot be drawn again.
        pass
    return tuple(proofs)


def make(recipe: Recipe, entries: Sequence[TensorEntry]) -> list[Tensor]:
    """Return a recipe's tensors, as this machine makes them.

    Args:
        recipe: What to follow.
        entries: What the tensors are, in its order.

    Raises:
        ValueError: If it cannot be followed, or does not fit the tensors.
    """
    try:
        return [
            values.reshape(entry.shape).to(DTYPES[entry.dtype])
            for entry, values in zip(entries, recipe.make(entries), strict=True)
        ]
    except _FAILURES as error:
        raise ValueError(f"its recipe '{recipe.kind}' cannot be followed: {error}") from error


def digest(tensors: Sequence[Tensor]) -> str:
    """Return the hash that a proof keeps."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(bytes_of(tensor))
    return found.hexdigest()


def _proof(file: WeightsFile, recipe: Recipe) -> str | None:
    """Return the hash of what a recipe makes if that is what the file has, bit for bit."""
    made = make(recipe, [file.entries[place] for place in recipe.tensors])
    wanted = digest([file.tensor(place) for place in recipe.tensors])
    return wanted if digest(made) == wanted else None
