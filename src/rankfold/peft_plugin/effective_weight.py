"""The weight of an adapted layer for those who read it without calling the layer: base plus adapters.

Some modules read the weight of a layer inside them and never call it: the fast paths of torch's
`nn.TransformerEncoderLayer` and `nn.MultiheadAttention`, the scan of Mamba, the attention of WavLM, an output
head that reads the embedding, a fused loss that reads the head. An adapter that acts in `forward` only would
do nothing there, and merging it would change the model. So whoever reads the weight during a forward pass
gets the weight that the layer acts with.

Others read its dtype or device only, as T5 does in every pass. So the sum is computed when it is needed:
until then the tensor has a shape, a dtype and a device, but no values.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from types import FrameType
from typing import Any, cast, final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from rankfold.adapter.module import Adapter
from rankfold.errors import NotExactError
from rankfold.factors.base import is_lasting

_MODULE_CALL = cast(Any, nn.Module)._call_impl.__code__
_C = cast(Any, torch)._C


def effective_weight(weight: Tensor, adapters: Sequence[Adapter], check: Callable[[], None]) -> Tensor:
    """Return a base weight plus the changes of some adapters, computed when its values are needed.

    Gradients flow to the adapters' parameters, and to the weight if it is trained.

    Args:
        weight: The base weight.
        adapters: The adapters.
        check: Raises if the sum of them is no weight; called when the values are needed.
    """
    if torch.compiler.is_compiling():
        # The compiler leaves out what nobody uses.
        return _sum_or_refusal(weight, adapters, check)
    if not is_lasting(torch.empty(0, device=weight.device)):
        check()
        return _sum(weight, adapters)
    parameters = [parameter for adapter in adapters for parameter in adapter.parameters()]
    value = partial(_checked_sum, weight, adapters, check)
    return cast(Tensor, cast(Any, _Deferral).apply(value, weight, *parameters))


def is_in_forward() -> bool:
    """Return whether this thread is inside the call of a module, or computes one anew for its gradients.

    Asked of the stack and not kept by hooks, since a part of a model may be called without the whole.
    """
    if torch.compiler.is_compiling() or _C._current_graph_task_id() != -1:
        return True
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _MODULE_CALL:
            return True
        frame = frame.f_back
    return False


@final
class EffectiveWeight(Tensor):
    """A weight whose values are computed when an operation asks for them.

    It has `__torch_function__`, at whose sight torch's fast paths call the layers instead.
    """

    _value: Callable[[], Tensor]
    _computed: Tensor | None

    @staticmethod
    def __new__(
        cls: type["EffectiveWeight"], weight: Tensor, value: Callable[[], Tensor]
    ) -> "EffectiveWeight":
        """Return a tensor without values, like the weight in shape, dtype and device."""
        wrapper = cast(Any, Tensor)._make_wrapper_subclass(
            cls, weight.shape, strides=weight.stride(), dtype=weight.dtype, device=weight.device
        )
        wrapper._value, wrapper._computed = value, None
        return wrapper

    def values(self) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride] (torch's is of sparse tensors)
        """Return the values, computed at the first time."""
        if self._computed is None:
            with torch.no_grad():
                self._computed = self._value()
        return self._computed

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Go on as for any tensor, and return plain tensors."""
        with _C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Compute the values and go on with them."""
        values: Callable[[Any], Tensor] = cls.values
        return func(*tree_map_only(cls, values, args), **tree_map_only(cls, values, kwargs or {}))


@final
class _Deferral(torch.autograd.Function):
    """The sum of a weight and the changes of adapters, computed when needed; its gradients go to both."""

    @staticmethod
    def forward(ctx: Any, value: Callable[[], Tensor], weight: Tensor, *parameters: Tensor) -> Tensor:
        # Not among the saved tensors, which checkpointing counts.
        ctx.value, ctx.sources = value, (weight, *parameters)
        return EffectiveWeight(weight, value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride] (torch's way)
        create_graph = torch.is_grad_enabled()
        wanted = [source for source in ctx.sources if source.requires_grad]
        with torch.enable_grad():
            parts = torch.autograd.grad(
                ctx.value(), wanted, gradients, create_graph=create_graph, allow_unused=True
            )
        by_source = dict(zip(map(id, wanted), parts, strict=True))
        return None, *(by_source.get(id(source)) for source in ctx.sources)


def _checked_sum(weight: Tensor, adapters: Sequence[Adapter], check: Callable[[], None]) -> Tensor:
    check()
    return _sum(weight, adapters)


def _sum(weight: Tensor, adapters: Sequence[Adapter]) -> Tensor:
    total = weight
    for adapter in adapters:
        total = total + adapter.delta_weight()
    return total.to(weight.dtype)


def _sum_or_refusal(weight: Tensor, adapters: Sequence[Adapter], check: Callable[[], None]) -> Tensor:
    try:
        check()
    except NotExactError as error:
        return _refusal(weight, str(error))
    return _sum(weight, adapters)


# An operator, so that compiled code raises if it uses the values, and leaves it out if it does not.
@torch.library.custom_op("rankfold::refuse_weight", mutates_args=())
def _refusal(weight: Tensor, reason: str) -> Tensor:
    raise NotExactError(reason)


@_refusal.register_fake  # pyright: ignore[reportUnknownMemberType] (untyped in torch)
def _(weight: Tensor, reason: str) -> Tensor:
    return torch.empty_like(weight)
