"""Probes: the loss of a model on held-out rows while the adapters of some layers are suppressed.

After a probe the model's training mode, the adapters' strengths and torch's random state are as before.
"""

import math
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast, final

import torch
from torch import Tensor, distributed, nn
from torch.utils.data import DataLoader

from rankfold.errors import DataError, SpecError, TrainingError
from rankfold.seeding import random_order
from rankfold.tasks.kinds.learner import some_rows
from rankfold.train.reducer.blocks import Blocks

Loss = Callable[[nn.Module, Any], Tensor]
"""Loss of a model on a batch."""

# As in IST's code.
_BATCH_SIZE = 16
# `rankfold train` holds out a tenth of the training rows, at most this many batches.
_HOLD_OUT_DIVISOR, _MAX_BATCHES = 10, 32

_Row = TypeVar("_Row")


@final
class ProbeBatches:
    """Endless iterator over a loader's batches that can resume at a position.

    The position is its whole state: the loader's torch randomness depends on seed and position alone.

    Args:
        loader: Yields batches each time it is iterated.
        seed: Of the loader's randomness.
    """

    def __init__(self, loader: Iterable[Any], *, seed: int) -> None:
        self._loader, self._seed = loader, seed
        self._iterator: Iterator[Any] | None = None
        self.rounds, self.position = 0, 0

    def next(self) -> Any:
        """Return the next batch.

        Raises:
            DataError: If the loader has no batch.
        """
        while True:
            has_batch, batch = self._advance()
            if has_batch:
                return batch
            if self.position == 0:
                raise DataError("the probe loader is empty; give one with at least one batch.")
            self.seek(self.rounds + 1, 0)

    def seek(self, rounds: int, position: int) -> None:
        """Move to a batch: its position, after whole rounds through the loader."""
        self._iterator, self.rounds, self.position = None, rounds, 0
        for _ in range(position):
            self._advance()

    def _advance(self) -> tuple[bool, Any]:
        with cast("Any", torch.random).fork_rng(devices=[]):
            torch.default_generator.manual_seed(self._seed + (self.rounds << 32) + self.position)
            if self._iterator is None:
                self._iterator = iter(self._loader)
            try:
                batch = next(self._iterator)
            except StopIteration:
                return False, None
        self.position += 1
        return True, batch


@final
@dataclass(frozen=True, slots=True)
class Prober:
    """Computes the loss of a model with some blocks suppressed.

    Args:
        model: The whole model.
        blocks: Its adapters by block.
        loss: Function of model and batch.
        factor: The strength of a suppressed adapter, as a multiple of its own.
    """

    model: nn.Module
    blocks: Blocks
    loss: Loss
    factor: float

    def compute_loss(self, batch: Any, layers: Collection[int]) -> float:
        """Return the loss on a batch with these blocks suppressed; in distributed training the ranks' mean.

        Raises:
            TrainingError: If the loss is not a finite number.
        """
        with _evaluation_mode(self.model), self._suppress(layers), torch.no_grad():
            loss = self.loss(self.model, batch).detach().float().mean()
            if distributed.is_available() and distributed.is_initialized():
                cast("Any", distributed).all_reduce(loss)
                loss = loss / distributed.get_world_size()
        value = float(loss.item())
        if not math.isfinite(value):
            raise TrainingError(f"the loss of a probe is {value}; train with a lower learning rate.")
        return value

    @contextmanager
    def _suppress(self, layers: Collection[int]) -> Generator[None]:
        adapters = [adapter for block in layers for adapter in self.blocks.adapters[block]]
        strengths = [adapter.strength for adapter in adapters]
        try:
            for adapter in adapters:
                adapter.strength *= self.factor
            yield
        finally:
            for adapter, strength in zip(adapters, strengths, strict=True):
                adapter.strength = strength


@contextmanager
def _evaluation_mode(model: nn.Module) -> Generator[None]:
    """Context manager: every module in evaluation mode, its own mode restored afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def loss_of_model(model: nn.Module, batch: Any) -> Tensor:
    """Return the loss that a Hugging Face model reports for a batch with labels.

    Raises:
        SpecError: If the batch is no mapping of arguments, or the model reports no loss.
    """
    if not isinstance(batch, Mapping):
        raise SpecError(
            f"a probe batch is a {type(batch).__name__}, not the model's arguments by name; give the Reducer "
            "loss=, a function of model and batch."
        )
    device = next(model.parameters()).device
    arguments = {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in cast("Mapping[str, Any]", batch).items()
    }
    loss = getattr(model(**arguments), "loss", None)
    if loss is None:
        raise SpecError(
            "the model reports no loss for a probe batch; put labels into the batches, or give loss=."
        )
    return loss


def hold_out_probes(rows: Sequence[_Row], batch_size: int) -> tuple[Sequence[_Row], Sequence[_Row]]:
    """Split a tenth of the training rows off for probes, at most 32 batches: the same rows every time.

    Args:
        rows: The training rows.
        batch_size: Rows of a probe.

    Returns:
        The rows to train on, and the rows for probes.

    Raises:
        DataError: If there are too few rows to hold any out.
    """
    count = min(len(rows) // _HOLD_OUT_DIVISOR, _MAX_BATCHES * batch_size)
    if count == 0:
        raise DataError(
            f"{len(rows)} training rows are too few to hold any out for the Reducer's probes; train on at "
            f"least {_HOLD_OUT_DIVISOR}, or choose layers without probes (select='random')."
        )
    indices = set(random_order(len(rows), seed=0, name="reducer/probes")[:count].numpy().tolist())
    return (
        some_rows(rows, [index for index in range(len(rows)) if index not in indices]),
        some_rows(rows, sorted(indices)),
    )


def training_probes(loader: DataLoader[Any], *, seed: int) -> DataLoader[Any]:
    """Loader of probe batches from the training rows in a random order of its own, as in IST's code.

    Raises:
        SpecError: If the training data has no length, so that rows cannot be picked.
    """
    dataset = loader.dataset
    if not isinstance(dataset, Sized):
        raise SpecError(
            "the training data is a stream without a length, so no probes can be sampled from it; give the "
            "Reducer a probe_loader."
        )
    order = random_order(len(dataset), seed=seed, name="reducer/probes").numpy().tolist()
    return DataLoader(dataset, _BATCH_SIZE, sampler=order, collate_fn=cast("Any", loader).collate_fn)
