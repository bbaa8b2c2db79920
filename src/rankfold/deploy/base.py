"""The base model of a saved adapter: found where its configuration says, loaded for the adapter's task."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from peft import PeftModel

from rankfold.deploy.opened import OpenedAdapter
from rankfold.errors import AdapterFileError, SpecError
from rankfold.train.load import load_adapter
from rankfold.train.models import BaseModel, Kind, LoadedModel, load_model, resolve_model


@final
@dataclass(frozen=True, slots=True)
class Base:
    """A base model that is at hand, for one adapter.

    Args:
        found: The model.
        saved: The adapter.
        label_names: Names of the classes of the adapter's head, if it has one and they are known.
    """

    found: BaseModel
    saved: OpenedAdapter
    label_names: Sequence[str] | None = None

    def load(self) -> LoadedModel:
        """Return the model in float32, with a head of the adapter's size; the same one each time.

        Raises:
            SpecError: If it cannot be loaded for the adapter's task.
        """
        library: Any = torch  # untyped here
        with library.random.fork_rng(devices=[]):
            library.manual_seed(0)  # for what neither file holds, such as a pooler that nothing reads
            if self.saved.labels is None:
                self._check_that_it_generates()
                return load_model(self.found, Kind.INSTRUCTION)
            if self.saved.labels == 1:
                return load_model(self.found, Kind.REGRESSION)
            names = self.label_names or [f"LABEL_{index}" for index in range(self.saved.labels)]
            return load_model(self.found, Kind.CLASSIFICATION, names)

    def adapted(self) -> tuple[PeftModel, LoadedModel]:
        """Return the model with the adapter on it, and what it was loaded from.

        Raises:
            AdapterFileError: If the adapter does not fit the model.
            SpecError: If the model cannot be loaded for the adapter's task.
        """
        loaded = self.load()
        return load_adapter(loaded.model, self.saved.folder), loaded

    def _check_that_it_generates(self) -> None:
        if not self.found.is_causal:
            raise SpecError(
                f"the adapter '{self.saved.folder}' has no classification head and '{self.found.name}' does "
                "not generate text, so there are no logits; save the adapter with its head (task_type), or "
                "name a causal model."
            )


def find_base(
    saved: OpenedAdapter, model: str | None, label_names: Sequence[str] | None = None
) -> Base | None:
    """Return the base model of an adapter, if it is at hand.

    Args:
        saved: The adapter.
        model: The model as for `rankfold train`; if None the folder that the adapter's configuration names,
            where there is one. A hub id in the configuration is not followed: nothing is downloaded unasked.
        label_names: Names of the classes of its head, if they are known.

    Raises:
        SpecError: If there is no such model.
        AdapterFileError: If the label names are not as many as the head has outputs.
    """
    if label_names is not None and saved.labels is not None and len(label_names) != saved.labels > 1:
        raise AdapterFileError(
            f"the adapter '{saved.folder}' has a head of {saved.labels} outputs, but there are "
            f"{len(label_names)} label names; restore the run.json beside it."
        )
    if model is None:
        place = saved.config.base_model_name_or_path
        if not place or not (Path(place) / "config.json").is_file():
            return None
        model = place
    return Base(resolve_model(model), saved, label_names)
