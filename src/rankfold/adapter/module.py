"""The adapter module: the change of one layer's output, and how to find adapters in a model."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Protocol, TypeGuard, cast, final

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from rankfold.adapter.gating import Gating, weigh
from rankfold.adapter.geometry import Geometry, Matrices
from rankfold.errors import NotExactError
from rankfold.factors import Factor, without_autocast
from rankfold.factors.base import is_transformed

_MASK_VALUES = 2**16
_MASK_LANES = 4
_FOLDABLE_BITS = 32


@final
class Dropout(nn.Dropout):
    """Dropout whose mask takes a quarter of the bytes that torch keeps of a float32 input.

    It is drawn several times as fast as torch's. On a processor an entry is dropped where 16 bits of torch's
    generator are below p, which is rounded to a multiple of 2**-16 by that; what is left is scaled by the
    rounded one, so that the mean is exact.
    """

    @property
    def is_active(self) -> bool:
        """Whether anything is dropped now."""
        return self.training and self.p > 0

    def draw(self, x: Tensor) -> tuple[Tensor, float]:
        """Return a mask in the shape of x, 1 or 0 in uint8, and the multiplier of the kept entries."""
        if x.device.type != "cpu" or type(x) is not Tensor:
            return torch.empty_like(x, dtype=torch.uint8).bernoulli_(1 - self.p), 1 / (1 - self.p)
        dropped = min(round(self.p * _MASK_VALUES), _MASK_VALUES - 1)
        bits = torch.empty(-(-x.numel() // _MASK_LANES), dtype=torch.int64, device="cpu")
        lanes = cast(Any, bits.random_(-(2**63), None)).numpy().view(np.int16)[: x.numel()]
        # Torch compares 16-bit integers one by one.
        mask = np.greater_equal(lanes, np.int16(dropped - _MASK_VALUES // 2)).view(np.uint8)
        return cast(Any, torch).from_numpy(mask).reshape(x.shape), _MASK_VALUES / (_MASK_VALUES - dropped)

    def forward(self, input: Tensor) -> Tensor:
        """Return the input with entries dropped, in training."""
        if not self.is_active or torch.compiler.is_compiling() or is_transformed():
            return super().forward(input)
        mask, multiplier = self.draw(input)
        return input * mask * multiplier


@final
class LearnedScale(nn.Module):
    """One trained multiplier for one adapter, starting at 1 (TLoRA; Islam, 2025, eq. 3).

    Args:
        experts: How many experts the adapter has, each with a multiplier of its own.
    """

    def __init__(self, experts: int | None = None) -> None:
        super().__init__()
        self.experts = experts
        self.value = nn.Parameter(torch.ones(experts or 1))

    def forward(self) -> Tensor:
        """Return the multiplier [1], or those of the experts [experts, 1, 1]."""
        return self.value if self.experts is None else self.value[:, None, None]


@final
class Adapter(nn.Module):
    r"""The change of one layer: $\Delta y = s \sum_e g_e(x) \, U_e C V_e \, dropout(x)$ over its heads e.

    An adapter has no parameters of its own, only factors and a router; each may serve several adapters. One
    that is detached (`is_detached`) changes the output as before, but none of its factors learns from it and
    nothing is kept for their gradients. One that is folded (`is_folded`) is added to a copy of the weight of
    a linear layer, without its dropout, until one of the two changes.

    Args:
        down: V, rank x in_features; with `down_heads` > 1 those of the heads one above the other.
        up: U, out_features x rank_up; those of the heads side by side.
        geometry: Kind and sizes of the base layer.
        core: C, rank_up x rank, if any.
        scaling: The fixed multiplier s.
        scale: A trained multiplier beside it, if any.
        gating: What weighs the heads, if there are several.
        down_heads: How many heads have a V of their own; 1 if they share one.
        input_dropout: Dropout of what enters, or the identity.
        output_dropout: Dropout of what leaves, or the identity.
    """

    def __init__(  # noqa: PLR0913 (the parts of the formula)
        self,
        down: Factor,
        up: Factor,
        *,
        geometry: Geometry,
        core: Factor | None = None,
        scaling: float = 1.0,
        scale: LearnedScale | None = None,
        gating: Gating | None = None,
        down_heads: int = 1,
        input_dropout: nn.Module | None = None,
        output_dropout: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.down, self.core, self.up, self.scale = down, core, up, scale
        self.gating = gating
        self.router = None if gating is None else gating.router
        self.down_heads = down_heads
        self.geometry = geometry
        self.scaling = scaling
        self.strength = 1.0
        self.is_detached = self.is_folded = False
        self._folded: tuple[tuple[object, ...], Tensor] | None = None
        self.input_dropout = input_dropout or nn.Identity()
        self.output_dropout = output_dropout or nn.Identity()

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the parameters, which frozen factors follow."""
        for factor in (self.down, self.up, self.core):
            # Asked in every pass, so without walking through all modules.
            for parameter in () if factor is None else factor.parameters(recurse=False):
                return parameter.dtype
        return next((parameter.dtype for parameter in self.parameters()), torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        """Return the change of the base layer's output.

        While `is_detached`, no factor gets a gradient from this adapter, not even one that others use; the
        input still does.

        Args:
            x: The base layer's input, in the adapter's dtype; tokens for an embedding.
        """
        down = self._matrix(self.down, self.dtype)
        code = self._up_input(x, self.geometry.project(x, down, self.input_dropout), down)
        return self.output_dropout(self.geometry.expand(code, self._matrix(self.up, down.dtype)))

    def with_base(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the output of a frozen linear base layer with the change added, in fewer steps than apart.

        Only where `drops_output` is False.

        Args:
            x: The base layer's input, [*batch, in_features], in the dtype of the adapter and of the layer.
            weight: The base layer's weight, [out_features, in_features].
            bias: The base layer's bias, if any.
        """
        # Probes change strengths for one batch, for which making the weight does not pay.
        if self._can_fold(weight) and torch.is_grad_enabled():
            return functional.linear(x, self._folded_weight(weight), bias)
        down, dropout = self._matrix(self.down, self.dtype), self.input_dropout
        flat, batch = x.reshape(-1, x.shape[-1]), x.shape[:-1]
        mask, multiplier = dropout.draw(flat) if is_dropping(dropout) else (None, 1.0)
        result, flat_code = linear_and_code(flat, weight, bias, down, mask, multiplier)
        up = self._matrix(self.up, down.dtype)
        # The code has rank features where the output has out_features: the cheaper place to scale. With heads
        # it is the weights, since the router has the code as it is, which need not be kept twice then.
        if self.gating is None:
            total = add_expanded(result, self._scale(self._apply_core(flat_code, down.dtype)), up)
        else:
            read = partial(self._undropped_code, x, flat_code.reshape(*batch, down.shape[0]), down)
            weights = self._scale(self.gating.weights(x, read))
            codes = self._apply_core(self._split_heads(flat_code), down.dtype)
            total = add_expanded(result, codes, up, weights.reshape(-1, weights.shape[-1]))
        return total.reshape(*batch, up.shape[0])

    def _can_fold(self, weight: Tensor) -> bool:
        """Whether the adapter is to be folded into a weight, and would not be rounded away there."""
        if not self.is_folded:
            self._folded = None
        return self.is_folded and self.router is None and torch.finfo(weight.dtype).bits >= _FOLDABLE_BITS

    def _folded_weight(self, weight: Tensor) -> Tensor:
        """Return a copy of the base weight with the change, the same one until either has changed."""
        tensors = (weight, *self.parameters(), *self.buffers())
        state = (self.strength, *((tensor.data_ptr(), tensor._version) for tensor in tensors))
        if self._folded is None or self._folded[0] != state:
            with torch.no_grad():
                self._folded = state, weight + self.delta_weight().to(weight.dtype)
        return self._folded[1]

    def add_to(self, weight: Tensor) -> Tensor:
        """Return a parameter with the change added, in its dtype; only where the geometry is `Matrices`.

        Gradients reach the factors. Autocast is left out, since the result stands for the parameter.

        Args:
            weight: The parameter, in its own shape.
        """
        assert isinstance(self.geometry, Matrices), "layers add to their output, not to their weight"
        with without_autocast(weight.device):
            down = self._matrix(self.down, self.dtype)
            if self.core is not None:
                down = self._matrix(self.core, down.dtype) @ down
            return self.geometry.add_product(weight, self._matrix(self.up, down.dtype), self._scale(down))

    @property
    def is_idle(self) -> bool:
        """Whether the adapter changes nothing and need not run; a router of an MLP needs all its layers."""
        return self.strength == 0 and (self.router is None or self.router.spec.scope == "layer")

    @property
    def drops(self) -> bool:
        """Whether dropout acts now."""
        return is_dropping(self.input_dropout) or self.drops_output

    @property
    def drops_output(self) -> bool:
        """Whether dropout acts on the output now."""
        return is_dropping(self.output_dropout)

    def _up_input(self, x: Tensor, code: Tensor, down: Tensor) -> Tensor:
        """Return the input of the up factor: the code of x after core, gates and scaling."""
        if self.gating is None:
            code = self._apply_core(code, down.dtype)
        else:
            code = self._apply_gates(self.gating, x, code, down)
        # The code has rank features where the output has out_features: the cheaper place to scale.
        return self._scale(code)

    def delta_weight(self) -> Tensor:
        """Return the change of the base weight, in its shape, in float32 at least, without dropout.

        Raises:
            NotExactError: If a router weighs the heads, so that no single weight is the adapter.
        """
        down, up = self.matrices()
        return self.geometry.as_base_weight(up @ down)

    def matrices(self) -> tuple[Tensor, Tensor]:
        """Return s C V and U, whose product U s C V is the change of the base weight, in float32 at least.

        Raises:
            NotExactError: If a router weighs the heads, so that no single weight is the adapter.
        """
        self.check_is_a_weight("this adapter")
        dtype = torch.promote_types(self.dtype, torch.float32)
        down = self.down().to(dtype)
        if self.core is not None:
            down = self.core().to(dtype) @ down
        return self._scale(down), self.up().to(dtype)

    def check_is_a_weight(self, name: str) -> None:
        """Check that the adapter equals one change of the base weight.

        Args:
            name: What the error calls the adapter.

        Raises:
            NotExactError: If a router weighs its heads, which is different for every token.
        """
        if self.router is not None:
            raise NotExactError(
                f"'{name}' has {self.router.heads} heads whose gates depend on the input, so no weight "
                "equals it; use it as an adapter, or train one with heads=1."
            )

    def _matrix(self, factor: Factor, dtype: torch.dtype) -> Tensor:
        return self._value(factor).to(dtype)

    def _apply_core(self, code: Tensor, dtype: torch.dtype) -> Tensor:
        return code if self.core is None else self.geometry.mix(code, self._matrix(self.core, dtype))

    def _apply_gates(self, gating: Gating, x: Tensor, code: Tensor, down: Tensor) -> Tensor:
        """Return the code of every head, weighed, [*batch, heads * rank_up]."""
        codes = self._apply_core(self._split_heads(code), down.dtype)
        return gating(x, codes, partial(self._undropped_code, x, code, down))

    def _split_heads(self, code: Tensor) -> Tensor:
        """Return the codes of the heads that have a V of their own, [*batch, down_heads, rank]."""
        rank = code.shape[-1] // self.down_heads  # torch cannot infer it from a batch without rows
        return code.reshape(*code.shape[:-1], self.down_heads, rank)

    def _undropped_code(self, x: Tensor, code: Tensor, down: Tensor) -> Tensor:
        """Return the code without dropout."""
        return self.geometry.project(x, down, nn.Identity()) if self.drops else code

    def _scale(self, tensor: Tensor) -> Tensor:
        multiplier = self.scaling * self.strength
        if multiplier != 1:
            tensor = tensor * multiplier
        return tensor if self.scale is None else tensor * self._value(self.scale)

    def _value(self, part: Factor | LearnedScale) -> Tensor:
        value: Tensor = part()
        return value.detach() if self.is_detached else value


class AdapterHost(Protocol):
    """A layer that carries adapters, by name."""

    rankfold_adapters: Mapping[str, Adapter]
    active_adapters: list[str]


def hosts_in(model: nn.Module) -> Iterator[tuple[str, AdapterHost]]:
    """Yield every layer that carries adapters, with its path."""
    modules = cast(Iterator[tuple[str, nn.Module]], model.named_modules())
    # Every step of a routed training asks; `isinstance` with a protocol takes ten times as long.
    return (
        (path, cast(AdapterHost, module)) for path, module in modules if hasattr(module, "rankfold_adapters")
    )


def adapters_in(model: nn.Module) -> Iterator[tuple[str, str, Adapter]]:
    """Yield every adapter of a model, with the path of its layer and its name."""
    for path, host in hosts_in(model):
        for name, adapter in host.rankfold_adapters.items():
            yield path, name, adapter


def is_dropping(dropout: nn.Module) -> TypeGuard[Dropout]:
    """Whether a module is dropout that acts now."""
    return isinstance(dropout, Dropout) and dropout.is_active


def linear_and_code(
    x: Float[Tensor, "tokens in_features"],
    weight: Float[Tensor, "out_features in_features"],
    bias: Float[Tensor, " out_features"] | None,
    down: Float[Tensor, "rank in_features"],
    mask: UInt8[Tensor, "tokens in_features"] | None = None,
    multiplier: float = 1.0,
) -> tuple[Float[Tensor, "tokens out_features"], Float[Tensor, "tokens rank"]]:
    """Return the output of a frozen linear layer, and the code of its input after dropout.

    Of the dropped input nothing is kept for the backward pass but the mask.

    Args:
        x: The input.
        weight: The layer's weight, which gets no gradient.
        bias: The layer's bias, if any, which gets no gradient.
        down: The adapter's down factor.
        mask: 1 for each entry that the code sees, 0 for a dropped one; None for no dropout.
        multiplier: What the code is multiplied by.
    """
    outputs = cast(Any, _LinearAndCode).apply(x, weight, bias, down, mask, multiplier)
    return cast(tuple[Tensor, Tensor], outputs)


def add_expanded(
    result: Float[Tensor, "tokens out_features"],
    code: Float[Tensor, "tokens rank"] | Float[Tensor, "tokens code_heads rank"],
    up: Float[Tensor, "out_features all_ranks"],
    weights: Float[Tensor, "tokens heads"] | None = None,
) -> Float[Tensor, "tokens out_features"]:
    """Return result + U code, in the place of the result.

    Args:
        result: The base layer's output; it is overwritten.
        code: The code, or with weights those of the heads, of which there may be one for all.
        up: The adapter's up factor, its heads side by side.
        weights: What the code of each head is multiplied by; the product is not kept for the backward pass.
    """
    return cast(Tensor, cast(Any, _AddExpanded).apply(result, code, up, weights))


@final
class _LinearAndCode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor,
        mask: Tensor | None,
        multiplier: float,
    ) -> Any:
        # The input is kept for the down factor's gradient only.
        ctx.save_for_backward(x if ctx.needs_input_grad[3] else None, weight, down, mask)
        ctx.multiplier = multiplier
        code = functional.linear(_drop_entries(x, mask), down)
        return functional.linear(x, weight, bias), code if mask is None else code.mul_(multiplier)

    # In differentiable steps, for those who want gradients of gradients.
    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride] (torch's way)
        of_result, of_code = gradients
        x, weight, down, mask = ctx.saved_tensors
        if mask is not None:
            of_code = of_code * ctx.multiplier
        of_x = None
        if ctx.needs_input_grad[0] and mask is None:
            of_x = (of_result @ weight).addmm_(of_code, down)
        elif ctx.needs_input_grad[0]:
            of_x = _drop_entries(of_code @ down, mask).addmm_(of_result, weight)
        of_down = None if x is None else of_code.T @ _drop_entries(x, mask)
        return of_x, None, None, of_down, None, None


def _drop_entries(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask


@final
class _AddExpanded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, result: Tensor, code: Tensor, up: Tensor, weights: Tensor | None) -> Any:
        ctx.save_for_backward(code, up, weights)
        ctx.mark_dirty(result)
        return result.addmm_(code if weights is None else weigh(code, weights), up.T)

    # In differentiable steps, as above.
    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride] (torch's way)
        (of_result,) = gradients
        code, up, weights = ctx.saved_tensors
        of_code, of_weights = of_result @ up, None
        if weights is not None:
            heads = of_code.view(*weights.shape, code.shape[-1])
            of_weights = (heads * code).sum(dim=-1)
            of_code = (heads * weights.unsqueeze(-1)).sum_to_size(code.shape)
            code = weigh(code, weights)
        of_up = of_result.T @ code if ctx.needs_input_grad[2] else None
        return of_result, of_code, of_up, of_weights
