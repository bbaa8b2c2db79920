"""Names of base models: the embedded ones, paths, and ids of the hub; checked without torch and network."""

import re
from pathlib import Path

from rankfold.errors import SpecError, nearest, unknown_name

EMBEDDED_MODELS = ("minilm", "smollm2", "smollm2_vision", "emoji_diffusion")

EMBEDDED_LIST = ", ".join(EMBEDDED_MODELS)

REMEDY = f"name {EMBEDDED_LIST}, a folder, or a hub id, and check the network for the last."
"""The end of the error for a model that does not exist."""

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def is_gguf(path: Path) -> bool:
    """Return whether a path is that of a GGUF file."""
    return path.suffix == ".gguf" and path.is_file()


def check_model_name(name: str) -> None:
    """Refuse a name that is neither of an embedded model, nor of a file or folder, nor an id of the hub.

    Raises:
        SpecError: If no model can have the name, or it is nearly that of an embedded one.
    """
    path = Path(name).expanduser()
    if name in EMBEDDED_MODELS or path.is_dir() or is_gguf(path):
        return
    # The hub takes half a minute to say no where there is no network.
    if not _HUB_ID.fullmatch(name) or name.startswith(".") or name.endswith(".gguf"):
        raise SpecError(f"there is no model at '{name}'; {REMEDY}")
    if "/" not in name and nearest(name, EMBEDDED_MODELS):
        raise unknown_name("model", name, EMBEDDED_MODELS)
