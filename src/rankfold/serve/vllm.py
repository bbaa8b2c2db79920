"""LoRA resolver for vLLM: fold an adapter of a store to a plain LoRA when a request names it.

vLLM finds `register` by its entry point and calls `resolve_lora` of the resolver. This file imports without
vLLM, and rankfold does not install it.
"""

import asyncio
import logging
import os
from importlib import import_module
from pathlib import Path
from typing import Any, cast, final

from peft import PeftType

from rankfold.errors import NotExactError, SpecError
from rankfold.export.formats.plain_lora import write_plain_lora
from rankfold.models.gguf import cache_dir, new_folder
from rankfold.peft_plugin.config import RankfoldConfig
from rankfold.store.adapter import SavedAdapter
from rankfold.store.loading import peft_config
from rankfold.store.store import AdapterStore

logger = logging.getLogger("rankfold.serve")

STORE_VARIABLE = "RANKFOLD_STORE"
RESOLVER_NAME = "rankfold store"

_ID_DIGITS = 15


def register() -> None:
    """Offer the store that the variable RANKFOLD_STORE names to vLLM; do nothing if it names none.

    Raises:
        StoreError: If there is no such store.
    """
    path = os.environ.get(STORE_VARIABLE)
    if path:
        resolver = StoreResolver(AdapterStore(path, "read"), cache_dir() / "vllm")
        import_module("vllm.lora.resolver").LoRAResolverRegistry.register_resolver(RESOLVER_NAME, resolver)


@final
class StoreResolver:
    """A LoRA resolver, as vLLM calls it, on a store.

    Args:
        store: Where the adapters are.
        folder: The cache of plain LoRAs, each under its digest, so that an adapter that was replaced in the
            store is folded and loaded anew.
    """

    def __init__(self, store: AdapterStore, folder: Path) -> None:
        self._store = store
        self._folder = folder

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> Any:
        """Return vLLM's request for an adapter; None if there is none of this name for this base model.

        Args:
            base_model_name: As vLLM was started with it, and as the adapter's configuration must have it.
            lora_name: The name in the store.

        Raises:
            NotExactError: If no plain LoRA equals the adapter; vLLM logs the reason.
            AdapterFileError: If it is damaged.
            StoreError: If the store cannot be read.
        """
        # Folding takes the processor, and vLLM answers others meanwhile.
        match = await asyncio.to_thread(self._find, base_model_name, lora_name)
        if match is None:
            return None
        folder, number = match
        request = cast(Any, import_module("vllm.lora.request")).LoRARequest
        return request(lora_name=lora_name, lora_int_id=number, lora_path=str(folder))

    def _find(self, base: str, name: str) -> tuple[Path, int] | None:
        """Return the folder of an adapter as plain LoRA, and a number that no other adapter has."""
        try:
            record = self._store.record(name)
        except SpecError:
            return None
        if record.base != base:
            logger.warning("adapter '%s' is for '%s', not for '%s'", name, record.base, base)
            return None
        folder = self._folder / record.digest
        if not folder.is_dir():
            _write(name, self._store.get(name), folder)
        return folder, 1 + int(record.digest[:_ID_DIGITS], 16)


def _write(name: str, adapter: SavedAdapter, folder: Path) -> None:
    """Write an adapter as plain LoRA, whole or not at all, even if another process writes it too."""
    config = peft_config(adapter)
    with new_folder(folder) as work:
        if isinstance(config, RankfoldConfig):
            write_plain_lora(config, adapter.tensors, work)
        elif config.peft_type == PeftType.LORA:
            adapter.write(work)
        else:
            raise NotExactError(
                f"adapter '{name}' is no LoRA and of no method of rankfold; merge it into its base model."
            )
