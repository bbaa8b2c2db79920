"""How long work reports what it has done; the command line gives it a face."""

from typing import Protocol, final

EXPECTED = "seconds_left"
"""The field of `Progress.advance` in which work that knows better than its pace states the seconds left."""


class Progress(Protocol):
    """A listener of one piece of work at a time."""

    def start(self, total: int, description: str) -> None:
        """Begin work of `total` units."""
        ...

    def advance(self, done: int, **fields: object) -> None:
        """State that `done` units are finished, with what is worth showing beside (loss, accuracy)."""
        ...

    def finish(self) -> None:
        """End the work, complete or not."""
        ...


@final
class Silent:
    """A `Progress` that shows nothing."""

    def start(self, total: int, description: str) -> None:
        """Show nothing."""

    def advance(self, done: int, **fields: object) -> None:
        """Show nothing."""

    def finish(self) -> None:
        """Show nothing."""
