"""The adapters of a file without their model: built from its list of layers, filled from its tensors."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from rankfold.adapter.build import Builder, BuiltAdapter
from rankfold.adapter.layout import common_depth, layers_in
from rankfold.adapter.module import Adapter
from rankfold.adapter.site import Site
from rankfold.errors import AdapterFileError, NotExactError, RankfoldWarning
from rankfold.export.plain_math import PREFIX
from rankfold.factors import SvdSpec, Window
from rankfold.peft_plugin.config import RankfoldConfig

MARKER = ".rankfold_"
"""What stands between the name of a layer and the part of an adapter that it owns."""


MOST_MADE = 1 << 27
"""How many numbers a factor may have beyond those in the file: a seed, or a relay, stands for any number."""

MOST_MADE_IN_ALL = 1 << 30
"""The same of all factors of an adapter. A model with 70 billion weights has fewer at rank 64."""


def needs_base_weights(config: RankfoldConfig) -> bool:
    """Return whether some factors are taken from the base weights, so that the file lacks them."""
    return isinstance(config.down, SvdSpec) or isinstance(config.up, SvdSpec)


def detached_adapters(
    config: RankfoldConfig,
    state: Mapping[str, Tensor],
    base_weight: Callable[[str], Tensor] | None = None,
) -> dict[str, Adapter]:
    """Return the adapters of a file by the names of their layers, in the order of the file's list.

    Args:
        config: A configuration that was saved, with its layers.
        state: The tensors that were saved with it; they are used, not copied.
        base_weight: Returns the base weight of a layer by its name; only for factors that are taken from it.

    Raises:
        AdapterFileError: If the configuration has no list of layers, or a tensor is missing, too many, or of
            another shape; or if a few bytes stand for more numbers than `MOST_MADE` allows.
        NotExactError: If a router weighs heads, which takes the model.
    """
    if config.router is not None:
        raise NotExactError("an adapter with a router works in its model only; load it with its base model.")
    if config.layers is None:
        raise AdapterFileError(
            "the adapter's configuration has no list of layers, since it was saved by an earlier rankfold; "
            "name its base model with --model."
        )
    geometries = layers_in(config.layers)
    depth = common_depth(geometries)
    paths = {name: ".".join(name.split(".")[depth:]) for name in geometries}
    with warnings.catch_warnings():
        # What is worth saying of ranks and relays was said when the adapter was made.
        warnings.simplefilter("ignore", RankfoldWarning)
        sites = {paths[name]: Site(geometry, config.spec_for(name)) for name, geometry in geometries.items()}
        builder = Builder(sites, name="default")
    _check_made(builder, config)
    built: dict[str, BuiltAdapter] = {}
    # Initial values are replaced, so none are drawn.
    with nullcontext() if needs_base_weights(config) else torch.device("meta"):
        for name, path in paths.items():
            weight = None if base_weight is None else partial(base_weight, name)
            built[name] = builder.build(path, weight)
    _fill(built, state)
    return {name: each.adapter.eval() for name, each in built.items()}


def _check_made(builder: Builder, config: RankfoldConfig) -> None:
    """Check, before anything is built, how many numbers follow from the sizes that the file names."""
    made: list[int] = []
    for spec, rows, cols in builder.parts().values():
        stored = spec.parameter_count(rows, cols)
        # Beside factors of the base weights the others have initial values too, before those of the file.
        made.append(max(rows * cols, stored) if needs_base_weights(config) else max(rows * cols - stored, 0))
    if max(made, default=0) > MOST_MADE or sum(made) > MOST_MADE_IN_ALL:
        raise AdapterFileError(
            f"the adapter's list of layers asks for {sum(made):,} numbers that its file does not hold, of a "
            f"factor {max(made):,}, and {MOST_MADE_IN_ALL:,} and {MOST_MADE:,} are allowed; restore its "
            "adapter_config.json."
        )


def _fill(built: Mapping[str, BuiltAdapter], state: Mapping[str, Tensor]) -> None:
    """Give every part its tensors, under the name of whichever layer owned it when it was saved."""
    left = {key for key in state if MARKER in key}
    users: dict[int, list[str]] = {}
    for name, each in built.items():
        for role, part in _parts(each.adapter):
            users.setdefault(id(part), []).append(f"{PREFIX}{name}{MARKER}{role}.")
    for name, each in built.items():
        for role, part in each.owned.items():
            wanted = part.state_dict()
            places = [place for place in users.get(id(part), []) if _has_all(state, place, wanted)]
            if wanted and not places:
                raise AdapterFileError(
                    f"the adapter's file lacks the {role} factor of '{name}'; copy it again, it is damaged."
                )
            keys = {places[0] + key: key for key in wanted}
            _load(part, keys, state)
            left -= keys.keys()
    if left:
        raise AdapterFileError(
            f"the adapter's file holds {len(left)} tensors of layers that are not in its list, such as "
            f"'{min(left)}'; restore its adapter_config.json."
        )


def _parts(adapter: Adapter) -> Iterator[tuple[str, nn.Module]]:
    """Yield the parts of an adapter by role; of a window what it looks into."""
    for role in ("down", "core", "up", "scale"):
        part: nn.Module | None = getattr(adapter, role)
        if part is not None:
            yield role, part.source if isinstance(part, Window) else part


def _has_all(state: Mapping[str, Tensor], place: str, wanted: Mapping[str, Tensor]) -> bool:
    return all(place + key in state for key in wanted)


def _load(part: nn.Module, keys: Mapping[str, str], state: Mapping[str, Tensor]) -> None:
    """Give a part its tensors.

    Args:
        part: The part.
        keys: By the name of a tensor in the file, its name in the part.
        state: The file's tensors.
    """
    expected = part.state_dict()
    for key, own in keys.items():
        if state[key].shape != expected[own].shape:
            raise AdapterFileError(
                f"'{key}' has shape {tuple(state[key].shape)}, but its layer asks for "
                f"{tuple(expected[own].shape)}; restore the adapter's files."
            )
    # In a model PEFT computes with them in float32 at least, whatever they were saved in.
    values = {
        own: state[key].to(torch.promote_types(state[key].dtype, torch.float32)) for key, own in keys.items()
    }
    part.load_state_dict(values, assign=True)
    part.to("cpu")  # frozen factors were made without a device too
