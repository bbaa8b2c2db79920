"""The base model of a saved adapter: found where its configuration says, loaded as what it was trained on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, final

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoTokenizer
from transformers.modeling_utils import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from rankfold.errors import AdapterFileError, SpecError
from rankfold.export.model_class import model_class
from rankfold.export.opened import OpenedAdapter
from rankfold.models.base import BaseModel, head_options, resolve_model
from rankfold.models.kind import Kind
from rankfold.progress import quiet_libraries
from rankfold.store.loading import load_adapter

_TOKENIZER_FILES = ("tokenizer", "vocab", "spiece", "sentencepiece")


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

    def load(self) -> PreTrainedModel:
        """Return the model in float32, with a head of the adapter's size; the same one each time.

        Raises:
            SpecError: If it cannot be loaded as what the adapter was trained on.
        """
        cls = model_class(self.saved.config, self.found.config())
        library: Any = torch  # untyped here
        with library.random.fork_rng(devices=[]), quiet_libraries():
            library.manual_seed(0)  # for what neither file holds, such as a pooler that nothing reads
            try:
                model = cls.from_pretrained(
                    self.found.loadable(), dtype=torch.float32, **self._head_options()
                )
            except (OSError, ValueError, RuntimeError, SafetensorError) as error:
                first = str(error).strip().split("\n", 1)[0].rstrip(".")
                raise SpecError(
                    f"cannot load the model '{self.found.name}' as {cls.__name__} ({first}); check its files."
                ) from error
        return model.eval()

    def adapted(self) -> PeftModel:
        """Return the model with the adapter on it.

        Raises:
            AdapterFileError: If the adapter does not fit the model.
            SpecError: If the model cannot be loaded as what the adapter was trained on.
        """
        return load_adapter(self.load(), self.saved.folder)

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Return the model's tokenizer, or None if its files have none."""
        location = self.found.loadable()
        folder = Path(location)
        # Without files some classes make a tokenizer without words.
        if folder.is_dir() and not any(each.name.startswith(_TOKENIZER_FILES) for each in folder.iterdir()):
            return None
        with quiet_libraries():
            try:
                return cast("Any", AutoTokenizer).from_pretrained(location)
            except (OSError, ValueError, KeyError):
                return None

    def _head_options(self) -> dict[str, Any]:
        labels = self.saved.labels
        if labels is None:
            return {}
        if labels == 1:
            return head_options(Kind.REGRESSION, None)
        return head_options(
            Kind.CLASSIFICATION, self.label_names or [f"LABEL_{index}" for index in range(labels)]
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
