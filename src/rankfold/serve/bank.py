"""The bank: adapters of one base model in slots, for batches in which each row has its own."""

import threading
from collections import Counter, OrderedDict
from collections.abc import Generator, Hashable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Self, cast, final

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from rankfold.errors import SpecError
from rankfold.serve.frame import Frame, FrameRows, Frames
from rankfold.serve.layers import HeadRows, LayerRows, layers_of
from rankfold.serve.library import Library, ListedAdapter, ReadyAdapter
from rankfold.store.adapter import SavedAdapter
from rankfold.store.manifest import Manifest
from rankfold.store.store import AdapterStore

_MOST_KEPT = 1 << 28
"""The most bytes that a batch keeps gathered from one pass to the next."""


@final
@dataclass(frozen=True, slots=True)
class BankStats:
    """Counts of a bank since it was made.

    Args:
        rows: Rows of batches that had an adapter.
        slot_hits: Of these, the ones whose adapter was in a slot.
        host_hits: Adapters that a batch found in memory.
        loads: Adapters that a batch read from the store.
        evictions: Adapters that gave their slot to another.
        resident: Adapters in slots now.
        host_bytes: Bytes of adapters in memory now, beside the slots.
    """

    rows: int
    slot_hits: int
    host_hits: int
    loads: int
    evictions: int
    resident: int
    host_bytes: int


@final
@dataclass(frozen=True, slots=True)
class _Placement:
    """An adapter in slots: one of each of its frames."""

    adapter: ReadyAdapter
    slots: tuple[tuple[Frame, int], ...]


@final
class Batch:
    """The adapters of the rows of a batch; their slots stay as they are until the batch is done.

    Args:
        adapters: The adapter of each row; None for the base model.
        parts: The rows by frame.
        times: How often `generate` repeats each row.

    Attributes:
        layers: The names of all layers that some row changes.
    """

    def __init__(
        self, adapters: Sequence[ReadyAdapter | None], parts: Sequence[FrameRows], times: int = 1
    ) -> None:
        self.adapters = adapters
        self._parts = {len(adapters): parts}
        if times > 1:
            self._parts[len(adapters) * times] = [part.repeat(times) for part in parts]
        self.layers = {name for part in parts for name in part.frame.forms}
        self._layers: dict[tuple[int, str], tuple[list[LayerRows], list[HeadRows]]] = {}

    def of_layer(self, name: str, x: Tensor) -> tuple[list[LayerRows], list[HeadRows]]:
        """Return the adapters of a layer, and the modules in its place, for the rows of its input.

        Args:
            name: The layer's name.
            x: Its input, [rows, ...]; where experts are joined, [experts, rows, ...].

        Raises:
            SpecError: If these are not the rows of the batch.
        """
        layers = self._of_rows(name, len(self.adapters))
        rows = x.shape[1 if any(layer.joins for layer in layers[0]) else 0]
        if rows == len(self.adapters):
            return layers
        if rows not in self._parts:
            raise SpecError(
                f"the layer '{name}' gets {rows} rows of a batch of {len(self.adapters)}, so nobody knows "
                "whose adapter each of them needs; train adapters without this layer to serve them together."
            )
        return self._of_rows(name, rows)

    def _of_rows(self, name: str, rows: int) -> tuple[list[LayerRows], list[HeadRows]]:
        key = rows, name
        if key not in self._layers:
            self._layers[key] = layers_of(self._parts[rows], name)
        return self._layers[key]


@final
class Bank:
    """Adapters of one base model in slots, for batches in which each row has its own.

    Every method of rankfold is served, and PEFT's LoRA. An adapter comes from the store into memory, and from
    there into a slot, when a batch names it. The least recently used one gives way, but never one that a
    running batch needs. An adapter that is replaced or deleted in the store is so from the next batch on.

    Several threads may use one bank.

    Args:
        model: The base model, which stays as it is.
        store: A store, or its file, whose adapters are served by name; None for those of `add` alone.
        slots: The most adapters that are ready at once, and so the most that one batch can name.
        host_bytes: The most bytes of adapters that are kept in memory beside the slots.

    Raises:
        SpecError: If the model carries adapters already, or a number is too small.
        StoreError: If the store cannot be read.
    """

    def __init__(
        self,
        model: nn.Module,
        store: AdapterStore | str | Path | None = None,
        *,
        slots: int = 256,
        host_bytes: int = 1 << 30,
    ) -> None:
        if slots < 1 or host_bytes < 0:
            raise SpecError(f"slots={slots}, host_bytes={host_bytes} hold no adapter; give larger numbers.")
        self.model = cast("nn.Module", getattr(model, "_orig_mod", model))
        if any(isinstance(module, BaseTunerLayer) for module in self.model.modules()):
            raise SpecError("the model carries adapters already; give the bank a base model without any.")
        parameter = next(self.model.parameters())
        self.slots = slots
        self._frames = Frames(torch.promote_types(parameter.dtype, torch.float32), parameter.device)
        self._library = Library(self.model, self._frames, store, host_bytes)
        self._placed: OrderedDict[Hashable, _Placement] = OrderedDict()
        self._pins: Counter[Hashable] = Counter()
        self._slots_change = threading.Condition()
        self._rows = self._hits = self._evictions = 0

    def add(self, name: str, adapter: SavedAdapter | str | Path) -> None:
        """Serve an adapter that is in no store, or another one in place of an earlier one of its name.

        It hides one of the same name in the store, and stays in memory until it is removed.

        Args:
            name: The name that batches use.
            adapter: As for `open_adapter`.

        Raises:
            AdapterFileError: If it is damaged, or belongs to another model.
            SpecError: If it has something that a bank cannot serve.
        """
        self._library.add(name, adapter)

    def remove(self, name: str) -> None:
        """Stop serving an adapter of `add`, from the next batch on.

        Raises:
            SpecError: If there is none of this name.
        """
        self._library.remove(name)

    def has(self, name: str) -> bool:
        """Whether there is an adapter of this name now.

        Raises:
            StoreError: If the store cannot be read.
        """
        return self._library.has(name)

    def page(
        self, patterns: Sequence[str] = ("*",), *, after: str = "", limit: int = 1000
    ) -> list[ListedAdapter]:
        """Return adapters that can be named, in the order of their names.

        Args:
            patterns: Names, or beginnings of names that end in `*`, of which one fits each adapter.
            after: Only names behind this one.
            limit: The most adapters.

        Raises:
            StoreError: If the store cannot be read.
        """
        return self._library.page(patterns, after, limit)

    def find(self, names: Iterable[str]) -> dict[str, ReadyAdapter]:
        """Return adapters by name as they are now, in memory.

        Raises:
            AdapterFileError: If an adapter is damaged, or belongs to another model.
            SpecError: If there is none of a name, or it cannot be served.
            StoreError: If the store cannot be read.
        """
        return self._library.find(list(dict.fromkeys(names)))

    def manifest(self, name: str) -> Manifest | None:
        """Return the manifest of an adapter as it is now; None if it has none.

        Raises:
            AdapterFileError: If the adapter is damaged, or belongs to another model.
            SpecError: If there is none of this name, or it cannot be served.
            StoreError: If the store cannot be read.
        """
        return self.find([name])[name].manifest

    def check(self, adapter: SavedAdapter | str | Path) -> None:
        """Check that an adapter can be served, without keeping it.

        Raises:
            AdapterFileError: If it is damaged, or belongs to another model.
            SpecError: If it has something that a bank cannot serve.
        """
        self._library.check(adapter)

    @property
    def stats(self) -> BankStats:
        """Counts since the bank was made."""
        library = self._library.stats
        return BankStats(
            self._rows,
            self._hits,
            library.hits,
            library.loads,
            self._evictions,
            len(self._placed),
            library.host_bytes,
        )

    @contextmanager
    def batch(self, names: Iterable[str | None], *, times: int = 1, keep: bool = False) -> Generator[Batch]:
        """Make the adapters of a batch ready, and hold them so until the block ends.

        Args:
            names: The name of each row's adapter; None for the base model.
            times: How often each row will be repeated, as by beam search.
            keep: Whether several passes will be made, as to generate; tensors are then gathered once.

        Raises:
            AdapterFileError: If an adapter is damaged, or belongs to another model.
            SpecError: If an adapter is unknown, cannot be served, or there are more of them than slots.
            StoreError: If the store cannot be read.
        """
        with self.hold(names) as adapters:
            yield self.batch_of(adapters, times=times, keep=keep)

    @contextmanager
    def hold(self, names: Iterable[str | None]) -> Generator[list[ReadyAdapter | None]]:
        """Put adapters into slots as they are now, and hold them there until the block ends.

        They stay the same ones if others take their names meanwhile.

        Args:
            names: The name of each row's adapter; None for the base model.

        Yields:
            The adapter of each row, for `batch_of`.

        Raises:
            AdapterFileError: If an adapter is damaged, or belongs to another model.
            SpecError: If an adapter is unknown, cannot be served, or there are more of them than slots.
            StoreError: If the store cannot be read.
        """
        rows = list(names)
        different = list(dict.fromkeys(name for name in rows if name is not None))
        if len(different) > self.slots:
            raise SpecError(
                f"the batch names {len(different)} adapters and the bank has {self.slots} slots; send fewer "
                "rows at a time, or make the bank with more slots."
            )
        while (adapters := self._try_place(self._library.find(different), rows)) is None:
            pass  # an adapter that was in a slot, and nowhere else, has just left it
        try:
            yield adapters
        finally:
            with self._slots_change:
                digests = {adapter.digest for adapter in adapters if adapter is not None}
                self._pins = self._pins - Counter(digests)  # without those that no batch needs any more
                self._slots_change.notify_all()

    def batch_of(
        self, adapters: Sequence[ReadyAdapter | None], *, times: int = 1, keep: bool = False
    ) -> Batch:
        """Return a batch of adapters that are held.

        Args:
            adapters: The adapter of each row, from `hold`.
            times: How often each row will be repeated, as by beam search.
            keep: Whether several passes will be made, as to generate; tensors are then gathered once.
        """
        with self._slots_change:
            digests = [None if adapter is None else adapter.digest for adapter in adapters]
            return Batch(adapters, self._frame_rows(digests, keep=keep), times)

    def _try_place(
        self, by_name: Mapping[str, ReadyAdapter], rows: Sequence[str | None]
    ) -> list[ReadyAdapter | None] | None:
        """Put the adapters of rows into slots; None if one is neither there nor in memory any more."""
        adapters = {adapter.digest: adapter for adapter in by_name.values()}
        digests = [None if name is None else by_name[name].digest for name in rows]
        with self._slots_change:
            hits = sum(digest in self._placed for digest in digests)
            if not self._place(adapters):
                return None
            self._rows += len(rows) - digests.count(None)
            self._hits += hits
            return [None if digest is None else self._placed[digest].adapter for digest in digests]

    def _place(self, adapters: Mapping[Hashable, ReadyAdapter]) -> bool:
        """Put adapters into slots, all at once, and pin them; wait while other batches have the slots."""
        while True:
            missing = [digest for digest in adapters if digest not in self._placed]
            if any(adapters[digest].values is None for digest in missing):
                return False
            surplus = max(len(self._placed) + len(missing) - self.slots, 0)
            idle = (old for old in self._placed if old not in adapters and old not in self._pins)
            leaving = list(islice(idle, surplus))
            if len(leaving) == surplus:
                break
            self._slots_change.wait()
        for digest in leaving:
            for frame, slot in self._placed.pop(digest).slots:
                frame.release(slot)
            self._evictions += 1
        for digest in missing:
            adapter = adapters[digest]
            pairs = zip(adapter.template.frames, adapter.values or (), strict=True)
            slots = tuple((frame, frame.place(values)) for frame, values in pairs)
            self._placed[digest] = _Placement(self._library.note_placed(adapter), slots)
        for digest in adapters:
            self._placed.move_to_end(digest)
            self._pins[digest] += 1
        return True

    def _frame_rows(self, digests: Sequence[Hashable | None], *, keep: bool) -> list[FrameRows]:
        """Return the rows of a batch by frame."""
        rows: dict[Frame, tuple[list[int], list[int]]] = {}
        for row, digest in enumerate(digests):
            for frame, slot in () if digest is None else self._placed[digest].slots:
                indices, slots = rows.setdefault(frame, ([], []))
                indices.append(row)
                slots.append(slot)
        return [
            FrameRows(
                frame,
                None if len(indices) == len(digests) else _index(indices, frame),
                _index(slots, frame),
                keep=keep and len(slots) * frame.size * frame.dtype.itemsize <= _MOST_KEPT,
            )
            for frame, (indices, slots) in rows.items()
        ]

    def close(self) -> None:
        """Close the store's file; only adapters of `add` can be served afterwards."""
        self._library.close()

    def __enter__(self) -> Self:
        """Return the bank."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()


def _index(values: Sequence[int], frame: Frame) -> Tensor:
    return torch.tensor(values, device=frame.table.device)
