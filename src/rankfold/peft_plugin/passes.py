"""Forward passes of a model by thread: the adapter of each row, and changes of adapters meanwhile.

Threads may run one model side by side. The `adapter_names` of a call hold for its thread alone. Which
adapter is active, and whether adapters are disabled or merged, belongs to the model; so a pass in which
another thread changes that, and a pass that begins with the choice of another thread in place of its own,
raises an error instead of answering with the wrong adapter.
"""

import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import nn

from rankfold.errors import ThreadError

AdapterState = tuple[tuple[str, ...], bool, bool]
"""The active adapters of a layer, whether they are disabled, and whether some are merged."""


@final
class _Rows(threading.local):
    """Names of the adapters of the rows that this thread's call is about, by module; None for no names."""

    names: Mapping[nn.Module, list[str]] | None = None


_ROWS = _Rows()


def row_adapters(module: nn.Module) -> list[str] | None:
    """Return the adapter of each row that a module gets in this thread's pass; None if none were named."""
    return None if _ROWS.names is None else _ROWS.names.get(module)


def all_row_adapters() -> Mapping[nn.Module, list[str]] | None:
    """Return the adapter of each row by module, in this thread's pass; None if none were named."""
    return _ROWS.names


@contextmanager
def rows_with_adapters(names: Mapping[nn.Module, list[str]]) -> Generator[None]:
    """Name the adapter of each row for the time of one call in this thread.

    Args:
        names: By module, the names in the order of the rows that it gets.
    """
    before, _ROWS.names = _ROWS.names, names
    try:
        yield
    finally:
        _ROWS.names = before


@final
class _ThisThread(threading.local):
    """Per-thread state of forward passes: the adapters it began with, and those it chose.

    Attributes:
        version: The version of the adapters that the pass under way began with; None outside of a pass.
        choice: The state that the thread chose last; None if it never did.
    """

    version: int | None = None
    choice: AdapterState | None = None


@final
class ForwardPasses:
    """Forward passes of one model. Register `begin` and `end` as hooks of the model."""

    def __init__(self) -> None:
        self._version = 0
        self._state: AdapterState | None = None
        self._changed_by: int | None = None
        self._changing: int | None = None
        self.rescaled_by: int | None = None
        self._running: set[int] = set()
        self._thread = _ThisThread()

    def __reduce__(self) -> tuple[Any, ...]:
        """Let a copy or a pickle begin without passes."""
        return ForwardPasses, ()

    def begin(self, _module: nn.Module, _args: Any) -> None:
        """Start a pass of this thread: a forward pre-hook.

        Raises:
            ThreadError: If another thread changed the adapters since this one chose them, or has them
                disabled.
        """
        if torch.compiler.is_compiling():
            return
        me = threading.get_ident()
        self._running.add(me)
        self._thread.version = self._version
        if self._changing not in (None, me):
            raise ThreadError("another thread changes the adapters now; run the model when it is done.")
        if self._changed_by in (None, me) or self._state is None:
            return
        choice, (active, is_disabled, _) = self._thread.choice, self._state
        is_disabled_elsewhere = choice is None and is_disabled and self._changed_by in _living_threads()
        if is_disabled_elsewhere or choice not in (None, self._state):
            now = "disabled the adapters" if is_disabled else f"activated {', '.join(active)}"
            raise ThreadError(
                f"another thread {now} since this thread chose its own; name the adapter of each call by "
                "adapter_names, or let one thread at a time choose and run."
            )

    def end(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        """Finish a pass: a forward hook, to be called after an error too."""
        if torch.compiler.is_compiling():
            return
        self._running.discard(threading.get_ident())
        self._thread.version = None

    def check_unchanged(self) -> None:
        """Check that the adapters are those that this thread's pass began with.

        Raises:
            ThreadError: If another thread changed them since.
        """
        if self._thread.version not in (None, self._version):
            raise ThreadError(
                "another thread changed the active adapters during this pass; name the adapter of each call "
                "by adapter_names, or let one thread at a time choose and run."
            )

    def check_can_change(self) -> None:
        """Check that no other thread runs the model now.

        Raises:
            ThreadError: If one does.
        """
        if not self._running:
            return
        if (self._running - {threading.get_ident()}) & _living_threads():
            self._version += 1  # the pass may have begun between the changes of two layers
            raise ThreadError(
                "adapters cannot be activated, disabled, merged, deleted, rescaled or replaced while another "
                "thread runs the model; wait for it, or name the adapter of each call by adapter_names."
            )

    @contextmanager
    def changing(self) -> Generator[None]:
        """Change the values or the strength of adapters while no other thread runs the model.

        Raises:
            ThreadError: If another thread runs it, or changes or rescales adapters itself.
        """
        me = threading.get_ident()
        if self._changing not in (None, me) or self.rescaled_by not in (None, me):
            raise ThreadError("another thread changes or rescales the adapters now; wait for it.")
        # A pass that begins from here on sees this, and one that began before is seen by the check.
        self._changing = me
        try:
            self.check_can_change()
            yield
        finally:
            self._changing = None
            self.note_values()

    def note_values(self) -> None:
        """Note that this thread changed the values or the strength of adapters."""
        self._version += 1
        if self._thread.version is not None:
            self._thread.version = self._version

    def note_change(self, state: AdapterState) -> None:
        """Note that this thread changed the adapters of a layer, and its new state."""
        self.note_values()
        self._state, self._changed_by = state, threading.get_ident()
        self._thread.choice = state


def _living_threads() -> set[int | None]:
    return {thread.ident for thread in threading.enumerate()}
