"""Adapters with a router, compressed: every token gets the gates that real text gets on average."""

from typing import Any, final

from torch import Tensor, nn

from rankfold.adapter.module import adapters_in
from rankfold.adapter.router import Router
from rankfold.errors import SpecError
from rankfold.export.base import Base
from rankfold.export.certify import reads_text, text_logits
from rankfold.export.compress import Compression, compress, with_mean_gates
from rankfold.export.fold import Folded, fold
from rankfold.export.folding import Products
from rankfold.export.plain_math import PREFIX
from rankfold.export.texts import Texts


def calibrated_layers(base: Base, texts: Texts, compression: Compression) -> Products:
    """Return the layers of an adapter as they are with the mean gates of some texts, compressed.

    Raises:
        AdapterFileError: If the adapter does not fit the model.
        SpecError: If the model cannot be loaded, or reads no text.
    """
    model, tokenizer = base.adapted(), base.tokenizer()
    if tokenizer is None or not reads_text(model):
        raise SpecError(
            f"the base model '{base.found.name}' reads no text or has no tokenizer, so there is nothing to "
            "calibrate the routers on; name a folder with its tokenizer by --model."
        )
    means = {module: _Mean() for module in model.modules() if isinstance(module, Router)}
    hooks = [module.register_forward_hook(mean.add) for module, mean in means.items()]
    try:
        text_logits(model, tokenizer, texts)
    finally:
        for hook in hooks:
            hook.remove()
    trained: dict[str, Folded] = {}
    for path, _, adapter in adapters_in(model):
        router = adapter.router
        product = fold(adapter) if router is None else with_mean_gates(adapter, means[router].gates())
        trained[path.removeprefix(PREFIX)] = product
    return Products(
        trained, {name: compress(each, compression) for name, each in trained.items()}, "compressed"
    )


@final
class _Mean:
    """The mean of what a router says, over all tokens."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._tokens = 0

    def add(self, _router: nn.Module, _inputs: Any, weights: Tensor) -> None:
        flat = weights.detach().double().flatten(0, -2)
        self._sum = flat.sum(0) if self._sum is None else self._sum + flat.sum(0)
        self._tokens += len(flat)

    def gates(self) -> Tensor:
        assert self._sum is not None, "every router runs in a pass of its model"
        return self._sum / self._tokens
