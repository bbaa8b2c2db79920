"""Measure a rounding: the change of an adapter's outputs or, without its base model, of its weights."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any, cast, final

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from rankfold.adapter.geometry import Linear
from rankfold.errors import RankfoldError
from rankfold.export.base import AdapterBase, PeftAdapter, find_base
from rankfold.export.fold import LowRankUpdate, frobenius, relative_error, unfolded_update
from rankfold.export.layers import detached_adapters
from rankfold.export.logits import Texts, reads_text, text_logits
from rankfold.files import WEIGHTS_NAME
from rankfold.peft_plugin.config import RankfoldConfig
from rankfold.store.adapter import SavedAdapter
from rankfold.store.certificate import Measure, RoundingCertificate
from rankfold.store.loading import load_adapter, peft_config
from rankfold.store.rounding import Dtype, tensor_error

_SEEDED_SOURCE = "seeded tokens"
_SEEDED_TEXTS, _SEEDED_TOKENS = 16, 32
_WEIGHTS_ALONE = "the weights alone were to be compared."


def certify_rounding(
    exact: SavedAdapter,
    approximation: SavedAdapter,
    dtype: Dtype,
    texts: Texts | str,
    *,
    model: str | None,
    weights_only: bool = False,
) -> RoundingCertificate:
    """Return the measured change of an adapter by its rounding to integers.

    Outputs are compared if the base model is at hand; else the updates of the layers, for rankfold's methods
    and LoRA; else the tensors. Without outputs the certificate says why.

    Args:
        exact: The adapter, of any PEFT method.
        approximation: The same with rounded numbers, restored.
        dtype: The type of integers.
        texts: The texts that outputs are compared on, or the reason that there are none.
        model: The base model; the one that the adapter's configuration names if None.
        weights_only: Compare no outputs.

    Raises:
        AdapterFileError: If the adapter's configuration is damaged.
        SpecError: If there is no such model.
    """
    digest = exact.sha256()[WEIGHTS_NAME]
    reason = _WEIGHTS_ALONE
    if not weights_only:
        outputs = _compare_outputs(exact, approximation, texts, model)
        if not isinstance(outputs, str):
            errors = outputs.errors
            return RoundingCertificate(
                dtype=dtype,
                measure="outputs",
                largest=max(errors),
                mean=fmean(errors),
                count=len(errors),
                exact_sha256=digest,
                inputs=outputs.texts.source,
                inputs_sha256=outputs.texts.sha256(),
                base=outputs.base.model.name,
                base_sha256=outputs.base.model.sha256(),
            )
        reason = outputs
    measure, changes = _compare_weights(exact, approximation)
    worst = max(changes, key=changes.__getitem__, default="")
    return RoundingCertificate(
        dtype=dtype,
        measure=measure,
        largest=changes.get(worst, 0.0),
        mean=fmean(changes.values()) if changes else 0.0,
        count=len(changes),
        exact_sha256=digest,
        worst=worst,
        reason=reason,
    )


@final
@dataclass(frozen=True, slots=True)
class _Outputs:
    """The change of each text's outputs, relative to the effect of the adapter on all of them."""

    base: AdapterBase
    texts: Texts
    errors: list[float]


def _compare_outputs(
    exact: SavedAdapter, approximation: SavedAdapter, texts: Texts | str, model: str | None
) -> _Outputs | str:
    """Compare outputs; a reason, as a sentence, where that is not possible."""
    base = find_base(PeftAdapter(exact, peft_config(exact)), model)
    if base is None:
        return "the base model is not at hand; name it with --model."
    try:
        base_model = base.load()
        if not reads_text(base_model):
            return f"the base model '{base.model.name}' reads no text."
        tokenizer: Any = base.tokenizer()
        if tokenizer is None or isinstance(texts, str):
            tokenizer = _SeededTokens(cast("Any", base_model.config).vocab_size)
            texts = Texts(_SEEDED_SOURCE, tuple(map(str, range(_SEEDED_TEXTS))))
        adapted_model = load_adapter(base_model, exact)
        before = text_logits(adapted_model, tokenizer, texts)
        without = text_logits(_without_layers(adapted_model), tokenizer, texts)
        after = text_logits(load_adapter(base.load(), approximation), tokenizer, texts)
    except (RankfoldError, RuntimeError, ValueError, TypeError) as error:
        return f"{str(error).splitlines()[0].rstrip('.')}."
    # Against the effect on all texts: that on a single one may be near zero.
    effect = _root_mean_square([x - y for x, y in zip(before, without, strict=True)])
    changes = [_root_mean_square([x - y]) for x, y in zip(after, before, strict=True)]
    return _Outputs(base, texts, [change / effect if effect else 0.0 for change in changes])


def _without_layers(model: PeftModel) -> PeftModel:
    """Turn the layers of an adapter off, and leave its head: a new one would be a larger change than any."""
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(enabled=False)
    if not layers:  # prompts, and methods that train layers of the base
        cast("Any", model).base_model.disable_adapter_layers()
    return model


@final
class _SeededTokens:
    """A tokenizer of numbers: each is the seed of a row of random tokens, for models without a tokenizer."""

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary = vocabulary

    def __call__(self, text: str, **_: object) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(int(text))
        return {"input_ids": torch.randint(self._vocabulary, (1, _SEEDED_TOKENS), generator=generator)}


def _root_mean_square(tensors: list[Tensor]) -> float:
    values = torch.cat([tensor.double().flatten() for tensor in tensors])
    return frobenius(values) / max(len(values), 1) ** 0.5


def _compare_weights(exact: SavedAdapter, approximation: SavedAdapter) -> tuple[Measure, dict[str, float]]:
    """Return the relative change of each layer's update or, where that takes the base, of each tensor."""
    try:
        pairs = list(_updates(exact, approximation))
    except RankfoldError:
        pairs = []
    if pairs:
        return "updates", {name: relative_error(after, before) for name, before, after in pairs}
    changes = {
        name: tensor_error(tensor, approximation.tensors[name]) for name, tensor in exact.tensors.items()
    }
    return "numbers", {name: change for name, change in changes.items() if change}


def _updates(
    exact: SavedAdapter, approximation: SavedAdapter
) -> Iterator[tuple[str, LowRankUpdate, LowRankUpdate]]:
    """Yield the update of each layer before and after, of rankfold's methods and of plain LoRA."""
    config = peft_config(exact)
    if isinstance(config, RankfoldConfig):
        before, after = (detached_adapters(config, adapter.tensors) for adapter in (exact, approximation))
        for name, adapter in before.items():
            yield name, unfolded_update(adapter), unfolded_update(after[name])
    elif exact.method == "LORA" and not getattr(config, "use_dora", False):
        for key in exact.tensors:
            if ".lora_A." in key:
                name = key.partition(".lora_A.")[0]
                yield name, _product(exact.tensors, key), _product(approximation.tensors, key)


def _product(tensors: Mapping[str, Tensor], key: str) -> LowRankUpdate:
    """Return the update of a LoRA layer but for its scaling, which a relative error does not see."""
    down, up = tensors[key].flatten(1), tensors[key.replace(".lora_A.", ".lora_B.")].flatten(1)
    return LowRankUpdate(down, up, Linear(down.shape[1], len(up)))
