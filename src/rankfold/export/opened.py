"""A saved rankfold adapter, opened: its configuration and its tensors, without a model."""

from dataclasses import dataclass
from pathlib import Path
from typing import final

from torch import Tensor

from rankfold.errors import AdapterFileError
from rankfold.files import sha256_of_file
from rankfold.peft_plugin.config import RankfoldConfig
from rankfold.store import saved as store_saved
from rankfold.store.adapter import CONFIG_NAME, WEIGHTS_NAME
from rankfold.store.loading import peft_config

_HEADS = ("classifier", "score")


@final
@dataclass(frozen=True, slots=True)
class OpenedAdapter:
    """An adapter as it lies in its folder.

    Args:
        folder: The folder.
        config: Its configuration.
        state: Its tensors, by the names of PEFT's files.
    """

    folder: Path
    config: RankfoldConfig
    state: dict[str, Tensor]

    def sha256(self) -> dict[str, str]:
        """Return the hash of each file that makes the adapter."""
        return {name: sha256_of_file(self.folder / name) for name in (CONFIG_NAME, WEIGHTS_NAME)}

    @property
    def labels(self) -> int | None:
        """Outputs of the classification head that was trained with it, if there is one."""
        outputs: int | None = None  # of the last layer, where the head has several
        for key, tensor in self.state.items():
            place = key.split(".")
            is_adapter = any(part.startswith("rankfold_") for part in place)
            if place[-1] == "weight" and any(head in place for head in _HEADS) and not is_adapter:
                outputs = tensor.shape[0]
        return outputs


def open_adapter(folder: Path) -> OpenedAdapter:
    """Read a saved adapter.

    Raises:
        AdapterFileError: If the folder is no adapter, a file is damaged, or the adapter is of another method.
    """
    saved = store_saved.open_adapter(folder)
    config = peft_config(saved)
    if not isinstance(config, RankfoldConfig):
        method = getattr(config.peft_type, "value", config.peft_type)
        remedy = (
            "it is plain LoRA already, so use it as it is"
            if method == "LORA"
            else "convert it with PEFT's own save_as_lora, which approximates it"
        )
        raise AdapterFileError(
            f"'{folder}' is an adapter of PEFT's method {method}, not of rankfold; {remedy}."
        )
    return OpenedAdapter(folder, config, dict(saved.tensors))
