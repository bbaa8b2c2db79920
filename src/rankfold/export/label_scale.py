"""Fold the scale of standardised labels into the task head, so that a model's outputs are in their unit."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast, final

import torch
from peft import PeftModel
from torch import Tensor, nn

from rankfold.errors import SpecError
from rankfold.export.base import AdapterBase, RankfoldAdapter
from rankfold.export.certificate import LabelScale
from rankfold.export.layers import MARKER, PREFIX
from rankfold.export.logits import Texts, reads_text, text_logits
from rankfold.store.manifest import TaskManifest
from rankfold.tasks.kinds import find_kind, kind_names

_LINEAR_HEADS = ("classifier", "score", "out_proj")
"""Last modules of transformers' classifiers, which are linear; for where the model is not at hand."""

_MOST_LOSS = 0.05
"""The most that rounding a bias may take, in standard deviations of the labels."""

Outputs = Callable[[], list[Tensor]]


@final
@dataclass(frozen=True, slots=True)
class LabelUnit:
    """An adapter whose outputs are in the unit of the labels, as far as its head can hold the scale.

    Args:
        adapter: The adapter, with another head and another manifest if something was folded.
        folded: The scale that is in the head now; None if none is.
        note: How a program without rankfold reads the outputs; None if as they are.
    """

    adapter: RankfoldAdapter
    folded: LabelScale | None = None
    note: str | None = None


def fold_label_scale(
    adapter: RankfoldAdapter, base: AdapterBase | None, texts: Texts | str, dtype: torch.dtype
) -> LabelUnit:
    """Return an adapter with the scale of its labels in its head, or with the reason that it is not there.

    A linear head computes `y = W h + b`; `std * W` and `std * b + mean` give `std * y + mean`. A head without
    a bias takes the standard deviation alone, and the mean is left to whoever reads the outputs.

    Args:
        adapter: The adapter with its manifest.
        base: Its base model, if it is at hand, which shows whether the head is linear at its end.
        texts: Texts that the model reads for this, or the reason that there are none.
        dtype: The dtype of the written head.

    Raises:
        AdapterFileError: If the manifest has no scale that labels can have, or the adapter does not fit.
    """
    task = _task_of(adapter)
    if task is None:
        return LabelUnit(adapter)
    kind = find_kind(task.kind)
    mean, std = kind.output_scale(task.settings)
    if (mean, std) == (0.0, 1.0):
        return LabelUnit(adapter, note=kind.output_note(task.settings))
    head = _head_name(adapter.saved.tensors)
    if head is None or not _is_last(head, base, texts):
        return LabelUnit(adapter, note=kind.output_note(task.settings))
    bias = adapter.saved.tensors.get(f"{head}.bias")
    scale = LabelScale(head.removeprefix(PREFIX), 0.0 if bias is None else mean, std)
    weight = adapter.saved.tensors[f"{head}.weight"]
    rest = LabelScale(scale.head, mean - scale.mean, 1.0)
    if not (all(_holds(scale, coarse) for coarse in (dtype, weight.dtype)) and _holds(rest, torch.float64)):
        return LabelUnit(adapter, note=kind.output_note(task.settings))
    folded = with_label_scale(adapter, scale)
    return LabelUnit(folded, scale, kind.output_note(kind.rescale(task.settings, rest.mean, rest.std)))


def with_label_scale(adapter: RankfoldAdapter, scale: LabelScale) -> RankfoldAdapter:
    """Return an adapter with a scale folded into its head, and out of its manifest."""
    saved, prefix = adapter.saved, f"{PREFIX}{scale.head}"
    tensors = dict(saved.tensors)
    for name, offset in ((f"{prefix}.weight", 0.0), (f"{prefix}.bias", scale.mean)):
        if name in tensors:
            tensors[name] = (tensors[name].double() * scale.std + offset).to(tensors[name].dtype)
    manifest, task = saved.manifest, _task_of(adapter)
    if manifest is not None and task is not None:
        kind = find_kind(task.kind)
        mean, _ = kind.output_scale(task.settings)
        task = replace(task, settings=kind.rescale(task.settings, mean - scale.mean, 1.0))
        # The digest is that of the weights before; an export writes its own.
        saved = saved.with_manifest(replace(manifest, task=task, weights_sha256=None))
    return replace(adapter, saved=replace(saved, tensors=tensors))


def _task_of(adapter: RankfoldAdapter) -> TaskManifest | None:
    """Return the task in an adapter's manifest, if it is of a kind that is known here."""
    manifest = adapter.saved.manifest
    task = None if manifest is None else manifest.task
    return task if task is not None and task.kind in kind_names() else None


def _head_name(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of the one linear layer with one output that was trained beside the adapter."""
    heads = [
        name.removesuffix(".weight")
        for name, tensor in tensors.items()
        if MARKER not in name and name.endswith(".weight") and tensor.shape == (1, tensor.numel())
    ]
    return heads[0] if len(heads) == 1 else None


def _is_last(head: str, base: AdapterBase | None, texts: Texts | str) -> bool:
    """Return whether a model's output is that of its head: by running it, or by its name without a model."""
    outputs = None if base is None or isinstance(texts, str) else _outputs(base, texts)
    if outputs is None:
        return head.rpartition(".")[2] in _LINEAR_HEADS
    model, run = outputs
    modules = cast("Any", model).named_modules()
    layers = [module for name, module in modules if name.replace(".modules_to_save.default", "") == head]
    layer = next((layer for layer in layers if type(layer) is nn.Linear), None)
    if layer is None:
        return False
    seen: list[Tensor] = []
    hook = layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output.float()))
    try:
        logits = run()
    finally:
        hook.remove()
    # A model that generates text gives one output a token, and takes one of them.
    return len(seen) == len(logits) and all(
        bool(torch.isin(logit, output).all()) for logit, output in zip(logits, seen, strict=True)
    )


def _outputs(base: AdapterBase, texts: Texts) -> tuple[PeftModel, Outputs] | None:
    """Return the model with its adapter, and a function that runs it on a text; None if it reads none."""
    try:
        model = base.load_with_adapter()
    except SpecError:
        return None
    tokenizer = base.tokenizer()
    if tokenizer is None or not reads_text(model):
        return None
    return model, partial(text_logits, model, tokenizer, replace(texts, texts=texts.texts[:1]))


def _holds(scale: LabelScale, dtype: torch.dtype) -> bool:
    """Return whether a head in a dtype can hold a scale: its bias is far larger where the mean is."""
    limits = torch.finfo(dtype)
    largest = abs(scale.mean) + scale.std
    return largest * limits.eps / 2 <= _MOST_LOSS * scale.std and largest * 4 < limits.max
