"""Structures of the papers' base models, so that they can be counted where their files are not at hand.

Each file holds what transformers needs of a model's `config.json` to build its layers without weights, and
its path is the model's hub id. There is no tokenizer and no setting of generation: nothing can be trained.
"""

from functools import cache
from importlib.resources import as_file, files

from transformers import PreTrainedConfig

from rankfold.errors import unknown_name
from rankfold.models.base import read_config

_ENDING = ".json"


@cache
def architecture_names() -> tuple[str, ...]:
    """Return the hub ids of the models whose structure is here."""
    owners = [owner for owner in files(__name__).iterdir() if owner.is_dir()]
    paths = (f"{owner.name}/{entry.name}" for owner in owners for entry in owner.iterdir())
    return tuple(sorted(name.removesuffix(_ENDING) for name in paths if name.endswith(_ENDING)))


def read_architecture(name: str) -> PreTrainedConfig:
    """Return the configuration of a model, with the classes of its own head if it has one.

    Args:
        name: Its hub id.

    Raises:
        SpecError: If its structure is not here.
    """
    if name not in architecture_names():
        raise unknown_name("architecture", name, architecture_names())
    with as_file(files(__name__) / f"{name}{_ENDING}") as path:
        return read_config(str(path))
