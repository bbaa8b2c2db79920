"""From a saved adapter to the folded layers that are written, exactly or compressed."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast, final

from torch import Tensor, nn

from rankfold.errors import AdapterFileError
from rankfold.export.base import Base
from rankfold.export.certificate import Method
from rankfold.export.compress import Compression, compress
from rankfold.export.detached import detached_adapters, needs_base_weights
from rankfold.export.fold import Folded, fold
from rankfold.export.measure import trained_product
from rankfold.export.opened import OpenedAdapter
from rankfold.export.plain_lora import check_exact


@final
@dataclass(frozen=True, slots=True)
class Products:
    """An adapter's layers by name, as products of two matrices in float64.

    Args:
        trained: What the adapter computes; for one with a router, with its mean gates.
        written: What is to be written.
        method: How the one came of the other.
    """

    trained: Mapping[str, Folded]
    written: Mapping[str, Folded]
    method: Method


def fold_layers(saved: OpenedAdapter, base: Base | None, compression: Compression | None) -> Products:
    """Return the layers of an adapter without a router.

    Raises:
        NotExactError: If a router weighs its heads.
        AdapterFileError: If its files do not belong together, or do not suffice without the base model.
    """
    check_exact(saved.config)
    adapters = detached_adapters(saved.config, saved.state, _base_weight(saved, base))
    trained = {name: trained_product(each) for name, each in adapters.items()}
    folded = {name: fold(each) for name, each in adapters.items()}
    if compression is None:
        return Products(trained, folded, "folded")
    return Products(trained, {n: compress(each, compression) for n, each in folded.items()}, "compressed")


def with_layers(saved: OpenedAdapter, base: Base | None) -> OpenedAdapter:
    """Return an adapter whose configuration lists its layers; an earlier rankfold's did not.

    Raises:
        AdapterFileError: If the base model, which has them, is not at hand.
    """
    if saved.config.layers is not None:
        return saved
    if base is None:
        raise AdapterFileError(
            f"the configuration of '{saved.folder}' has no list of layers, since an earlier rankfold saved "
            "it; name its base model with --model."
        )
    model = base.adapted()
    config = copy.copy(saved.config)
    config.layers = cast("Any", model.peft_config["default"]).layers
    return replace(saved, config=config)


def _base_weight(saved: OpenedAdapter, base: Base | None) -> Callable[[str], Tensor] | None:
    if not needs_base_weights(saved.config):
        return None
    if base is None:
        raise AdapterFileError(
            f"the factors of '{saved.folder}' are taken from the base weights, which are not at hand; "
            "name its base model with --model."
        )
    model: nn.Module = base.load()
    return lambda name: model.get_submodule(name).get_parameter("weight").detach()
