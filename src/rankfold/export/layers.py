"""From a saved adapter to the plain layers that a format writes: rebuild, fold, and perhaps compress."""

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast, final

import torch
from peft import TaskType
from torch import Tensor, nn

from rankfold.adapter.build import Builder, BuiltAdapter
from rankfold.adapter.geometry import Matrices
from rankfold.adapter.layout import common_depth, layers_in, module_path, tower_of
from rankfold.adapter.module import Adapter
from rankfold.adapter.site import Site
from rankfold.errors import AdapterFileError, DataError, NotExactError, RankfoldWarning, SpecError
from rankfold.export.base import AdapterBase, RankfoldAdapter
from rankfold.export.compress import Compression, compress, fold_with_mean_gates
from rankfold.export.denoising import component_of
from rankfold.export.fold import LowRankUpdate, exact_rank, fold, unfolded_update
from rankfold.export.logits import Texts, reads_text, text_logits
from rankfold.factors import SvdSpec, Window
from rankfold.limits import MOST_MADE, MOST_MADE_IN_ALL
from rankfold.peft_plugin.config import RankfoldConfig

PREFIX = "base_model.model."
"""PEFT's prefix of the name of every layer in a file."""

MARKER = ".rankfold_"
"""The text between the name of a layer and the role of a part that it owns, in the names of a file."""


@final
@dataclass(frozen=True, slots=True)
class FoldedAdapter:
    """An adapter as plain LoRA in memory, which every writer of a layer format takes.

    Args:
        updates: The updates to write by layer name, in float64.
        references: The updates that the adapter computes, which errors are measured against; for one with a
            router, those of its mean gates.
        base_model: Name or folder of the base model, if it is known.
        task_type: PEFT's task type, such as `SEQ_CLS`.
        modules_to_save: Modules that were trained in full.
        tensors: The tensors beside those of the adapters, such as a task head, by their names in PEFT's file.
        component: Name of the component of a diffusers pipeline that it is for, such as `unet`, if any.
    """

    updates: Mapping[str, LowRankUpdate]
    references: Mapping[str, LowRankUpdate]
    base_model: str | None = None
    task_type: str | None = None
    modules_to_save: Sequence[str] = ()
    tensors: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    component: str | None = None


@final
@dataclass(frozen=True, slots=True)
class ExportSource:
    """Everything that an export starts from.

    Args:
        adapter: The saved adapter, whose configuration lists its layers.
        base: Its base model, if it is at hand.
        compression: How far to compress it; None for an exact export.
        texts: Texts that logits are compared on and routers calibrated, or the reason that there are none.
    """

    adapter: RankfoldAdapter
    base: AdapterBase | None
    compression: Compression | None
    texts: Texts | str

    def require_base(self) -> AdapterBase:
        """Return the base model.

        Raises:
            SpecError: If it is not at hand.
        """
        if self.base is None:
            raise SpecError(
                f"this export of {self.adapter.saved.title} needs its base model, which is not at hand; "
                "name it with --model."
            )
        return self.base

    def fold(self) -> FoldedAdapter:
        """Return the adapter as plain LoRA.

        Raises:
            NotExactError: If a router weighs its heads and it is not to be compressed.
            AdapterFileError: If its files do not belong together, or do not suffice without the base model.
            SpecError: If the base model is needed and not at hand, or reads no text.
            DataError: If a router is to be calibrated without texts.
        """
        config, tensors = self.adapter.config, self.adapter.saved.tensors
        if config.router is None or self.compression is None:
            return fold_tensors(config, tensors, self._base_weight(), self.compression)
        references = self._with_mean_gates()
        updates = {name: compress(update, self.compression) for name, update in references.items()}
        return _with_other_tensors(config, tensors, updates, references)

    def _base_weight(self) -> Callable[[str], Tensor] | None:
        if not needs_base_weights(self.adapter.config):
            return None
        if self.base is None:
            raise AdapterFileError(
                f"the factors of {self.adapter.saved.title} are taken from the base weights, which are not "
                "at hand; name its base model with --model."
            )
        model: nn.Module = self.base.load()
        return lambda name: model.get_submodule(name).get_parameter("weight").detach()

    def _with_mean_gates(self) -> dict[str, LowRankUpdate]:
        texts, base = self.texts, self.require_base()
        if isinstance(texts, str):
            raise DataError(f"a router is calibrated on real text, but {texts}")
        model, tokenizer = base.load_with_adapter(), base.tokenizer()
        if tokenizer is None or not reads_text(model):
            raise SpecError(
                f"the base model '{base.model.name}' reads no text or has no tokenizer, so there is nothing "
                "to calibrate the routers on; name a folder with its tokenizer by --model."
            )
        updates = fold_with_mean_gates(model, lambda: text_logits(model, tokenizer, texts))
        return {path.removeprefix(PREFIX): update for path, update in updates.items()}


def with_layers(adapter: RankfoldAdapter, base: AdapterBase | None) -> RankfoldAdapter:
    """Return an adapter whose configuration lists its layers; an earlier rankfold's did not.

    Raises:
        AdapterFileError: If the base model, which has them, is not at hand.
    """
    if adapter.config.layers is not None:
        return adapter
    if base is None:
        raise AdapterFileError(
            f"the configuration of {adapter.saved.title} has no list of layers, since an earlier rankfold "
            "saved it; name its base model with --model."
        )
    model = base.load_with_adapter()
    config = copy.copy(adapter.config)
    config.layers = cast("Any", model.peft_config["default"]).layers
    return replace(adapter, config=config)


def check_exact(config: RankfoldConfig) -> None:
    """Check that adapters of a configuration equal a plain LoRA, from the configuration alone.

    Raises:
        NotExactError: If a router weighs their heads.
        AdapterFileError: If the list of their layers is damaged.
    """
    for name in layers_in(config.layers or {}) or ("this adapter",):
        exact_rank(config.spec_for(name), name)


def fold_tensors(
    config: RankfoldConfig,
    tensors: Mapping[str, Tensor],
    base_weight: Callable[[str], Tensor] | None = None,
    compression: Compression | None = None,
) -> FoldedAdapter:
    """Return an adapter without a router as plain LoRA, from its configuration and tensors.

    Args:
        config: A configuration that was saved, with its layers.
        tensors: The tensors that were saved with it, by the names of PEFT's files.
        base_weight: Returns the base weight of a layer by its name; only for factors that are taken from it.
        compression: How far to compress it; exact if None.

    Raises:
        NotExactError: If a router weighs its heads.
        AdapterFileError: If configuration and tensors do not belong together, or the configuration has no
            list of layers.
    """
    check_exact(config)
    adapters = detached_adapters(config, tensors, base_weight)
    updates = {name: fold(adapter) for name, adapter in adapters.items()}
    if compression is not None:
        updates = {name: compress(update, compression) for name, update in updates.items()}
    references = {name: unfolded_update(adapter) for name, adapter in adapters.items()}
    return _with_other_tensors(config, tensors, updates, references)


def _with_other_tensors(
    config: RankfoldConfig,
    tensors: Mapping[str, Tensor],
    updates: Mapping[str, LowRankUpdate],
    references: Mapping[str, LowRankUpdate],
) -> FoldedAdapter:
    return FoldedAdapter(
        updates=_in_order(updates, config.target_parameters or ()),
        references=references,
        base_model=config.base_model_name_or_path,
        task_type=None if config.task_type is None else TaskType(config.task_type).value,
        # PEFT lists the head of a classifier once more each time it saves.
        modules_to_save=tuple(dict.fromkeys(config.modules_to_save or ())),
        tensors={key: tensor for key, tensor in tensors.items() if MARKER not in key},
        component=component_of(config),
    )


def _in_order(
    updates: Mapping[str, LowRankUpdate], target_parameters: Sequence[str]
) -> dict[str, LowRankUpdate]:
    """Return the updates with the parameters last, in the order that the configuration has from the model.

    A list of layers that was written to a file is sorted, but PEFT nests its wrappers in the model's order.
    """
    order = {name.rpartition(".")[2]: index for index, name in enumerate(target_parameters, 1)}

    def rank(name: str) -> int:
        is_parameter = isinstance(updates[name].geometry, Matrices)
        return order.get(name.rpartition(".")[2], len(order) + 1) if is_parameter else 0

    return {name: updates[name] for name in sorted(updates, key=rank)}


def needs_base_weights(config: RankfoldConfig) -> bool:
    """Return whether some factors are taken from the base weights, so that the file lacks them."""
    return isinstance(config.down, SvdSpec) or isinstance(config.up, SvdSpec)


def detached_adapters(
    config: RankfoldConfig,
    tensors: Mapping[str, Tensor],
    base_weight: Callable[[str], Tensor] | None = None,
) -> dict[str, Adapter]:
    """Build the adapters of a file without their model, by layer name, in the order of the file's list.

    Args:
        config: A configuration that was saved, with its layers.
        tensors: The tensors that were saved with it; they are used, not copied.
        base_weight: Returns the base weight of a layer by its name; only for factors that are taken from it.

    Raises:
        AdapterFileError: If the configuration has no list of layers, or a tensor is missing, too many, or of
            another shape; or if a few bytes stand for more values than `MOST_MADE` allows.
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
        # The warnings on ranks and relays were given when the adapter was made.
        warnings.simplefilter("ignore", RankfoldWarning)
        sites = {
            path: Site(geometries[name], config.spec_for(name), tower=tower_of(path, config.towers or ()))
            for name, path in paths.items()
        }
        builder = Builder(sites, name="default")
    check_sizes(builder, config)
    adapters: dict[str, BuiltAdapter] = {}
    # Initial values are replaced, so none are sampled.
    with nullcontext() if needs_base_weights(config) else torch.device("meta"):
        for name, path in paths.items():
            weight = None if base_weight is None else partial(base_weight, name)
            adapters[name] = builder.build(path, weight, name=name)
    _fill(adapters, tensors)
    return {name: entry.adapter.eval() for name, entry in adapters.items()}


def check_sizes(builder: Builder, config: RankfoldConfig) -> None:
    """Check, before anything is built, how many values follow from the sizes that the file names."""
    sizes: list[int] = []
    for part in builder.parts().values():
        in_file, entries = part.parameter_count, part.copies * part.rows * part.cols
        # Beside factors of the base weights the others have initial values too, before those of the file.
        extra = max(entries, in_file) if needs_base_weights(config) else max(entries - in_file, 0)
        sizes.append(extra)
    if max(sizes, default=0) > MOST_MADE or sum(sizes) > MOST_MADE_IN_ALL:
        raise AdapterFileError(
            f"the adapter's list of layers asks for {sum(sizes):,} numbers that its file does not hold, of a "
            f"factor {max(sizes):,}, and {MOST_MADE_IN_ALL:,} and {MOST_MADE:,} are allowed; restore its "
            "adapter_config.json."
        )


def _fill(adapters: Mapping[str, BuiltAdapter], tensors: Mapping[str, Tensor]) -> None:
    """Give every part its tensors, under the name of whichever layer owned it when it was saved."""
    unread = {key for key in tensors if MARKER in key}
    users: dict[int, list[str]] = {}
    for name, entry in adapters.items():
        for role, part in _parts(entry.adapter):
            path = module_path(name, entry.adapter.geometry)
            users.setdefault(id(part), []).append(f"{PREFIX}{path}{MARKER}{role}.")
    for name, entry in adapters.items():
        for role, part in entry.owned_parts.items():
            part_keys = part.state_dict().keys()
            owners = [
                prefix for prefix in users.get(id(part), []) if all(prefix + k in tensors for k in part_keys)
            ]
            if part_keys and not owners:
                raise AdapterFileError(
                    f"the adapter's file lacks the {role} factor of '{name}'; copy it again, it is damaged."
                )
            keys = {owners[0] + key: key for key in part_keys}
            _load(part, keys, tensors)
            unread -= keys.keys()
    if unread:
        raise AdapterFileError(
            f"the adapter's file holds {len(unread)} tensors of layers that are not in its list, such as "
            f"'{min(unread)}'; restore its adapter_config.json."
        )


def _parts(adapter: Adapter) -> Iterator[tuple[str, nn.Module]]:
    """Yield the parts of an adapter by role; for a window its source."""
    for role in ("down", "core", "up", "scale"):
        part: nn.Module | None = getattr(adapter, role)
        if part is not None:
            yield role, part.source if isinstance(part, Window) else part


def _load(part: nn.Module, keys: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
    """Give a part its tensors.

    Args:
        part: The part.
        keys: By the name of a tensor in the file, its name in the part.
        tensors: The file's tensors.
    """
    shapes = {key: tensor.shape for key, tensor in part.state_dict().items()}
    for key, part_key in keys.items():
        if tensors[key].shape != shapes[part_key]:
            raise AdapterFileError(
                f"'{key}' has shape {tuple(tensors[key].shape)}, but its layer asks for "
                f"{tuple(shapes[part_key])}; restore the adapter's files."
            )
    # In a model PEFT computes with them in float32 at least, whatever they were saved in.
    values = {
        part_key: tensors[key].to(torch.promote_types(tensors[key].dtype, torch.float32))
        for key, part_key in keys.items()
    }
    part.load_state_dict(values, assign=True)
    part.to("cpu")  # frozen factors were made without a device too
