"""Probes: what a model loses on held-out rows while some of its layers are suppressed.

A probe leaves no trace: the model's training mode, the adapters' strengths and torch's random state are as
before.
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
from rankfold.train.reducer.blocks import Blocks

Loss = Callable[[nn.Module, Any], Tensor]
"""What a model loses on a batch."""

# As in IST's code.
_ROWS_OF_A_BATCH = 16
# What `rankfold train` holds out of the training rows: one in ten, for at most so many different probes.
_HOLD_OUT_DIVISOR, _MOST_BATCHES = 10, 32

_Row = TypeVar("_Row")


@final
class ProbeBatches:
    """The batches of a loader, one after the other and again from the start, by position.

    The position is all that has to be kept to go on: whatever randomness the loader takes from torch depends
    on the seed and the position alone.

    Args:
        loader: Gives batches each time it is iterated.
        seed: Of the loader's randomness.
    """

    def __init__(self, loader: Iterable[Any], *, seed: int) -> None:
        self._loader, self._seed = loader, seed
        self._iterator: Iterator[Any] | None = None
        self.rounds, self.taken = 0, 0

    def next(self) -> Any:
        """Return the next batch.

        Raises:
            DataError: If the loader has no batch.
        """
        while True:
            found, batch = self._take()
            if found:
                return batch
            if self.taken == 0:
                raise DataError("the probe loader is empty; give one with at least one batch.")
            self.seek(self.rounds + 1, 0)

    def seek(self, rounds: int, taken: int) -> None:
        """Go to a batch: after so many whole rounds through the loader, and so many batches of one more."""
        self._iterator, self.rounds, self.taken = None, rounds, 0
        for _ in range(taken):
            self._take()

    def _take(self) -> tuple[bool, Any]:
        with cast("Any", torch.random).fork_rng(devices=[]):
            torch.default_generator.manual_seed(self._seed + (self.rounds << 32) + self.taken)
            if self._iterator is None:
                self._iterator = iter(self._loader)
            try:
                batch = next(self._iterator)
            except StopIteration:
                return False, None
        self.taken += 1
        return True, batch


@final
@dataclass(frozen=True, slots=True)
class Prober:
    """Measures what suppressing costs.

    Args:
        model: The whole model.
        blocks: Its adapters by block.
        loss: What it loses on a batch.
        factor: The strength of a suppressed adapter, as a multiple of its own.
    """

    model: nn.Module
    blocks: Blocks
    loss: Loss
    factor: float

    def measure(self, batch: Any, suppressed: Collection[int]) -> float:
        """Return the loss on a batch with these blocks suppressed, in distributed training the ranks' mean.

        Raises:
            TrainingError: If the loss is not a finite number.
        """
        with _evaluating(self.model), self._suppressing(suppressed), torch.no_grad():
            loss = self.loss(self.model, batch).detach().float().mean()
            if distributed.is_available() and distributed.is_initialized():
                cast("Any", distributed).all_reduce(loss)
                loss = loss / distributed.get_world_size()
        value = float(loss.item())
        if not math.isfinite(value):
            raise TrainingError(f"the loss of a probe is {value}; train with a lower learning rate.")
        return value

    @contextmanager
    def _suppressing(self, suppressed: Collection[int]) -> Generator[None]:
        adapters = [adapter for block in suppressed for adapter in self.blocks.adapters[block]]
        strengths = [adapter.strength for adapter in adapters]
        try:
            for adapter in adapters:
                adapter.strength *= self.factor
            yield
        finally:
            for adapter, strength in zip(adapters, strengths, strict=True):
                adapter.strength = strength


@contextmanager
def _evaluating(model: nn.Module) -> Generator[None]:
    """Switch every module to evaluation, and those that were training back."""
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
    """Cut a tenth of the training rows off for probes, but not many: the same rows every time.

    Args:
        rows: The training rows.
        batch_size: Rows of a probe; rows for at most 32 of them are cut off.

    Raises:
        DataError: If there are too few rows to hold any out.
    """
    count = min(len(rows) // _HOLD_OUT_DIVISOR, _MOST_BATCHES * batch_size)
    if count == 0:
        raise DataError(
            f"{len(rows)} training rows are too few to hold any out for the Reducer's probes; train on at "
            f"least {_HOLD_OUT_DIVISOR}, or choose layers without probes (select='random')."
        )
    held = set(random_order(len(rows), seed=0, name="reducer/probes")[:count].numpy().tolist())
    return (
        [row for index, row in enumerate(rows) if index not in held],
        [row for index, row in enumerate(rows) if index in held],
    )


def rows_of_training(loader: DataLoader[Any], *, seed: int) -> DataLoader[Any]:
    """Return batches of a training loader's rows, in an order of their own: where IST's code probes.

    Raises:
        SpecError: If the training data has no length, so that rows cannot be picked.
    """
    dataset = loader.dataset
    if not isinstance(dataset, Sized):
        raise SpecError(
            "the training data is a stream to pick no probes from; give the Reducer a probe_loader."
        )
    order = random_order(len(dataset), seed=seed, name="reducer/probes").numpy().tolist()
    return DataLoader(dataset, _ROWS_OF_A_BATCH, sampler=order, collate_fn=cast("Any", loader).collate_fn)
