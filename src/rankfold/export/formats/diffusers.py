"""LoRA of diffusers: a folder that `pipeline.load_lora_weights` takes."""

import json
from collections.abc import Mapping
from typing import final

from torch import Tensor

from rankfold.export.base import AdapterBase
from rankfold.export.denoising import COMPONENTS, DENOISERS
from rankfold.export.formats._pipeline import PipelineLora
from rankfold.export.formats.plain_lora import lora_config
from rankfold.export.layers import FoldedAdapter

_CONFIG_FIELDS = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules")


@final
class DiffusersLora(PipelineLora):
    """A folder with `pytorch_lora_weights.safetensors`; names begin with the component, such as `unet.`."""

    name = "diffusers"
    file_name = "pytorch_lora_weights.safetensors"

    @property
    def prefixes(self) -> frozenset[str]:
        """All beginnings that names of tensors may have."""
        return frozenset(f"{component}." for component in COMPONENTS)

    def prefix(self, component: str, base: AdapterBase | None) -> str:
        """Return the component's name."""
        return f"{component}."

    def metadata(
        self, adapter: FoldedAdapter, layer_keys: Mapping[str, str]
    ) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return PEFT's configuration as metadata: without it some releases guess the scaling of a rank.

        Names of layers in a text encoder depend on the release of transformers, so it has none.
        """
        if adapter.component not in DENOISERS:
            return {}, {}
        config = lora_config(adapter)
        values = {f"{adapter.component}.{name}": config[name] for name in _CONFIG_FIELDS}
        return {}, {"lora_adapter_metadata": json.dumps(values, sort_keys=True)}


FORMAT = DiffusersLora()
