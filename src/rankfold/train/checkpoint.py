"""Checkpoints of a training: when they are written, which are complete, and the state of callbacks.

transformers writes and reads adapter, optimiser, scheduler, random states and the position in the data.
Added here is a seal, written last and in one step, that holds the digest of every file: a checkpoint without
a valid seal is incomplete and ignored. One with a valid seal may have been changed and sealed again, so its
content is compared with the training before the first update. And the state of callbacks is restored into the
objects that the caller holds, where transformers would make new ones.
"""

import json
import re
import shutil
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast, final, runtime_checkable

import torch
from peft import PeftModel
from peft import get_peft_model_state_dict as _state_dict  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from rankfold.errors import CheckpointError, DiskError
from rankfold.files import CONFIG_NAME, WEIGHTS_NAME, flush, sha256_of_file, write_whole
from rankfold.progress import quiet_libraries
from rankfold.store.saved import open_adapter
from rankfold.train.distributed import wait_for_all

SEAL = "complete.json"
MAX_CHECKPOINTS = 2
"""Checkpoints on disk: the newest, and the one before in case a disk loses the newest."""

_NAME = re.compile(r"checkpoint-(\d+)")


@final
@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The checkpoints of one training.

    Args:
        folder: Their folder; a training resumes from the newest complete one.
        every: Updates between two checkpoints; 0 writes none.
    """

    folder: Path
    every: int

    def newest(self) -> Path | None:
        """Return the newest complete checkpoint, or None."""
        newest_first = sorted(_steps(self.folder).items(), reverse=True)
        return next((path for _, path in newest_first if is_complete(path)), None)

    def remove_partial(self) -> None:
        """Delete partially written checkpoints."""
        for path in _steps(self.folder).values():
            if not is_complete(path):
                shutil.rmtree(path)


def _steps(folder: Path) -> dict[int, Path]:
    matches = ((_NAME.fullmatch(path.name), path) for path in folder.glob("checkpoint-*"))
    return {int(match[1]): path for match, path in matches if match}


def seal(checkpoint: Path) -> None:
    """Mark a checkpoint as complete, once all of it is on the disk."""
    files = _files(checkpoint)
    for name in files:
        flush(checkpoint / name)
    digests = {name: sha256_of_file(checkpoint / name) for name in files}
    write_whole(checkpoint / SEAL, json.dumps(digests, indent=1).encode())
    flush(checkpoint.parent)


def is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint has a seal, and every file the sealed content."""
    try:
        digests = json.loads((checkpoint / SEAL).read_text("utf-8"))
        return all(sha256_of_file(checkpoint / name) == digest for name, digest in digests.items())
    except (OSError, ValueError, AttributeError):
        return False


def _files(checkpoint: Path) -> list[str]:
    paths = (path for path in checkpoint.rglob("*") if path.is_file())
    return sorted(path.relative_to(checkpoint).as_posix() for path in paths)


@runtime_checkable
class HasFiles(Protocol):
    """A callback whose state is more than JSON: it writes files into a checkpoint, and reads them again."""

    def write_files(self, checkpoint: Path) -> None:
        """Write the files of this state."""

    def read_files(self, checkpoint: Path) -> None:
        """Read the files that `write_files` wrote, if they are there."""


@final
class Checkpointer(TrainerCallback):
    """Callback that requests checkpoints from the Trainer, seals them, and restores other callbacks' state.

    It must come before the callbacks that it restores.

    Args:
        checkpoints: Folder and interval.
        callbacks: The other callbacks; the state of every `ExportableState` is restored.
    """

    def __init__(self, checkpoints: Checkpoints, callbacks: Sequence[TrainerCallback]) -> None:
        self._checkpoints = checkpoints
        self._callbacks = callbacks
        self._resumed: Path | None = None
        self._has_begun = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Restore the callbacks of a resumed training, and delete partially written checkpoints."""
        if state.is_world_process_zero:
            self._checkpoints.remove_partial()
        if self._resumed is not None:
            _check_state(self._resumed, state, others)
        if state.global_step:
            restore_callbacks(self._callbacks, state.stateful_callbacks)
            for callback in self._callbacks:
                if isinstance(callback, HasFiles):
                    callback.read_files(self._checkpoint(args, state))

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note that everything of a checkpoint was read."""
        self._has_begun = True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Request a checkpoint if one is due."""
        # After the last update of an epoch its end is still to come, and a resumed training would skip it.
        if not float(state.epoch).is_integer():
            self._request_checkpoint(state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Request a checkpoint if one is due."""
        self._request_checkpoint(state, control)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Seal the checkpoint."""
        # Every process writes its own random state.
        wait_for_all()
        if state.is_world_process_zero:
            for callback in self._callbacks:
                if isinstance(callback, HasFiles):
                    callback.write_files(self._checkpoint(args, state))
            seal(self._checkpoint(args, state))

    @contextmanager
    def resuming(self, checkpoint: Path | None, model: nn.Module) -> Generator[None]:
        """Context of a training that resumes from a checkpoint, whose faults become errors that name it.

        Args:
            checkpoint: The checkpoint; None if the training starts anew.
            model: The model in training.

        Raises:
            CheckpointError: If a file of it is missing, cannot be read, or is not of this training.
        """
        if checkpoint is None:
            yield
            return
        self._resumed = checkpoint
        try:
            _check_files(checkpoint, model)
            yield
        except (CheckpointError, DiskError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            if self._has_begun:
                raise
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise _misfit(checkpoint, f"it cannot be read ({lines[0].rstrip('.')})") from error

    def _checkpoint(self, args: Any, state: Any) -> Path:
        return Path(args.output_dir) / f"checkpoint-{state.global_step}"

    def _request_checkpoint(self, state: Any, control: Any) -> None:
        step, every = state.global_step, self._checkpoints.every
        # From a checkpoint of the last update, transformers would make one more.
        is_due = every and step % every == 0 and step < state.max_steps
        if is_due and not control.should_training_stop:
            control.should_save = True


def restore_callbacks(callbacks: Sequence[TrainerCallback], states: Mapping[str, Any]) -> None:
    """Restore the attributes that callbacks of the same classes exported into a checkpoint.

    Args:
        callbacks: Those that are no `ExportableState` are skipped.
        states: By class name, as transformers stores them.

    Raises:
        CheckpointError: If the checkpoint has no state of one of them.
    """
    by_name: dict[str, list[TrainerCallback]] = {}
    for callback in callbacks:
        if isinstance(callback, ExportableState):
            by_name.setdefault(type(callback).__name__, []).append(callback)
    for name, instances in by_name.items():
        value: Any = states.get(name, [])
        exports: list[Any] = cast("list[Any]", value) if isinstance(value, list) else [value]
        # Of several callbacks of one class transformers appends the states at every save; the last are right.
        newest = exports[-len(instances) :]
        if len(newest) != len(instances):
            raise CheckpointError(f"the checkpoint has no state of '{name}'; start a new training.")
        for callback, export in zip(instances, newest, strict=True):
            for attribute, content in export["attributes"].items():
                setattr(callback, attribute, content)


_STATE, _OPTIMIZER, _SCHEDULER = "trainer_state.json", "optimizer.pt", "scheduler.pt"


def _misfit(checkpoint: Path, fault: str) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint '{checkpoint}' is not of this run: {fault}; remove it and add --resume, which goes "
        "on from the one before, or add --overwrite to start again."
    )


def _check_files(checkpoint: Path, model: nn.Module) -> None:
    """Check that the files are there, and that the adapter's tensors are those of the model in training."""
    adapter_files = [CONFIG_NAME, WEIGHTS_NAME] if isinstance(model, PeftModel) else []
    for name in (_STATE, _OPTIMIZER, _SCHEDULER, *adapter_files):
        if not (checkpoint / name).is_file():
            raise _misfit(checkpoint, f"'{name}' is missing")
    if not isinstance(model, PeftModel):
        return
    saved = open_adapter(checkpoint)
    saved.check_finite()
    with quiet_libraries():
        current = _state_dict(model)
    for name, tensor in saved.tensors.items():
        if name in current and _form(tensor) != _form(current[name]):
            fault = f"'{name}' in '{WEIGHTS_NAME}' is {_form(tensor)}, and in training {_form(current[name])}"
            raise _misfit(checkpoint, fault)


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def _check_state(checkpoint: Path, state: Any, others: Mapping[str, Any]) -> None:
    """Check what transformers has read: the position, the optimiser and the schedule of the learning rate."""
    step = int(checkpoint.name.rpartition("-")[2])
    if state.global_step != step or not 0 < step < state.max_steps:
        raise _misfit(checkpoint, f"'{_STATE}' is of step {state.global_step} of {state.max_steps}")
    if (scheduler := others.get("lr_scheduler")) is not None and scheduler.last_epoch != step:
        raise _misfit(checkpoint, f"'{_SCHEDULER}' is of step {scheduler.last_epoch}")
    optimizer = others.get("optimizer")
    moments: Mapping[Tensor, Mapping[str, Any]] = {} if optimizer is None else optimizer.state
    for parameter, values in moments.items():
        for name, value in values.items():
            if not isinstance(value, Tensor):
                continue
            if not value.isfinite().all():
                raise _misfit(checkpoint, f"'{name}' in '{_OPTIMIZER}' has values that are not finite")
            if name in _MOMENTS and value.shape != parameter.shape:
                fault = f"'{name}' in '{_OPTIMIZER}' has shape {tuple(value.shape)}, and its parameter "
                raise _misfit(checkpoint, f"{fault}{tuple(parameter.shape)}")


_MOMENTS = ("exp_avg", "exp_avg_sq", "momentum_buffer")
