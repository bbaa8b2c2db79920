"""What each tensor of a saved adapter is: learned, frozen, the same as another, or made from a seed."""

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal, final

from torch import Tensor

from rankfold.store.finders import Search
from rankfold.store.peft_config import SavedConfig, read_config
from rankfold.store.regenerable import Proof, is_frozen, prove
from rankfold.store.saved import CONFIG_NAME
from rankfold.store.tensors import bytes_of
from rankfold.store.weights_file import WeightsFile, read_weights

TensorKind = Literal["factor", "head", "frozen", "regenerable", "duplicate"]

_LEAVES = ("weight", "bias")
_BASE_WEIGHT = ".base_layer.weight"
_OUR_PREFIX = "rankfold_"


@final
@dataclass(frozen=True, slots=True, eq=False)
class Contents:
    """A weights file that is understood.

    Args:
        file: The tensors.
        config: What the adapter's configuration says of them.
        firsts: For each tensor, the place of the first one with the same bytes, which may be its own.
        proofs: What was made again from a seed, bit for bit.
    """

    file: WeightsFile
    config: SavedConfig
    firsts: tuple[int, ...]
    proofs: tuple[Proof, ...]

    def kinds(self) -> list[TensorKind]:
        """Return what each tensor is, in the order of the file."""
        made = {place for proof in self.proofs for place in proof.recipe.tensors}
        kinds: list[TensorKind] = []
        for place, entry in enumerate(self.file.entries):
            if place in made:
                kinds.append("regenerable")
            elif self.firsts[place] != place and not _is_constant(self.file.tensor(place)):
                kinds.append("duplicate")
            else:
                kinds.append(kind_of(entry.name, self.config))
        return kinds


def read_contents(path: Path) -> Contents:
    """Read an adapter and find out what its tensors are.

    Args:
        path: A PEFT adapter directory or a `.safetensors` file.

    Raises:
        AdapterFileError: If a file is damaged, a pickle, or there is none.
        SpecError: If the path does not exist.
    """
    file = read_weights(path)
    return understand(file, read_config(file.path.with_name(CONFIG_NAME)))


def understand(file: WeightsFile, config: SavedConfig) -> Contents:
    """Find out what the tensors of an adapter are."""
    firsts = _firsts(file)
    return Contents(file, config, firsts, prove(Search(file, config, frozenset(firsts))))


def kind_of(name: str, config: SavedConfig) -> TensorKind:
    """Return what a tensor is, as far as its name says."""
    if _head_of(name, config):
        return "head"
    # PEFT saves the base model's embeddings beside adapters on them.
    return "frozen" if is_frozen(config.peft_type, name) or name.endswith(_BASE_WEIGHT) else "factor"


def role_of(name: str, config: SavedConfig) -> str:
    """Return what a tensor does in its layer, from the place in the model that its name spells."""
    if head := _head_of(name, config):
        return head
    parts = [part for part in name.split(".") if not part.isdigit()]
    while len(parts) > 1 and parts[-1] in _LEAVES:
        parts.pop()
    prefixes = (_OUR_PREFIX, f"{config.peft_type.lower() or _OUR_PREFIX}_")
    begin = next((place for place, part in enumerate(parts) if part.startswith(prefixes)), len(parts) - 1)
    return ".".join(parts[begin:]).removeprefix(_OUR_PREFIX)


def _head_of(name: str, config: SavedConfig) -> str | None:
    parts = name.split(".")
    return next((head for head in config.modules_to_save or () if head in parts), None)


def _firsts(file: WeightsFile) -> tuple[int, ...]:
    """Return for each tensor the place of the first with the same bytes, type and shape."""
    seen: dict[tuple[str, tuple[int, ...], bytes], int] = {}
    return tuple(
        seen.setdefault((entry.dtype, entry.shape, sha256(bytes_of(file.tensor(place))).digest()), place)
        for place, entry in enumerate(file.entries)
    )


def _is_constant(tensor: Tensor) -> bool:
    """Return whether all numbers are equal: factors that begin as zeros are equal without being copies."""
    flat = tensor.reshape(-1)
    return bool((flat == flat[:1]).all())
