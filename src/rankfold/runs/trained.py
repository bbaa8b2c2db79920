"""A trained adapter: its saved files, its manifest, and the record of its run if that is beside it."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

from rankfold.errors import AdapterFileError
from rankfold.files import sha256_of_file, write_whole
from rankfold.runs.record import RunRecord
from rankfold.runs.records import find_record
from rankfold.runs.resume import remove_leftover
from rankfold.store.adapter import CONFIG_NAME, WEIGHTS_NAME, SavedAdapter, parse_config, spell_config
from rankfold.store.manifest import MANIFEST_NAME, BaseManifest, Manifest, TaskManifest
from rankfold.store.saved import open_adapter
from rankfold.tasks.kinds import find_kind, kind_names

_DIGEST_DIGITS = 64


@final
@dataclass(frozen=True, slots=True)
class TrainedAdapter:
    """A saved adapter with everything that is known about its training.

    Args:
        saved: Its files as values.
        manifest: Its manifest; that of its record, where an earlier rankfold wrote none. None if neither is
            there.
        record: The record of its run, which only the run's own folder has.
    """

    saved: SavedAdapter
    manifest: Manifest | None
    record: RunRecord | None

    @property
    def label_names(self) -> tuple[str, ...] | None:
        """The class names of its task, if it has classes and they are known."""
        return None if self.manifest is None else self.manifest.label_names


def open_trained(location: str | Path) -> TrainedAdapter:
    """Read a saved adapter with its manifest and its record.

    Args:
        location: As for `open_adapter`.

    Raises:
        AdapterFileError: If there is no adapter, it is damaged, or its weights are not those of the run.
        DataError: If the record is damaged.
        SpecError: If the store has no record of this name.
        StoreError: If the store cannot be read.
    """
    remove_leftover(Path(location))
    _check_no_model(Path(location))
    saved, record = open_adapter(location), find_record(Path(location))
    saved.check_finite()
    if record is None:
        return TrainedAdapter(saved, saved.manifest, None)
    _check_weights(saved, record)
    if saved.manifest is None:
        return TrainedAdapter(saved, manifest_of(record), record)
    _check_task(saved, saved.manifest.task, record)
    return TrainedAdapter(saved, saved.manifest, record)


def _check_no_model(folder: Path) -> None:
    if (folder / "config.json").is_file() and not (folder / CONFIG_NAME).is_file():
        raise AdapterFileError(
            f"'{folder}' is a whole model, such as a merged export, and no adapter; name the adapter that it "
            "was made from, or load the model with transformers."
        )


def _check_weights(saved: SavedAdapter, record: RunRecord) -> None:
    if record.weights_sha256 not in (None, saved.sha256()[WEIGHTS_NAME]):
        raise AdapterFileError(
            f"the weights of {saved.title} are not those that its run saved, whose digest is in run.json; "
            "copy the folder again, or, if you changed them yourself, move run.json away."
        )


def _check_task(saved: SavedAdapter, task: TaskManifest | None, record: RunRecord) -> None:
    """Check that the manifest has the task of the record, whose kind may have had another name then."""
    for name in ("kind", "label_names", "settings"):
        now, then = getattr(task, name, None), getattr(record.task, name)
        if now != then and not (name == "kind" and _was_called(now, then)):
            raise AdapterFileError(
                f"the '{MANIFEST_NAME}' of {saved.title} has another 'task.{name}' than run.json, the "
                "record of its run; copy both again, or, if you changed it yourself, move run.json away."
            )


def _was_called(kind: str | None, former_name: str) -> bool:
    return kind in kind_names() and former_name in find_kind(kind).former_names


def manifest_of(record: RunRecord) -> Manifest:
    """Return the manifest of a run's adapter."""
    task, base, max_length = record.task, record.model, record.training.max_length
    return Manifest(
        task=TaskManifest(
            name=task.name,
            kind=task.kind,
            label_names=task.label_names,
            settings=task.settings,
            metrics=(task.metric, *(name for name in record.metrics if name != task.metric)),
            scoring=task.scoring,
            results={name: value for name, value in record.metrics.items() if math.isfinite(value)},
        ),
        base=BaseManifest(
            base.name, base.source, base.sha256 if len(base.sha256) == _DIGEST_DIGITS else None
        ),
        columns=record.data.columns,
        max_length=max_length or None,
        weights_sha256=record.weights_sha256,
        rankfold=record.versions.get("rankfold", ""),
    )


def finish_adapter(folder: Path, record: RunRecord, base_name: str) -> RunRecord:
    """Write the manifest beside an adapter that PEFT has saved, and its base's name into its configuration.

    PEFT has the folder that the base was loaded from, which for a packaged model is a place of this machine.

    Args:
        folder: The folder.
        record: The record of its run.
        base_name: The base model, as another machine knows it.

    Returns:
        The record, with the digest of the weights.
    """
    config = folder / CONFIG_NAME
    values = parse_config(config.read_bytes())
    write_whole(config, spell_config({**values, "base_model_name_or_path": base_name}))
    record = replace(record, weights_sha256=sha256_of_file(folder / WEIGHTS_NAME))
    write_whole(folder / MANIFEST_NAME, manifest_of(record).to_json())
    return record
