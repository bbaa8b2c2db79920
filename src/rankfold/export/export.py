"""Exporting: one saved adapter in, one folder out, with a certificate of what it is worth."""

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch

from rankfold.errors import DataError, NotExactError, RankfoldWarning, SpecError, unknown_name
from rankfold.export.base import Base, find_base
from rankfold.export.calibrate import calibrated_layers
from rankfold.export.certificate import (
    MERGED,
    NAME,
    PLAIN_LORA,
    TARGETS,
    AdapterPart,
    BasePart,
    Certificate,
    LayerPart,
    LogitsPart,
    Method,
    Target,
)
from rankfold.export.certify import check_exact_logits, compared_logits, hashes, layer_parts, versions
from rankfold.export.compress import Compression
from rankfold.export.folding import Products, fold_layers, with_layers
from rankfold.export.gguf import FILE_NAME, write_gguf
from rankfold.export.merged import base_dtype, write_merged
from rankfold.export.opened import OpenedAdapter, open_adapter
from rankfold.export.output import check_output, export_folder
from rankfold.export.plain_lora import belongings, check_exact, write_lora
from rankfold.export.texts import Texts, find_texts
from rankfold.export.written import model_of_llama_cpp, written_layers
from rankfold.files import write_whole

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

_NOTABLE_DRIFT = 1e-3


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRequest:
    """What to export, and as what.

    Args:
        adapter: A folder that `rankfold train` or `save_pretrained` wrote.
        out: The folder to write.
        to: `lora`, `gguf` or `merged`.
        model: The base model; where the adapter's configuration says if None.
        dtype: `fp32`, `fp16` or `bf16`; `fp32` if None, or that of the base for a merged model.
        data: Texts on which logits are compared, and routers calibrated; news articles if None.
        compression: How to compress the adapter; None for an exact export.
        label_names: Names of the classes of the adapter's head, if they are known.
        overwrite: Replace an earlier export.

    Raises:
        SpecError: If a name is unknown, or what is asked for does not go together.
    """

    adapter: Path
    out: Path
    to: Target = PLAIN_LORA
    model: str | None = None
    dtype: str | None = None
    data: str | None = None
    compression: Compression | None = None
    label_names: Sequence[str] | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Check what can be checked without a file."""
        if self.to not in TARGETS:
            raise unknown_name("export target", self.to, TARGETS)
        if self.dtype is not None and self.dtype not in DTYPES:
            raise unknown_name("dtype", self.dtype, DTYPES)
        if self.to == MERGED and self.compression is not None:
            raise SpecError("a merged model has no rank to compress to; export --to lora, then merge that.")


def export(request: ExportRequest) -> Certificate:
    """Export an adapter; the folder appears with all its files and its certificate, or not at all.

    Raises:
        NotExactError: If no plain LoRA and no weight equals the adapter, and it may not be compressed; or if
            what was written says something else.
        AdapterFileError: If the adapter is damaged, of another method, or does not fit the base model.
        SpecError: If the base model is needed and not at hand, or cannot take the adapter.
        OutputExistsError: If the folder has something that may not be replaced.
        DataError: If the texts cannot be read.
    """
    check_output(request.out, overwrite=request.overwrite)
    saved = open_adapter(request.adapter)
    if request.compression is None:
        check_exact(saved.config)
    base = find_base(saved, request.model, request.label_names)
    with export_folder(request.out, overwrite=request.overwrite) as work:
        saved = with_layers(saved, base)
        certificate = _written_and_measured(request, saved, base, work)
        write_whole(work / NAME, json.dumps(certificate.to_dict(), indent=2).encode())
    return certificate


def _written_and_measured(
    request: ExportRequest, saved: OpenedAdapter, base: Base | None, work: Path
) -> Certificate:
    dtype = _dtype(request, base)
    texts = _texts(request)
    method, layers = _write(request, saved, base, texts, work, dtype)
    logits = compared_logits(request.to, base, texts, work)
    if isinstance(logits, LogitsPart) and request.compression is None:
        check_exact_logits(logits, dtype)
    return Certificate(
        target=request.to,
        method=method,
        dtype=_name(dtype),
        rank=max(layer.rank for layer in layers),
        layers=layers,
        logits=logits if isinstance(logits, LogitsPart) else None,
        logits_skipped=logits if isinstance(logits, str) else None,
        base=BasePart(
            saved.config.base_model_name_or_path if base is None else base.found.name,
            None if base is None else base.found.sha256(),
        ),
        adapter=AdapterPart(str(request.adapter), saved.sha256()),
        result=hashes(work),
        versions=versions(),
    )


def _write(
    request: ExportRequest,
    saved: OpenedAdapter,
    base: Base | None,
    texts: Texts | str,
    work: Path,
    dtype: torch.dtype,
) -> tuple[Method, tuple[LayerPart, ...]]:
    """Write the files and return how, and the errors of what they hold."""
    if request.to == MERGED:
        layers = write_merged(_needed(base, saved), work, dtype)
        _warn_of_drift(layers, _name(dtype))
        return "merged", layers
    products = _products(request, saved, base, texts)
    beside = belongings(saved.config, saved.state)
    if request.to == PLAIN_LORA:
        write_lora(products.written, beside, work, dtype)
    else:
        if beside.tensors:
            raise NotExactError(
                f"llama.cpp's LoRA has no place for '{min(beside.tensors)}', which was trained as a whole; "
                "export --to merged, and convert the model."
            )
        write_gguf(products.written, model_of_llama_cpp(base), work / FILE_NAME, dtype)
    read = written_layers(request.to, work, saved, base)
    return products.method, layer_parts(products.trained, products.written, read)


def _products(
    request: ExportRequest, saved: OpenedAdapter, base: Base | None, texts: Texts | str
) -> Products:
    if saved.config.router is None or request.compression is None:
        return fold_layers(saved, base, request.compression)
    if isinstance(texts, str):
        raise DataError(f"a router is calibrated on real text, but {texts}")
    return calibrated_layers(_needed(base, saved), texts, request.compression)


def _needed(base: Base | None, saved: OpenedAdapter) -> Base:
    if base is None:
        raise SpecError(
            f"this export of '{saved.folder}' takes its base model, which is not at hand; "
            "name it with --model."
        )
    return base


def _dtype(request: ExportRequest, base: Base | None) -> torch.dtype:
    of_base = base_dtype(base.found) if request.to == MERGED and base is not None else torch.float32
    return of_base if request.dtype is None else DTYPES[request.dtype]


def _name(dtype: torch.dtype) -> str:
    return next((name for name, each in DTYPES.items() if each == dtype), str(dtype).removeprefix("torch."))


def _texts(request: ExportRequest) -> Texts | str:
    """Return the texts to compare on, or why there are none; texts that were asked for must be there."""
    try:
        return find_texts(request.data)
    except DataError as error:
        if request.data is not None:
            raise
        return str(error)


def _warn_of_drift(layers: Sequence[LayerPart], dtype: str) -> None:
    worst = max(layers, key=lambda layer: layer.written)
    if worst.written > _NOTABLE_DRIFT:
        warnings.warn(
            f"rounding the merged weights to {dtype} takes {worst.written:.1%} of the adapter's change of "
            f"'{worst.name}', the most of {len(layers)} layers; keep the adapter apart where that matters.",
            RankfoldWarning,
            stacklevel=2,
        )
