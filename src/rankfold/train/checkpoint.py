"""Checkpoints of a training: when one is made, which are whole, and what transformers leaves out of them.

transformers writes and reads adapter, optimiser, scheduler, random states and the position in the data.
Added here is a seal, written last and in one step, that holds the digest of every file: a checkpoint without
a true seal was cut off in the writing and does not count. And the state of callbacks is put back into the
objects that the caller holds, where transformers would make new ones.
"""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, final

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from rankfold.errors import TrainingError
from rankfold.files import flush, sha256_of_file, write_whole
from rankfold.train.distributed import wait_for_all

SEAL = "complete.json"
KEPT = 2
"""How many checkpoints are kept: the newest, and the one before in case a disk loses the newest."""

_NAME = re.compile(r"checkpoint-(\d+)")


@final
@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The checkpoints of one training.

    Args:
        folder: Where they lie; a training goes on from the newest whole one.
        every: Updates from one to the next; 0 makes none.
    """

    folder: Path
    every: int

    def newest(self) -> Path | None:
        """Return the newest whole checkpoint, or None."""
        found = sorted(_steps(self.folder).items(), reverse=True)
        return next((path for _, path in found if is_whole(path)), None)

    def sweep(self) -> None:
        """Remove what was cut off in the writing."""
        for path in _steps(self.folder).values():
            if not is_whole(path):
                shutil.rmtree(path)


def _steps(folder: Path) -> dict[int, Path]:
    matches = ((_NAME.fullmatch(path.name), path) for path in folder.glob("checkpoint-*"))
    return {int(match[1]): path for match, path in matches if match}


def seal(checkpoint: Path) -> None:
    """Declare a checkpoint whole, once all of it is on the disk."""
    files = _files(checkpoint)
    for name in files:
        flush(checkpoint / name)
    digests = {name: sha256_of_file(checkpoint / name) for name in files}
    write_whole(checkpoint / SEAL, json.dumps(digests, indent=1).encode())
    flush(checkpoint.parent)


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint has its seal, and every file as it was sealed."""
    try:
        digests = json.loads((checkpoint / SEAL).read_text("utf-8"))
        return all(sha256_of_file(checkpoint / name) == digest for name, digest in digests.items())
    except (OSError, ValueError, AttributeError):
        return False


def _files(checkpoint: Path) -> list[str]:
    paths = (path for path in checkpoint.rglob("*") if path.is_file())
    return sorted(path.relative_to(checkpoint).as_posix() for path in paths)


@final
class Checkpointer(TrainerCallback):
    """Asks the Trainer for checkpoints, seals them, and restores the state of callbacks.

    It must come before the callbacks that it restores.

    Args:
        checkpoints: Where, and how often.
        callbacks: The others; the ones with a state (`ExportableState`) get it back.
    """

    def __init__(self, checkpoints: Checkpoints, callbacks: Sequence[TrainerCallback]) -> None:
        self._checkpoints = checkpoints
        self._callbacks = callbacks

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Restore the callbacks of a resumed training, and remove what a kill left half-written."""
        if state.is_world_process_zero:
            self._checkpoints.sweep()
        if state.global_step:
            restore_callbacks(self._callbacks, state.stateful_callbacks)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask for a checkpoint if one is due."""
        # After the last update of an epoch its end is still to come, and a resumed training would skip it.
        if not float(state.epoch).is_integer():
            self._ask(state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask for a checkpoint if one is due."""
        self._ask(state, control)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Seal what has been written."""
        # Every process has written its random state before the seal says so.
        wait_for_all()
        if state.is_world_process_zero:
            seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def _ask(self, state: Any, control: Any) -> None:
        step, every = state.global_step, self._checkpoints.every
        # From a checkpoint of the last update, transformers would make one more.
        if every and step % every == 0 and step < state.max_steps:
            control.should_save = True


def restore_callbacks(callbacks: Sequence[TrainerCallback], states: Mapping[str, Any]) -> None:
    """Set the attributes that callbacks of the same classes exported into a checkpoint.

    Args:
        callbacks: Those that are no `ExportableState` are left alone.
        states: By class name, as transformers keeps them.

    Raises:
        TrainingError: If the checkpoint has no state of one of them.
    """
    by_name: dict[str, list[TrainerCallback]] = {}
    for callback in callbacks:
        if isinstance(callback, ExportableState):
            by_name.setdefault(type(callback).__name__, []).append(callback)
    for name, alike in by_name.items():
        found: Any = states.get(name, [])
        known: list[Any] = cast("list[Any]", found) if isinstance(found, list) else [found]
        # Of several callbacks of one class transformers appends the states at every save; the last are right.
        newest = known[-len(alike) :]
        if len(newest) != len(alike):
            raise TrainingError(f"the checkpoint has no state of '{name}'; train from the beginning.")
        for callback, exported in zip(alike, newest, strict=True):
            for attribute, value in exported["attributes"].items():
                setattr(callback, attribute, value)
