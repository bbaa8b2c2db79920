"""One training step on the meta device: every operation in its shape, without a weight or a result.

Torch's own counter finds the operations of matrix products, attention's included, and its hooks on saved
tensors find what is kept from the forward pass to the backward pass.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from rankfold.train.quiet import quiet_libraries


@dataclass(frozen=True, slots=True)
class Trace:
    """What one step takes, in float32.

    Args:
        forward_flops: Multiplications and additions of the matrix products of the forward pass.
        flops: Those of the whole step.
        kept_bytes: What is kept for the backward pass, weights not counted.
        kept_weight_bytes: The weights that the backward pass reads.
        largest_bytes: The largest tensor that is kept.
    """

    forward_flops: int
    flops: int
    kept_bytes: int
    kept_weight_bytes: int
    largest_bytes: int


def trace_step(model: nn.Module, rows: int, length: int) -> Trace:
    """Return what a training step takes.

    Args:
        model: Of transformers or PEFT, on the meta device; it is in training mode afterwards.
        rows: Of the batch.
        length: Tokens of each row, none of them padding.

    Raises:
        RuntimeError: If something in the model looks at a value, of which the meta device has none.
    """
    weights = {_storage(tensor) for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[_storage(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: _addmm})
    with quiet_libraries(), counter:
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = _loss(model.train(), rows, length)
        forward_flops = counter.get_total_flops()
        cast(Any, loss).backward()
    model.zero_grad()
    activations = [size for storage, size in kept.items() if storage not in weights]
    return Trace(
        forward_flops,
        counter.get_total_flops(),
        kept_bytes=sum(activations),
        kept_weight_bytes=sum(kept.values()) - sum(activations),
        largest_bytes=max(activations),
    )


def _loss(model: nn.Module, rows: int, length: int) -> Tensor:
    """Return the loss of a batch of tokens."""
    config = cast(Any, model).config
    if config.pad_token_id is None:
        config.pad_token_id = 0  # a row's class is read off its last token, which takes a word for padding
    tokens = torch.zeros(rows, length, dtype=torch.long, device="meta")
    # Were they given the tokens themselves, some models would look among them for padding.
    embedded: Tensor = cast(Any, model).get_input_embeddings()(tokens)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        embedded.requires_grad_()  # so that there is a backward pass, as behind any adapter
    logits: Tensor = cast(Any, model)(inputs_embeds=embedded).logits
    logits = logits.reshape(-1, logits.shape[-1])
    return functional.cross_entropy(logits, torch.zeros_like(logits[:, 0], dtype=torch.long))


def _storage(tensor: Tensor) -> int:
    """Return what tells the memory of a tensor from any other's; on the meta device none has an address."""
    return cast(Any, tensor.untyped_storage())._cdata


def _addmm(_: object, left: torch.Size, right: torch.Size, **__: Any) -> int:
    """Return the operations of a product that is added in place, which the counter does not know."""
    return 2 * left[0] * left[1] * right[1]
