"""Loading: number type, attention and quantisation of a base model, as keywords of `from_pretrained`."""

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, final

import torch
from torch import nn
from transformers import BitsAndBytesConfig, TorchAoConfig

from rankfold.errors import SpecError

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Layers that transformers' classes have behind the body; they are trained, or share the embedding's weights.
_HEADS = ["lm_head", "classifier", "score", "pre_classifier", "classification_head", "qa_outputs", "pooler"]
_EVALUATION_FORM = "support_avx512bf16_for_cpu"


@final
@dataclass(frozen=True, slots=True)
class Loading:
    """The form in which a base model is loaded.

    Args:
        dtype: Number type of its weights, fp32 or bf16; a new head is in fp32.
        attention: The `attn_implementation` of transformers; its own choice if None.
        quantisation: 4bit or 8bit; None leaves the weights as they are.
        compute_dtype: Number type that quantised weights are multiplied in.
        device: Where quantised weights are put.
    """

    dtype: str = "fp32"
    attention: str | None = None
    quantisation: str | None = None
    compute_dtype: str = "fp32"
    device: str = "cpu"

    def keywords(self) -> dict[str, Any]:
        """Return the keywords of `from_pretrained`.

        Raises:
            SpecError: If the package that quantises is not installed.
        """
        keywords: dict[str, Any] = {"dtype": _DTYPES[self.dtype]}
        if self.attention is not None:
            keywords["attn_implementation"] = self.attention
        if self.quantisation is not None:
            keywords |= {"quantization_config": self._quantiser(), "device_map": {"": self.device}}
        return keywords

    def make_trainable(self, model: nn.Module, fresh: Iterable[str]) -> None:
        """Keep new heads in fp32, and quantised weights in the form that gradients pass through.

        Args:
            model: The loaded model.
            fresh: Paths of the modules that its files did not hold.
        """
        for name in filter(None, fresh) if self.dtype != "fp32" else ():
            model.get_submodule(name).float()
        for module in model.modules():
            # On a CPU bitsandbytes rewrites weights when they are evaluated, and cannot train on them then.
            if hasattr(module, _EVALUATION_FORM):
                setattr(module, _EVALUATION_FORM, False)

    def _quantiser(self) -> Any:
        """Return the configuration of the library that quantises; heads stay as they are."""
        if find_spec("bitsandbytes") is not None:
            if self.quantisation == "8bit":
                return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=_HEADS)
            return BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_compute_dtype=_DTYPES[self.compute_dtype],
                llm_int8_skip_modules=_HEADS,
            )
        if self.quantisation == "8bit" and find_spec("torchao") is not None:
            library: Any = import_module("torchao.quantization")  # of an extra
            return TorchAoConfig(library.Int8WeightOnlyConfig(), modules_to_not_convert=_HEADS)
        raise SpecError(
            f"quantising to {self.quantisation} takes the package 'bitsandbytes'; "
            "install it with `pip install 'rankfold[quantise]'`."
        )
