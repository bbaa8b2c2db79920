"""Frames: adapters of one structure side by side in slots, and the rows of a batch that read them.

A frame is everything that its adapters have in common: the layers, the sizes of their matrices, the routers,
and the frozen sides, which are there once. An adapter's own numbers are one row of its table, a slot.
"""

from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import final
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from rankfold.adapter.gating import MlpPass
from rankfold.adapter.geometry import Embedding
from rankfold.serve.forms import Field, Forms, HeadForm, LayerForm, RouterForm

_FIRST_SLOTS = 8


@final
class Frame:
    """Slots for adapters of one structure; they grow as they are needed.

    Args:
        forms: What an adapter has, by layer.
        size: How many numbers an adapter has.
        fixed: The frozen matrices, by digest.
        dtype: The type that its adapters compute in.
        device: Where they compute.
    """

    def __init__(
        self, forms: Forms, size: int, fixed: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device
    ) -> None:
        self.forms = {form.name: form for form in forms}
        self.size, self.fixed, self.dtype = size, fixed, dtype
        self.table = torch.empty(0, size, dtype=dtype, device=device)
        self._free: list[int] = []

    def place(self, values: Tensor) -> int:
        """Put the numbers of an adapter [size] into a free slot and return it.

        A batch that runs keeps the table that it began with, so that growing does not disturb it.
        """
        if not self._free:
            first = len(self.table)
            table = self.table.new_empty(max(2 * first, _FIRST_SLOTS), self.size)
            table[:first] = self.table
            self._free, self.table = list(range(len(table) - 1, first - 1, -1)), table
        slot = self._free.pop()
        self.table[slot] = values
        return slot

    def release(self, slot: int) -> None:
        """Give a slot back; without adapters the frame keeps no memory."""
        self._free.append(slot)
        if len(self._free) == len(self.table):
            self.table, self._free = self.table.new_empty(0, self.size), []


@final
class Frames:
    """The frames of one base model, and their frozen matrices: each is there once, while something uses it.

    Args:
        dtype: The type that adapters compute in.
        device: Where they compute.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        self._frames: WeakValueDictionary[Forms, Frame] = WeakValueDictionary()
        self._fixed: WeakValueDictionary[str, Tensor] = WeakValueDictionary()

    def intern(self, matrix: Tensor) -> tuple[str, Tensor]:
        """Return the digest of a frozen matrix, and the one tensor that holds it."""
        matrix = matrix.detach().to("cpu", self.dtype).clone(memory_format=torch.contiguous_format)
        content = matrix.flatten().view(torch.uint8).numpy().tobytes()
        digest = blake2b(content + str(tuple(matrix.shape)).encode(), digest_size=16).hexdigest()
        tensor = self._fixed.setdefault(digest, matrix.to(self.device))
        return digest, tensor

    def frame(self, forms: Forms, size: int, fixed: Mapping[str, Tensor]) -> Frame:
        """Return the frame of adapters of these forms."""
        frame = self._frames.get(forms)
        if frame is None:
            frame = self._frames[forms] = Frame(forms, size, fixed, self.dtype, self.device)
        return frame


@final
class FrameRows:
    """The rows of a batch whose adapters are in one frame.

    Args:
        frame: The frame.
        rows: Indices of these rows in the batch; None for all rows in order.
        slots: The slot of each.
        keep: Whether the tensors of a layer are gathered once for all passes of the batch, as to generate.
    """

    def __init__(self, frame: Frame, rows: Tensor | None, slots: Tensor, *, keep: bool = False) -> None:
        self.frame, self.rows, self.slots, self.keep = frame, rows, slots, keep
        self.table = frame.table
        self._gathered: dict[str, dict[str, Tensor]] = {}
        self._passes: dict[str, MlpPass] = {}

    def repeat(self, times: int) -> "FrameRows":
        """Return the rows of a batch in which every row is repeated, as beam search does."""
        rows = self.rows
        if rows is not None:
            rows = (rows[:, None] * times + torch.arange(times, device=rows.device)).flatten()
        return FrameRows(self.frame, rows, self.slots.repeat_interleave(times), keep=self.keep)

    def tensors(self, form: LayerForm | HeadForm) -> dict[str, Tensor]:
        """Return the tensors of a layer by role, [rows, ...]; those that are frozen are for all rows."""
        if form.name in self._gathered:
            return self._gathered[form.name]
        tensors = {
            role: self.table.narrow(1, place.start, place.count)
            .index_select(0, self.slots)
            .view(-1, *place.shape)
            for role, place in form.fields
            if not (role == "down" and isinstance(form, LayerForm) and isinstance(form.geometry, Embedding))
        }
        if isinstance(form, LayerForm):
            tensors |= {role: self.frame.fixed[digest] for role, digest in form.fixed}
        if self.keep:
            self._gathered[form.name] = tensors
        return tensors

    def look_up(self, place: Field, tokens: Tensor) -> Tensor:
        """Return the code [rows, tokens, rank] of tokens [rows, tokens]; only their rows are read."""
        table = self.table.narrow(1, place.start, place.count).view(-1, *place.shape)
        return table[self.slots[:, None], tokens]

    def mlp_pass(self, form: RouterForm, make: Callable[[], MlpPass]) -> MlpPass:
        """Return the pass of an MLP, which its layers share."""
        if form.mlp not in self._passes:
            self._passes[form.mlp] = make()
        return self._passes[form.mlp]
