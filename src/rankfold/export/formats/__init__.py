"""Export formats: a file each, found without being listed anywhere.

A file of this package has one `FORMAT`; other packages add theirs through the entry point group
`rankfold.export_formats`. Most are a `LayerFormat`, which writes and reads the low-rank update of each layer.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import cast

import torch
from torch import nn

from rankfold.adapter.geometry import Geometry
from rankfold.errors import SpecError, unknown_name
from rankfold.export.base import AdapterBase
from rankfold.export.certificate import LayerError, LogitsError, Method
from rankfold.export.fold import LowRankUpdate, relative_error
from rankfold.export.layers import ExportSource, FoldedAdapter
from rankfold.export.logits import Texts, compare_logits
from rankfold.plugins import discover_plugins

DEFAULT_FORMAT = "lora"

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""The dtypes to choose from; a merged model may have another one, that of its base."""


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype in certificates and messages."""
    names = {value: name for name, value in DTYPES.items()}
    return names.get(dtype, str(dtype).removeprefix("torch."))


class ExportFormat(ABC):
    """One format that a saved adapter is exported to.

    Attributes:
        name: The value of `--to`.
        method: How an exact export is made, as its certificate states it.
        has_rank: Whether the files hold low-rank matrices, so that the adapter can be compressed.
        logits_skipped: The reason that logits are not compared, where `load` has no model to return.
    """

    name: str
    method: Method = "folded"
    has_rank: bool = True
    logits_skipped: str | None = None

    def default_dtype(self, base: AdapterBase | None) -> torch.dtype:
        """Return the dtype of the written weights where none was asked for.

        Args:
            base: The base model, if it is at hand.

        Raises:
            SpecError: If the format cannot be written for this base.
        """
        return torch.float32

    @abstractmethod
    def write(self, source: ExportSource, folder: Path, dtype: torch.dtype) -> tuple[LayerError, ...]:
        """Write the files into an empty folder, and return the error of every layer in them.

        Raises:
            NotExactError: If the format cannot hold the adapter, or the dtype its values.
            AdapterFileError: If the adapter is damaged, or does not fit the base model.
            SpecError: If the base model or a package is needed and not at hand.
        """

    @abstractmethod
    def measure(self, source: ExportSource, folder: Path, dtype: torch.dtype) -> tuple[LayerError, ...]:
        """Return the error of every layer of an earlier export again.

        Raises:
            AdapterFileError: If the files lack a layer, or the adapter is damaged.
            SpecError: If the base model or a package is needed and not at hand.
        """

    @abstractmethod
    def load(self, base: AdapterBase, folder: Path) -> nn.Module:
        """Return the base model with the export, as programs load it that do not know rankfold.

        Raises:
            SpecError: If the base model cannot be loaded for the adapter's task.
        """

    def compare_logits(self, base: AdapterBase | None, texts: Texts | str, folder: Path) -> LogitsError | str:
        """Return the difference between the logits of the export and of the adapter, or why there is none.

        Args:
            base: The base model, if it is at hand.
            texts: The texts, or the reason that there are none.
            folder: The export.

        Raises:
            AdapterFileError: If the adapter does not fit the model.
        """
        if base is None:
            return "the base model is not at hand; name it with --model."
        if self.logits_skipped is not None:
            return self.logits_skipped
        return compare_logits(base, texts, lambda: self.load(base, folder))


class LayerFormat(ExportFormat):
    """A format whose files hold the low-rank update of each layer."""

    @abstractmethod
    def write_adapter(
        self, adapter: FoldedAdapter, base: AdapterBase | None, folder: Path, dtype: torch.dtype
    ) -> None:
        """Write an adapter's updates, and the tensors beside them.

        Args:
            adapter: The adapter as plain LoRA, in float64.
            base: The base model, if it is at hand.
            folder: An empty folder.
            dtype: The dtype of the written updates.

        Raises:
            NotExactError: If the format cannot hold the adapter, or the dtype its values.
            SpecError: If the base model or a package is needed and not at hand.
        """

    @abstractmethod
    def read_updates(
        self, geometries: Mapping[str, Geometry], base: AdapterBase | None, folder: Path
    ) -> Mapping[str, LowRankUpdate]:
        """Return the updates that the files hold.

        Args:
            geometries: The adapted layers by name.
            base: The base model, if it is at hand.
            folder: The export.

        Raises:
            AdapterFileError: If the files lack a layer, or cannot be read.
            SpecError: If the base model or a package is needed and not at hand.
        """

    def write(self, source: ExportSource, folder: Path, dtype: torch.dtype) -> tuple[LayerError, ...]:
        """Fold the adapter, write it, and measure the files against it."""
        adapter = source.fold()
        self.write_adapter(adapter, source.base, folder, dtype)
        return self._errors(adapter, source, folder)

    def measure(self, source: ExportSource, folder: Path, dtype: torch.dtype) -> tuple[LayerError, ...]:
        """Fold the adapter again, and measure the files against it."""
        return self._errors(source.fold(), source, folder)

    def _errors(self, adapter: FoldedAdapter, source: ExportSource, folder: Path) -> tuple[LayerError, ...]:
        geometries = {name: update.geometry for name, update in adapter.updates.items()}
        in_files = self.read_updates(geometries, source.base, folder)
        return tuple(
            LayerError(
                name,
                adapter.updates[name].file_rank,
                relative_error(adapter.updates[name].to(torch.float32), reference),
                relative_error(in_files[name], reference),
            )
            for name, reference in adapter.references.items()
        )


@cache
def discover_formats() -> Mapping[str, ExportFormat]:
    """Return every format by name: this package's files, then those of other packages.

    A format of another package that cannot be loaded is left out with a warning.

    Raises:
        SpecError: If two formats have one name.
    """
    formats = discover_plugins(__name__, "FORMAT", "rankfold.export_formats", "export format", _check)
    return cast("Mapping[str, ExportFormat]", formats)


def _check(value: object) -> None:
    if not isinstance(value, ExportFormat):
        raise SpecError(f"a {type(value).__name__} is no ExportFormat")


def find_format(name: str) -> ExportFormat:
    """Return the format of this name.

    Raises:
        SpecError: If there is none, with the nearest name.
    """
    if name not in discover_formats():
        raise unknown_name("export format", name, discover_formats())
    return discover_formats()[name]
