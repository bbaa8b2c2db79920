"""LoRA-FA's corrected gradient: the step that comes closest to the one of full training."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from rankfold.adapter.module import Adapter, adapters_in
from rankfold.errors import SpecError
from rankfold.factors import Dense


def lora_fa_correction(model: nn.Module, optimizer: Optimizer, *, delta: float = 1e-8) -> RemovableHandle:
    """Correct the gradients of adapters with a frozen down factor, before every step of an optimiser.

    The gradient G of the up factor becomes G (V V^T + delta I)^-1 / s^2, with the frozen factor V and the
    adapter's scaling s (Zhang et al., 2023, arXiv:2308.03303, revision of 2026). With plain gradient descent
    the weight then moves by the gradient of full training, projected on the rows of V.

    The correction acts on what the optimiser finds, so after gradients were clipped, and it makes them larger
    by the order of 1 / s^2: the learning rate has to be found anew.

    Args:
        model: A model. Its adapters that are trained have a frozen down factor and a dense up factor of their
            own, and no core or learned scale.
        optimizer: Whose steps are corrected.
        delta: Keeps the inverse finite.

    Returns:
        A handle; its `remove` ends the correction.

    Raises:
        SpecError: If an adapter that is trained is of another kind, or none is trained.

    Example:
        >>> import peft, rankfold, torch
        >>> model = peft.get_peft_model(
        ...     torch.nn.Sequential(torch.nn.Linear(8, 8)), rankfold.config("lora_fa", target_modules=["0"])
        ... )
        >>> made = rankfold.optimizer(model, torch.optim.AdamW, lr=1e-3)
        >>> handle = lora_fa_correction(model, made)
    """
    inverses = {
        parameter: (adapter, _inverse_gram(adapter, delta).to(parameter))
        for adapter, parameter in _trained_up(model)
    }
    if not inverses:
        raise SpecError("no adapter of the model is trained; make one active with set_adapter.")

    @torch.no_grad()
    def correct(*_: Any) -> None:
        for parameter, (adapter, inverse) in inverses.items():
            if parameter.grad is not None:
                scaling = adapter.scaling * adapter.strength
                parameter.grad.copy_(parameter.grad @ inverse.to(parameter.grad) / scaling**2)

    return optimizer.register_step_pre_hook(correct)


def _trained_up(model: nn.Module) -> Iterator[tuple[Adapter, nn.Parameter]]:
    """Yield the adapters that are trained with the parameter of their up factor."""
    seen: set[nn.Parameter] = set()
    for path, name, adapter in adapters_in(model):
        trained = [parameter for parameter in adapter.parameters() if parameter.requires_grad]
        if not trained:
            continue
        up = adapter.up
        is_alike = adapter.down.is_frozen and isinstance(up, Dense) and up.cols == adapter.down.rows
        has_more = adapter.core is not None or adapter.router is not None or len(trained) > 1
        if not is_alike or has_more or trained[0] in seen:
            raise SpecError(
                f"the adapter '{name}' of '{path}' is not a dense up factor of its own beside a frozen down "
                "factor, and LoRA-FA's correction is defined for nothing else; leave it out."
            )
        seen.add(trained[0])
        yield adapter, trained[0]


def _inverse_gram(adapter: Adapter, delta: float) -> Tensor:
    """Return (V V^T + delta I)^-1; V does not change, so this is done once, on the CPU in float64."""
    down = adapter.down().cpu().double()
    return (down @ down.T + delta * torch.eye(adapter.down.rows, dtype=torch.float64)).inverse()
