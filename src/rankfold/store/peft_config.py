"""What a saved adapter's configuration says of its tensors. PEFT wrote it: other fields are let be."""

from dataclasses import dataclass
from pathlib import Path
from typing import final

from pydantic import ConfigDict, JsonValue, TypeAdapter, ValidationError, with_config

from rankfold.errors import AdapterFileError


@final
@with_config(ConfigDict(extra="ignore", strict=True))
@dataclass(frozen=True, slots=True)
class SavedConfig:
    """The fields that say what a tensor is, and from which seed the frozen ones came.

    Args:
        peft_type: Name of the method; empty if nothing says it.
        modules_to_save: Modules that were trained in full, such as a head.
        projection_prng_key: Seed of VeRA, PVeRA, RandLoRA and FRoD.
        projection_seed: Seed of TinyLoRA's first layer.
        proj_seed: Seed of UniLoRA.
        random_seed: Seed of SHiRA.
        sparse: Whether RandLoRA's bases have one number in three.
        very_sparse: Whether they have one in √n.
        r: The rank, where the method has one for all layers.
    """

    peft_type: str = ""
    modules_to_save: tuple[str, ...] | None = None
    projection_prng_key: int | None = None
    projection_seed: int | None = None
    proj_seed: int | None = None
    random_seed: int | None = None
    sparse: bool = False
    very_sparse: bool = False
    r: JsonValue = None


_CONFIG = TypeAdapter(SavedConfig)


def read_config(path: Path) -> SavedConfig:
    """Read `adapter_config.json`; a file that is not there says nothing.

    Raises:
        AdapterFileError: If it is damaged, or a field has another type.
    """
    return parse_config(path.read_bytes(), path) if path.is_file() else SavedConfig()


def parse_config(content: bytes, path: Path) -> SavedConfig:
    """Read the bytes of a configuration; errors name the path.

    Raises:
        AdapterFileError: If it is damaged, or a field has another type.
    """
    try:
        return _CONFIG.validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        reason = f"{place}: {first['msg']}" if place else first["msg"]
        raise AdapterFileError(
            f"'{path}' is damaged ({reason}); restore it or save the adapter again."
        ) from error
