"""The weights file of a saved adapter, found and read. A pickle is never opened."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

from torch import Tensor

from rankfold.errors import AdapterFileError, SpecError
from rankfold.store.container import naming
from rankfold.store.saved import WEIGHTS_NAME
from rankfold.store.tensors import TensorEntry
from rankfold.store.weights import Layout, split

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@final
@dataclass(frozen=True, slots=True, eq=False)
class WeightsFile:
    """A safetensors file in memory.

    Args:
        path: Where it is.
        layout: How it spells its tensors.
        tensors: Their values by name.
    """

    path: Path
    layout: Layout
    tensors: Mapping[str, Tensor]

    @property
    def entries(self) -> tuple[TensorEntry, ...]:
        """What it holds, in the order of the values."""
        return self.layout.entries

    def tensor(self, place: int) -> Tensor:
        """Return the tensor at a place in the order of the values."""
        return self.tensors[self.entries[place].name]


def read_weights(path: Path) -> WeightsFile:
    """Read the weights file of an adapter.

    Args:
        path: A PEFT adapter directory or a `.safetensors` file.

    Raises:
        AdapterFileError: If it is damaged, a pickle or a device, or if a directory has none or several.
        SpecError: If the path does not exist.
    """
    file = _find(path)
    with naming(file):
        return WeightsFile(file, *split(file.read_bytes()))


def _find(path: Path) -> Path:
    if not path.exists():
        raise SpecError(
            f"there is no folder or file '{path}'; give an adapter directory or a .safetensors file."
        )
    if path.is_file():
        _refuse_pickle([path])
        return path
    if not path.is_dir():
        raise AdapterFileError(
            f"'{path}' is neither a file nor a directory; give an adapter directory or a .safetensors file."
        )
    named = path / WEIGHTS_NAME
    found = [named] if named.is_file() else sorted(path.glob("*.safetensors"))
    if not found:
        _refuse_pickle(sorted(path.iterdir()))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise AdapterFileError(
            f"'{path}' should hold one .safetensors file but has: {names}; name the file itself."
        )
    return found[0]


def _refuse_pickle(files: list[Path]) -> None:
    for file in files:
        if file.suffix in _PICKLES:
            raise AdapterFileError(
                f"'{file}' is a pickle, which can run code when it is opened, so it is not read; "
                "save the adapter again as safetensors."
            )
