"""LoRA files for pipelines of image generation: PEFT's tensors under the names that their programs read."""

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import torch as safetensors_torch
from torch import Tensor, nn

from rankfold.adapter.geometry import Conv2d, Geometry, Linear
from rankfold.errors import NotExactError, SpecError
from rankfold.export.base import AdapterBase
from rankfold.export.denoising import load_exported_lora
from rankfold.export.fold import LowRankUpdate
from rankfold.export.formats import LayerFormat
from rankfold.export.formats.plain_lora import load_tensors, lora_tensors, read_lora_tensors
from rankfold.export.layers import PREFIX, FoldedAdapter
from rankfold.files import write_whole

_SIDES = ("lora_A.weight", "lora_B.weight")
_TEXT_MODEL = "text_model."  # a module that newer releases of transformers left out


class PipelineLora(LayerFormat):
    """One file with the low-rank matrices of a component of a pipeline: its denoiser or a text encoder.

    Attributes:
        file_name: The file's name.
        sides: The names of the down and of the up matrix of a layer.
    """

    file_name: str
    sides: tuple[str, str] = _SIDES

    @abstractmethod
    def prefix(self, component: str, base: AdapterBase | None) -> str:
        """Return the beginning of the names of a component's tensors.

        Raises:
            SpecError: If the format has no names for it.
        """

    def layer_key(self, name: str) -> str:
        """Return a layer's name in the file, behind the prefix."""
        return name

    def metadata(
        self, adapter: FoldedAdapter, layer_keys: Mapping[str, str]
    ) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return the tensors beside the matrices, and the file's metadata."""
        return {}, {}

    def write_adapter(
        self, adapter: FoldedAdapter, base: AdapterBase | None, folder: Path, dtype: torch.dtype
    ) -> None:
        """Write the file.

        Raises:
            NotExactError: If the program reads no layer of this type or no modules that are saved whole, or
                the dtype cannot hold a value.
            SpecError: If the adapter is for no component that the format has names for.
        """
        if adapter.component is None:
            raise SpecError(
                f"an export to '{self.name}' takes an adapter of a model that diffusers loads LoRA onto, "
                "and this one is for another; export it --to lora."
            )
        _check_layers(adapter, self.name)
        prefix = self.prefix(adapter.component, base)
        is_text = adapter.component.startswith("text_encoder")
        keys = {
            name: f"{prefix}{self.layer_key(_text_layer_name(name) if is_text else name)}"
            for name in adapter.updates
        }
        if len(set(keys.values())) < len(keys):
            raise NotExactError(
                f"two layers have one name in a file for {self.name}; adapt one of them only."
            )
        tensors = lora_tensors(adapter.updates, dtype)
        extra_tensors, header = self.metadata(adapter, keys)
        renamed = {
            f"{key}.{side}": tensors[f"{PREFIX}{name}.{peft_side}"]
            for name, key in keys.items()
            for side, peft_side in zip(self.sides, _SIDES, strict=True)
        }
        content = safetensors_torch.save(renamed | extra_tensors, {"format": "pt", **header})
        write_whole(folder / self.file_name, content)

    def read_updates(
        self, geometries: Mapping[str, Geometry], base: AdapterBase | None, folder: Path
    ) -> Mapping[str, LowRankUpdate]:
        """Return the updates in the file.

        Raises:
            AdapterFileError: If the file lacks a layer, or cannot be read.
        """
        tensors = load_tensors(folder / self.file_name)
        names = {
            f"{PREFIX}{name}.{peft_side}": f"{self.layer_key(name)}.{side}"
            for name in geometries
            for side, peft_side in zip(self.sides, _SIDES, strict=True)
        }
        starts = {start + inner for start in self.prefixes for inner in ("", self.layer_key(_TEXT_MODEL))}
        prefix = next((start for start in starts for end in names.values() if start + end in tensors), "")
        renamed = {key: tensors[prefix + end] for key, end in names.items() if prefix + end in tensors}
        return read_lora_tensors(renamed, geometries)

    def load(self, base: AdapterBase, folder: Path) -> nn.Module:
        """Return the base model with the LoRA, by diffusers alone."""
        component = base.adapter.component
        assert component is not None, "an export of another model is refused"
        return load_exported_lora(base.load(), component, folder / self.file_name)

    @property
    @abstractmethod
    def prefixes(self) -> frozenset[str]:
        """All beginnings that names of tensors may have."""


def _text_layer_name(name: str) -> str:
    """Return the name of a layer of a text encoder as programs know it, whatever transformers calls it."""
    return f"{_TEXT_MODEL}{name}" if name.startswith("encoder.") else name


def _check_layers(adapter: FoldedAdapter, name: str) -> None:
    for layer, update in adapter.updates.items():
        if not isinstance(update.geometry, Linear | Conv2d):
            raise NotExactError(
                f"programs that read files for {name} adapt linear layers and convolutions, and '{layer}' is "
                "neither; leave it out of target_modules."
            )
    if adapter.tensors:
        raise NotExactError(
            f"files for {name} hold no modules that are trained whole, such as '{min(adapter.tensors)}'; "
            "train without modules_to_save."
        )
