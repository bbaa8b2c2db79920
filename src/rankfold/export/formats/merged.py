"""A model with the adapter merged into its weights: a folder that transformers loads without PEFT."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, final

import torch
from torch import Tensor, nn

from rankfold.adapter.layout import layer_name
from rankfold.adapter.module import hosts_in
from rankfold.errors import NotExactError, RankfoldWarning, SpecError
from rankfold.export.base import AdapterBase
from rankfold.export.certificate import LayerError, Method
from rankfold.export.fold import fold, frobenius
from rankfold.export.formats import ExportFormat, dtype_name
from rankfold.export.layers import PREFIX, ExportSource
from rankfold.peft_plugin.layer import RankfoldLayer
from rankfold.progress import quiet_libraries

_NOTABLE_ERROR = 1e-3


@final
class MergedModel(ExportFormat):
    """The base model with the adapter's updates added to its weights, its task head and its tokenizer."""

    name = "merged"
    method: Method = "merged"
    has_rank = False

    def default_dtype(self, base: AdapterBase | None) -> torch.dtype:
        """Return the dtype that the base model's weights are stored in.

        Raises:
            SpecError: If they are quantised, so that merged weights could not be stored like them.
        """
        if base is None or base.model.origin.is_file():
            return torch.float32  # a GGUF file is widened when it is read
        config = base.model.config()
        if getattr(config, "quantization_config", None) is not None:
            raise SpecError(
                f"the base model '{base.model.name}' is quantised, which merged weights would not survive; "
                "name its float original with --model, or export --to lora."
            )
        dtype = getattr(config, "dtype", None)
        return dtype if isinstance(dtype, torch.dtype) else torch.float32

    def write(self, source: ExportSource, folder: Path, dtype: torch.dtype) -> tuple[LayerError, ...]:
        """Merge in float32 and write the model; a layer's error is the share that rounding takes.

        Raises:
            NotExactError: If a router weighs the heads, a merged weight is not finite, or modules that read
                one weight would need different ones.
            AdapterFileError: If the adapter does not fit the model.
            SpecError: If the base model is not at hand, or cannot be loaded for the adapter's task.
        """
        base = source.require_base()
        model = base.load_with_adapter()
        errors = tuple(merge_errors(model, dtype))
        _check_finite(errors, dtype)
        weights = {module: dict(module.named_parameters(recurse=False)) for module in model.modules()}
        with quiet_libraries():
            plain_model: Any = cast("Any", model).merge_and_unload()
            _untie_head(plain_model)
            _check_ties(plain_model, weights)
            plain_model.to(dtype).save_pretrained(folder)
            if (tokenizer := base.tokenizer()) is not None:
                cast("Any", tokenizer).save_pretrained(folder)
        _warn_of_rounding(errors, dtype)
        return errors

    def measure(self, source: ExportSource, folder: Path, dtype: torch.dtype) -> tuple[LayerError, ...]:
        """Return the share of each layer's update that rounding the merged weights takes."""
        return tuple(merge_errors(source.require_base().load_with_adapter(), dtype))

    def load(self, base: AdapterBase, folder: Path) -> nn.Module:
        """Return the merged model in float32, of the base model's class."""
        cls = type(base.load())
        with quiet_libraries():
            return cast("Any", cls).from_pretrained(folder, dtype=torch.float32).eval()


FORMAT = MergedModel()


@torch.no_grad()
def merge_errors(model: nn.Module, dtype: torch.dtype) -> Iterator[LayerError]:
    """Yield the share of each layer's update that rounding the merged weight takes.

    Args:
        model: A model in float32 with one adapter.
        dtype: The dtype of the merged weights.
    """
    for path, layer in hosts_in(model):
        assert isinstance(layer, RankfoldLayer), "the layers of a PEFT model are ours"
        for adapter in layer.rankfold_adapters.values():
            error = _rounding_error(layer.get_base_weight().double(), adapter.delta_weight())
            name, rank = layer_name(path.removeprefix(PREFIX)), fold(adapter).rank
            yield LayerError(name, rank, error(torch.float32), error(dtype))


def _rounding_error(weight: Tensor, update: Tensor) -> Callable[[torch.dtype], float]:
    """Return a function of a dtype: the relative loss of an update where the sum is rounded to it."""
    exact, size = weight + update.double(), frobenius(update.double())

    def error(dtype: torch.dtype) -> float:
        loss = (weight.float() + update.float()).to(dtype).double() - exact
        return 0.0 if size == 0 else frobenius(loss) / size

    return error


def _check_finite(errors: Sequence[LayerError], dtype: torch.dtype) -> None:
    for layer in errors:
        if not math.isfinite(layer.written):
            raise NotExactError(
                f"the merged weight of '{layer.name}' is not finite in {str(dtype).removeprefix('torch.')}; "
                "merge in another dtype, or, if the adapter is not finite either, train it again."
            )


def _untie_head(model: Any) -> None:
    """Let the files hold the weights of the embedding and of the head, where merging made them different."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    config, text_config = model.config, model.config.get_text_config()
    if (
        head is not None
        and text_config.tie_word_embeddings
        and not torch.equal(embedding.weight, head.weight)
    ):
        config.tie_word_embeddings = text_config.tie_word_embeddings = False


def _is_untied_head(model: Any, module: nn.Module) -> bool:
    return module is model.get_output_embeddings() and not model.config.get_text_config().tie_word_embeddings


def _check_ties(model: nn.Module, weights: Mapping[nn.Module, Mapping[str, nn.Parameter]]) -> None:
    """Check that weights which were one before merging are equal, but for an untied head: files hold one.

    Args:
        model: The merged model.
        weights: The parameters that its modules read before.
    """
    first: dict[nn.Parameter, tuple[str, Tensor]] = {}
    modules = cast("Iterator[tuple[str, nn.Module]]", model.named_modules())
    for name, module in modules:
        if _is_untied_head(model, module):
            continue
        for key, parameter in weights.get(module, {}).items():
            weight = module.get_parameter(key)
            first_name, first_weight = first.setdefault(parameter, (name, weight))
            if weight is not first_weight and not torch.equal(weight, first_weight):
                raise NotExactError(
                    f"'{first_name}' and '{name}' read one weight, and the adapter does not change it alike "
                    "for both; export --to lora, or name a copy of the base with untied weights by --model."
                )


def _warn_of_rounding(errors: Sequence[LayerError], dtype: torch.dtype) -> None:
    worst = max(errors, key=lambda layer: layer.written)
    if worst.written > _NOTABLE_ERROR:
        warnings.warn(
            f"rounding the merged weights to {dtype_name(dtype)} takes {worst.written:.1%} of the adapter's "
            f"update of '{worst.name}', the most of {len(errors)} layers; keep the adapter apart where that "
            "matters.",
            RankfoldWarning,
            stacklevel=2,
        )
