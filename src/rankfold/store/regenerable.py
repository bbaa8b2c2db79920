"""Which tensors of an adapter can be made again, and the proof: they are made, and every bit is compared.

The formulas in `draws` and `places` are PEFT 0.21's. Nothing here trusts them, nor the seed that the
configuration names: a tensor for which no recipe gives exactly its bytes is not regenerable.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from pydantic import with_config
from torch import Tensor

from rankfold.store.draws import FLOATS, STRICT, Drawn
from rankfold.store.finders import FINDERS, Recipe, Search
from rankfold.store.tensors import DTYPES, TensorEntry, bytes_of
from rankfold.store.weights_file import WeightsFile

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
@with_config(STRICT)
@dataclass(frozen=True, slots=True)
class Proof:
    """A recipe that gave exactly the bytes of its tensors.

    Args:
        recipe: What was followed.
        through: The type that its numbers went through before they were kept, which is the base model's.
        sha256: Of the bytes of its tensors, one after another.
    """

    recipe: Recipe
    through: Drawn
    sha256: str

    def make(self, entries: Sequence[TensorEntry]) -> list[Tensor]:
        """Return the tensors, as this machine makes them.

        Args:
            entries: What the tensors are, in the order of the recipe.

        Raises:
            ValueError: If the recipe cannot be followed, or does not fit the tensors.
        """
        try:
            return _fit(self.recipe.make(entries), entries, self.through)
        except _FAILURES as error:
            raise ValueError(f"its recipe '{self.recipe.kind}' cannot be followed: {error}") from error


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
            if proven.isdisjoint(recipe.tensors) and (proof := _proof(search.file, recipe)):
                proofs.append(proof)
                proven.update(recipe.tensors)
    except _FAILURES:
        # What cannot be drawn cannot be drawn again.
        pass
    return tuple(proofs)


def digest(tensors: Sequence[Tensor]) -> str:
    """Return the hash that a proof keeps."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(bytes_of(tensor))
    return found.hexdigest()


def _proof(file: WeightsFile, recipe: Recipe) -> Proof | None:
    """Return the proof of a recipe, if what it makes is what the file has, bit for bit."""
    entries = [file.entries[place] for place in recipe.tensors]
    wanted = digest([file.tensor(place) for place in recipe.tensors])
    made = recipe.make(entries)
    for through in FLOATS:
        if digest(_fit(made, entries, through)) == wanted:
            return Proof(recipe, through, wanted)
    return None


def _fit(made: Sequence[Tensor], entries: Sequence[TensorEntry], through: Drawn) -> list[Tensor]:
    """Return tensors in the types and shapes that they have in a file."""
    rounded = (tensor.to(FLOATS[through]) if tensor.is_floating_point() else tensor for tensor in made)
    return [
        tensor.reshape(entry.shape).to(DTYPES[entry.dtype])
        for tensor, entry in zip(rounded, entries, strict=True)
    ]
