"""LoRA of Kohya's trainer: a file that ComfyUI and A1111 read, for Stable Diffusion 1.5, 2 and XL."""

from collections.abc import Mapping
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from rankfold.errors import SpecError
from rankfold.export.base import AdapterBase
from rankfold.export.certificate import LogitsError
from rankfold.export.formats._pipeline import PipelineLora
from rankfold.export.layers import FoldedAdapter
from rankfold.export.logits import Texts

_PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te_", "text_encoder_2": "lora_te2_"}
_FIRST_OF_TWO = "lora_te1_"


@final
class KohyaLora(PipelineLora):
    """A folder with one file; the names of layers have underscores, and each layer has its `alpha`."""

    name = "kohya"
    file_name = "kohya_lora.safetensors"
    sides = ("lora_down.weight", "lora_up.weight")

    @property
    def prefixes(self) -> frozenset[str]:
        """All beginnings that names of tensors may have."""
        return frozenset({*_PREFIXES.values(), _FIRST_OF_TWO})

    def prefix(self, component: str, base: AdapterBase | None) -> str:
        """Return Kohya's name of a component; that of a text encoder depends on whether it is one of two.

        Raises:
            SpecError: If Kohya's names of the denoiser's layers are those of another code.
        """
        if component not in _PREFIXES:
            raise SpecError(
                f"files for kohya hold adapters of a UNet and its text encoders, and this one is of a "
                f"{component}; export it --to diffusers, which ComfyUI reads too."
            )
        is_first_of_two = base is not None and "text_encoder_2" in base.siblings()
        return _FIRST_OF_TWO if component == "text_encoder" and is_first_of_two else _PREFIXES[component]

    def layer_key(self, name: str) -> str:
        """Return a layer's name with underscores in place of dots."""
        return name.replace(".", "_")

    def metadata(
        self, adapter: FoldedAdapter, layer_keys: Mapping[str, str]
    ) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return alphas that equal the ranks, so that the scaling is 1, and the metadata that A1111 shows."""
        ranks = {name: update.file_rank for name, update in adapter.updates.items()}
        alphas = {f"{key}.alpha": torch.tensor(float(ranks[name])) for name, key in layer_keys.items()}
        most = str(max(ranks.values()))
        header = {"ss_network_module": "networks.lora", "ss_network_dim": most, "ss_network_alpha": most}
        return alphas, header

    def compare_logits(self, base: AdapterBase | None, texts: Texts | str, folder: Path) -> LogitsError | str:
        """Return the difference between the outputs of export and adapter, or why there is none."""
        if base is not None and base.adapter.component in _PREFIXES.keys() - {"unet"}:
            return "diffusers reads Kohya's names in text encoders in part only; their layers were measured."
        return super().compare_logits(base, texts, folder)


FORMAT = KohyaLora()
