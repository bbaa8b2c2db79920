"""A saved rankfold adapter and its base model: read one, find the other, and load both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast, final

import torch
import transformers
from peft import PeftConfig, PeftModel, PeftType
from peft.utils import TaskType
from safetensors import SafetensorError
from torch import nn
from transformers import AutoTokenizer, PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from rankfold.errors import AdapterFileError, SpecError
from rankfold.export.denoising import component_of
from rankfold.models.base import BaseModel, head_options, refuse_pickle, resolve_model
from rankfold.models.names import EMBEDDED_MODELS
from rankfold.models.pipelines import PIPELINE_INDEX, diffusers_class, pipeline_components
from rankfold.peft_plugin.config import RankfoldConfig
from rankfold.progress import quiet_libraries
from rankfold.store.adapter import SavedAdapter
from rankfold.store.loading import load_adapter, peft_config
from rankfold.store.saved import open_adapter
from rankfold.tasks.kinds import find_kind, kind_names

_TASK_HEADS = ("classifier", "score")
_TOKENIZER_FILES = ("tokenizer", "vocab", "spiece", "sentencepiece")

_AUTO_CLASSES: Mapping[str, str] = {
    TaskType.SEQ_CLS: "AutoModelForSequenceClassification",
    TaskType.CAUSAL_LM: "AutoModelForCausalLM",
    TaskType.SEQ_2_SEQ_LM: "AutoModelForSeq2SeqLM",
    TaskType.TOKEN_CLS: "AutoModelForTokenClassification",
    TaskType.QUESTION_ANS: "AutoModelForQuestionAnswering",
    TaskType.FEATURE_EXTRACTION: "AutoModel",
}


@dataclass(frozen=True, slots=True)
class PeftAdapter:
    """A saved adapter of any method of PEFT, without a model.

    Args:
        saved: Its files as values.
        config: Its configuration.
    """

    saved: SavedAdapter
    config: PeftConfig

    @property
    def component(self) -> str | None:
        """The component of a diffusers pipeline that it is for, such as `unet`; None if it is for none."""
        return component_of(self.config)

    @property
    def labels(self) -> int | None:
        """Outputs of the task head that was trained with it, if there is one."""
        outputs: int | None = None  # of the last layer, where the head has several
        for key, tensor in self.saved.tensors.items():
            parts = key.split(".")
            is_adapter = any(part.startswith("rankfold_") for part in parts)
            if parts[-1] == "weight" and any(head in parts for head in _TASK_HEADS) and not is_adapter:
                outputs = tensor.shape[0]
        return outputs


@final
@dataclass(frozen=True, slots=True)
class RankfoldAdapter(PeftAdapter):
    """A saved adapter of a rankfold method, without a model.

    Args:
        saved: Its files as values.
        config: Its configuration.
    """

    config: RankfoldConfig


def open_rankfold_adapter(location: str | Path) -> RankfoldAdapter:
    """Read a saved adapter of a rankfold method.

    Args:
        location: As for `open_adapter`: a folder, a packed file, or a record of a store as `STORE#NAME`.

    Raises:
        AdapterFileError: If there is no adapter, a file is damaged, or the adapter is of another method.
        SpecError: If the store has no record of this name.
        StoreError: If the store cannot be read.
    """
    saved = open_adapter(location)
    saved.check_finite()
    config = peft_config(saved)
    if not isinstance(config, RankfoldConfig):
        remedy = (
            "it is plain LoRA already, so use it as it is"
            if config.peft_type == PeftType.LORA
            else "convert it with PEFT's own save_as_lora, which approximates it"
        )
        raise AdapterFileError(
            f"{saved.title} is of PEFT's method {saved.method}, not of rankfold; {remedy}."
        )
    return RankfoldAdapter(saved, config)


@final
@dataclass(frozen=True, slots=True)
class AdapterBase:
    """A base model at hand, for one adapter.

    Args:
        model: The model's files.
        adapter: The adapter.
        label_names: Names of the classes of the adapter's task head, if it has one and they are known.
    """

    model: BaseModel
    adapter: PeftAdapter
    label_names: Sequence[str] | None = None

    def load(self) -> nn.Module:
        """Return the model in float32, with a head of the adapter's size; the same one each time.

        Raises:
            SpecError: If it cannot be loaded as the class that the adapter was trained on.
        """
        cls = model_class(self.adapter.config, self.model.config())
        library: Any = torch  # untyped here
        with library.random.fork_rng(devices=[]), quiet_libraries():
            library.manual_seed(0)  # for weights that neither file holds, such as those of an unused pooler
            try:
                model = cls.from_pretrained(self.model.loadable(), **self._load_options(cls))
            except UnpicklingError as error:
                raise refuse_pickle(self.model.name) from error
            except (OSError, ValueError, RuntimeError, SafetensorError) as error:
                first = str(error).strip().split("\n", 1)[0].rstrip(".")
                raise SpecError(
                    f"cannot load the model '{self.model.name}' as {cls.__name__} ({first}); check its files."
                ) from error
        return model.eval()

    def load_with_adapter(self) -> PeftModel:
        """Return the model with the adapter on it.

        Raises:
            AdapterFileError: If the adapter does not fit the model.
            SpecError: If the model cannot be loaded as the class that the adapter was trained on.
        """
        return load_adapter(self.load(), self.adapter.saved)

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Return the model's tokenizer, or None if its files have none."""
        location = self.model.loadable()
        if (sibling := self.model.origin.name.replace("text_encoder", "tokenizer")) in self.siblings():
            location = str(self.model.origin.parent / sibling)
        folder = Path(location)
        # Without files some classes make a tokenizer without words.
        if folder.is_dir() and not any(file.name.startswith(_TOKENIZER_FILES) for file in folder.iterdir()):
            return None
        with quiet_libraries():
            try:
                return cast("Any", AutoTokenizer).from_pretrained(location, trust_remote_code=False)
            except (OSError, ValueError, KeyError):
                return None

    def siblings(self) -> tuple[str, ...]:
        """Return the names of the components of the pipeline that the model is a part of; none if of none."""
        return pipeline_components(self.model.origin.parent)

    def _load_options(self, cls: Any) -> dict[str, Any]:
        if cls.__module__.startswith("diffusers."):
            return {"torch_dtype": torch.float32}
        return {"dtype": torch.float32, "trust_remote_code": False, **self._head_options()}

    def _head_options(self) -> dict[str, Any]:
        labels = self.adapter.labels
        if labels is None:
            return {}
        manifest = self.adapter.saved.manifest
        if manifest is not None and manifest.task is not None and manifest.task.kind in kind_names():
            head = find_kind(manifest.task.kind).head(self.label_names)
            if head.num_labels == labels:
                return dict(head.options)
        return head_options(labels, self.label_names)


def find_base(
    adapter: PeftAdapter, model: str | None, label_names: Sequence[str] | None = None
) -> AdapterBase | None:
    """Return the base model of an adapter, or None if it is not at hand.

    Args:
        adapter: The adapter.
        model: The model as for `rankfold train`; if None the embedded model or the folder that the adapter's
            configuration names, where there is one. A hub id in the configuration is not followed: nothing is
            downloaded unasked. Of a pipeline of diffusers its component is taken.
        label_names: Names of the classes of its task head, if they are known.

    Raises:
        SpecError: If there is no such model.
        AdapterFileError: If the label names are not as many as the head has outputs.
    """
    if label_names is not None and adapter.labels is not None and len(label_names) != adapter.labels > 1:
        raise AdapterFileError(
            f"{adapter.saved.title} has a head of {adapter.labels} outputs, but there are "
            f"{len(label_names)} label names; restore the run.json beside it."
        )
    if model is None:
        model = adapter.config.base_model_name_or_path
        files = ("config.json", PIPELINE_INDEX)
        if not model or not (
            model in EMBEDDED_MODELS or any((Path(model) / file).is_file() for file in files)
        ):
            return None
    if adapter.component in pipeline_components(Path(model)):
        model = str(Path(model) / adapter.component)
    return AdapterBase(resolve_model(model), adapter, label_names)


def model_class(config: PeftConfig, base_config: PreTrainedConfig) -> Any:
    """Return the class of transformers to load a base model as.

    The adapter's task type decides; without one, the class of the model that PEFT recorded; without that, the
    architecture in the base model's configuration.

    Args:
        config: The adapter's configuration.
        base_config: The base model's.

    Raises:
        SpecError: If transformers has no such class.
    """
    if config.task_type is not None:
        return getattr(transformers, _AUTO_CLASSES[config.task_type])
    mapping = cast("Mapping[str, str]", config.auto_mapping or {})  # pyright: ignore[reportUnknownMemberType] (PEFT's)
    architectures: list[str] = getattr(base_config, "architectures", None) or []
    name = mapping.get("base_model_class") or next(iter(architectures), None)
    if name is not None and mapping.get("parent_library", "").startswith("diffusers."):
        return diffusers_class(name)
    if name is None:
        return transformers.AutoModel
    # Only transformers' own: a name in a file must not choose what is imported.
    cls: Any = getattr(transformers, name, None)
    if not (isinstance(cls, type) and issubclass(cls, PreTrainedModel)):
        raise SpecError(
            f"transformers has no model '{name}', which the adapter was trained on; "
            "save the adapter again with a task_type."
        )
    return cls
