"""What a saved adapter's folder holds, read without loading it."""

import json
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open

from rankfold.errors import AdapterFileError

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
