"""What a saved adapter's folder holds, read without loading it."""

import json
import warnings
from pathlib import Path
from typing import Any, cast

import peft
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError, safe_open
from transformers.modeling_utils import PreTrainedModel

from rankfold.errors import AdapterFileError
from rankfold.progress import quiet_libraries

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"

_ITEM_BYTES = {
    "F64": 8,
    "I64": 8,
    "U64": 8,
    "F32": 4,
    "I32": 4,
    "U32": 4,
    "F16": 2,
    "BF16": 2,
    "I16": 2,
    "U16": 2,
}


def stored_bytes(folder: Path) -> dict[str, int]:
    """Return the tensors of an adapter's weights file with the bytes of their values.

    Raises:
        AdapterFileError: If the folder is no adapter, or a file is damaged.
    """
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (folder / name).is_file():
            fault = f"'{folder}' has no {name}" if folder.is_dir() else f"there is no folder '{folder}'"
            raise AdapterFileError(f"{fault}; name one that holds a saved adapter.")
    config = folder / CONFIG_NAME
    try:
        content = json.loads(config.read_text("utf-8"))
    except ValueError as error:
        raise AdapterFileError(f"'{config}' cannot be read ({error}); save the adapter again.") from error
    if not isinstance(content, dict):
        raise AdapterFileError(f"'{config}' is no JSON object; save the adapter again.")
    weights = folder / WEIGHTS_NAME
    sizes: dict[str, int] = {}
    try:
        with cast(Any, safe_open)(weights, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (it is not a mapping)
                tensor = file.get_slice(key)
                count = 1
                for side in tensor.get_shape():
                    count *= side
                sizes[key] = count * _ITEM_BYTES.get(tensor.get_dtype(), 1)
    except (SafetensorError, OSError) as error:
        raise AdapterFileError(
            f"'{weights}' is damaged ({str(error).rstrip('.')}); copy it again or train the adapter again."
        ) from error
    return sizes


def load_adapter(base: PreTrainedModel, folder: Path) -> PeftModel:
    """Put the adapter of a folder on a base model, in evaluation mode.

    Args:
        base: The model it was trained on, with a head of the same size.
        folder: What `save_pretrained` of a PEFT model, or `rankfold train`, wrote.

    Raises:
        AdapterFileError: If the folder is no adapter, a file is damaged, or it does not fit the base.
    """
    stored = set(stored_bytes(folder))
    config = read_adapter_config(folder)
    try:
        with quiet_libraries():
            # Counted below, with both sides.
            warnings.filterwarnings("ignore", message="Found missing adapter keys")
            # It would look there for a vocabulary that was resized, which the tensors tell.
            warnings.filterwarnings("ignore", message="Could not find a config file in")
            model: PeftModel = cast(Any, PeftModel).from_pretrained(base, str(folder), config=config)
            expected = set(cast(Any, peft).get_peft_model_state_dict(model))
    except AdapterFileError:
        raise
    except (RuntimeError, ValueError, TypeError, SafetensorError) as error:
        raise _misfit(folder, _first_reason(error)) from error
    for problem, keys in (("lacks", expected - stored), ("has no place for", stored - expected)):
        if keys:
            reason = f"it {problem} '{min(keys)}'" + (f" and {len(keys) - 1} more" if len(keys) > 1 else "")
            raise _misfit(folder, reason)
    return model.eval()


def read_adapter_config(folder: Path) -> PeftConfig:
    """Return the configuration of a saved adapter.

    Raises:
        AdapterFileError: If it names no method, or one that is not known, or is damaged.
    """
    file = folder / CONFIG_NAME
    if "peft_type" not in json.loads(file.read_text("utf-8")):
        raise AdapterFileError(f"'{file}' names no method ('peft_type'); save the adapter again.")
    try:
        with warnings.catch_warnings():
            # PEFT would go on without the fields that it does not know.
            warnings.filterwarnings("error", message="Unexpected keyword arguments", category=UserWarning)
            return cast(Any, PeftConfig).from_pretrained(str(folder))
    except KeyError as error:
        raise AdapterFileError(
            f"'{file}' has the unknown method {error}; update rankfold and peft."
        ) from error
    except UserWarning as warning:
        names = str(warning).partition("[")[2].partition("]")[0]
        raise AdapterFileError(
            f"'{file}' has the unknown fields {names}; update rankfold and peft."
        ) from warning
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise AdapterFileError(f"'{file}' is damaged ({reason}); save the adapter again.") from error


def _first_reason(error: Exception) -> str:
    """Return what an error says; of a list of tensors that do not fit, the first one."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].endswith(":"):
        return lines[1].rstrip(".")
    return " ".join(lines)[:300].rstrip(".")


def _misfit(folder: Path, reason: str) -> AdapterFileError:
    return AdapterFileError(
        f"the adapter '{folder}' does not fit this base model ({reason}); "
        "name the model it was trained on with --model."
    )
