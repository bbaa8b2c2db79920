"""The layers of an adapter, written into its configuration and compared when it is loaded."""

from collections.abc import Mapping, Sequence

from rankfold.adapter.find import common_depth
from rankfold.adapter.layout import Layout, layers_in, layout_of, sizes_of
from rankfold.errors import AdapterFileError
from rankfold.peft_plugin.targets import COMPILED, Target


def layout_of_targets(targets: Sequence[Target]) -> Layout:
    """Return the layout of the layers that an adapter gets."""
    return layout_of({each.name.removeprefix(COMPILED): each.geometry for each in targets})


def check_layers(expected: Layout, targets: Sequence[Target]) -> None:
    """Compare the layers that an adapter gets with those it was saved from, wherever the model hangs.

    Raises:
        AdapterFileError: If one is missing, added or of another size, or the list is damaged.
    """
    saved = {name: sizes_of(geometry) for name, geometry in layers_in(expected).items()}
    found = {each.name.removeprefix(COMPILED): sizes_of(each.geometry) for each in targets}
    if not saved.keys() & found.keys():  # the model hangs somewhere else than when the adapter was saved
        saved, found = _below_common(saved), _below_common(found)
    if saved == found:
        return
    first = next(name for name in (*found, *saved) if saved.get(name) != found.get(name))
    here, there = found.get(first, "not adapted"), saved.get(first, "not adapted")
    raise AdapterFileError(
        f"the adapter was saved from other layers: '{first}' is {here} in this model, but was {there}; load "
        "the base model it was trained on, with its adapter_config.json as it was saved."
    )


def _below_common(sizes: Mapping[str, str]) -> dict[str, str]:
    """Return the sizes by path, without what all layers are in."""
    depth = common_depth(sizes)
    return {".".join(name.split(".")[depth:]): each for name, each in sizes.items()}
