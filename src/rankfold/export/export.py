"""Export a saved adapter: fold it, write one format, and certify the error of the files."""

import json
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import final

import torch

from rankfold.errors import DataError, RankfoldWarning, SpecError, unknown_name
from rankfold.export.base import find_base, open_rankfold_adapter
from rankfold.export.certificate import (
    CERTIFICATE_NAME,
    AdapterFiles,
    BaseFiles,
    Certificate,
    LogitsError,
    file_hashes,
    program_versions,
)
from rankfold.export.compress import Compression
from rankfold.export.formats import DEFAULT_FORMAT, DTYPES, dtype_name, find_format
from rankfold.export.label_scale import fold_label_scale
from rankfold.export.layers import ExportSource, check_exact, with_layers
from rankfold.export.logits import Texts, check_exact_logits, read_texts
from rankfold.files import (
    WEIGHTS_NAME,
    check_replaceable,
    check_writable,
    sha256_of_file,
    whole_folder,
    write_whole,
)
from rankfold.store.manifest import MANIFEST_NAME


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRequest:
    """The adapter to export, and the format and options to export it with.

    Args:
        adapter: A folder that `rankfold train` or `save_pretrained` wrote, a packed file, or a record of a
            store as `STORE#NAME`.
        out: The folder to write.
        to: Name of the format, such as `lora`, `gguf` or `merged`.
        model: The base model; the folder that the adapter's configuration names if None.
        dtype: `fp32`, `fp16` or `bf16`; the format's default if None.
        data: Texts on which logits are compared, and routers calibrated; news articles if None.
        compression: How to compress the adapter; None for an exact export.
        label_names: Names of the classes of the adapter's task head; those of its manifest if None.
        overwrite: Replace an earlier export.

    Raises:
        SpecError: If a name is unknown, or options do not go together.
    """

    adapter: str | Path
    out: Path
    to: str = DEFAULT_FORMAT
    model: str | None = None
    dtype: str | None = None
    data: str | None = None
    compression: Compression | None = None
    label_names: Sequence[str] | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Check the options that need no file."""
        export_format = find_format(self.to)
        if self.dtype is not None and self.dtype not in DTYPES:
            raise unknown_name("dtype", self.dtype, DTYPES)
        if self.compression is not None and not export_format.has_rank:
            raise SpecError(
                f"an export to '{self.to}' has no rank to compress to; leave the compression out, or export "
                "to a format of low-rank matrices."
            )


def export(request: ExportRequest) -> Certificate:
    """Export an adapter; the folder appears with all its files and its certificate, or not at all.

    Raises:
        NotExactError: If no plain LoRA and no weight equals the adapter, and it may not be compressed; or if
            the logits of the export differ by more than rounding.
        AdapterFileError: If the adapter is damaged, of another method, or does not fit the base model.
        SpecError: If the base model is needed and not at hand, or cannot take the adapter.
        OutputExistsError: If the folder has something that may not be replaced.
        DataError: If the texts cannot be read.
    """
    _check_output(request)
    adapter = open_rankfold_adapter(request.adapter)
    if request.compression is None:
        check_exact(adapter.config)
    manifest = adapter.saved.manifest
    names = request.label_names or (None if manifest is None else manifest.label_names)
    base, texts = find_base(adapter, request.model, names), _texts(request.data)
    export_format = find_format(request.to)
    dtype = export_format.default_dtype(base) if request.dtype is None else DTYPES[request.dtype]
    head_dtype = torch.float32 if export_format.has_rank else dtype
    unit = fold_label_scale(adapter, base, texts, head_dtype)
    if unit.note is not None:
        warnings.warn(unit.note, RankfoldWarning, stacklevel=2)
    base = None if base is None else replace(base, adapter=unit.adapter)
    with _new_folder(request) as folder:
        source = ExportSource(with_layers(unit.adapter, base), base, request.compression, texts)
        files = AdapterFiles(str(request.adapter), adapter.saved.sha256())
        certificate = replace(_write(request, source, folder, dtype, files), label_scale=unit.folded)
        write_whole(folder / CERTIFICATE_NAME, json.dumps(certificate.to_dict(), indent=2).encode())
    return certificate


def _write(
    request: ExportRequest, source: ExportSource, folder: Path, dtype: torch.dtype, adapter: AdapterFiles
) -> Certificate:
    """Write the files of the format, measure them, and return their certificate."""
    export_format, base = find_format(request.to), source.base
    layers = export_format.write(source, folder, dtype)
    _write_manifest(source, folder)
    logits = export_format.compare_logits(base, source.texts, folder)
    if isinstance(logits, LogitsError) and request.compression is None:
        check_exact_logits(logits, dtype)
    return Certificate(
        target=export_format.name,
        method=export_format.method if request.compression is None else "compressed",
        dtype=dtype_name(dtype),
        rank=max(layer.rank for layer in layers),
        layers=layers,
        logits=logits if isinstance(logits, LogitsError) else None,
        logits_skipped=logits if isinstance(logits, str) else None,
        base=_base_files(source),
        adapter=adapter,
        result=file_hashes(folder),
        versions=program_versions(),
    )


def _write_manifest(source: ExportSource, folder: Path) -> None:
    """Write the adapter's manifest, if it has one, beside a format's files, with the weights' digest."""
    if (manifest := source.adapter.saved.manifest) is not None:
        weights = folder / WEIGHTS_NAME
        digest = sha256_of_file(weights) if weights.is_file() else None
        write_whole(folder / MANIFEST_NAME, manifest.with_weights(digest).to_json())


def _base_files(source: ExportSource) -> BaseFiles:
    if source.base is None:
        return BaseFiles(source.adapter.config.base_model_name_or_path, None)
    return BaseFiles(source.base.model.name, source.base.model.sha256())


def _texts(data: str | None) -> Texts | str:
    """Return the texts to compare on, or why there are none; texts that were asked for must be there."""
    try:
        return read_texts(data)
    except DataError as error:
        if data is not None:
            raise
        return str(error)


def _check_output(request: ExportRequest) -> None:
    """Check, before any work is done, that the folder may be written."""
    _check_free(request.out, overwrite=request.overwrite)
    check_writable(request.out.resolve())


def _new_folder(request: ExportRequest) -> AbstractContextManager[Path]:
    """Return a context with a new folder, which takes its place when the block ends without an error."""
    check = partial(_check_free, request.out, overwrite=request.overwrite)
    return whole_folder(request.out, check=check, last=CERTIFICATE_NAME)


def _check_free(folder: Path, *, overwrite: bool) -> None:
    check_replaceable(folder, overwrite=overwrite, marks=[CERTIFICATE_NAME], kind="export")


def export_lora(  # noqa: PLR0913 (an export has as many arguments as it has options)
    adapter: str | Path,
    out: str | Path,
    *,
    to: str = DEFAULT_FORMAT,
    model: str | None = None,
    dtype: str | None = None,
    data: str | None = None,
    label_names: Sequence[str] | None = None,
    overwrite: bool = False,
) -> Certificate:
    """Write a saved adapter for programs that know plain LoRA, or no adapters at all; exactly or not at all.

    Args:
        adapter: A folder that `save_pretrained` or `rankfold train` wrote, a packed file, or a record of a
            store as `STORE#NAME`.
        out: The folder to write; it appears complete, with its `certificate.json`, or not at all.
        to: `lora` (PEFT, vLLM, TGI), `gguf` (llama.cpp), `diffusers`, `kohya` (ComfyUI, A1111), `merged` (a
            plain model), or a format of another package.
        model: The base model: `minilm`, `smollm2`, a folder or a hub id. A folder that the adapter's
            configuration names is taken from there; a LoRA is written without a base too, but its logits are
            not compared.
        dtype: `fp32`, `fp16` or `bf16`; `fp32` if None, or that of the base for a merged model.
        data: Texts on which logits are compared, as for `rankfold train`; news articles if None.
        label_names: Names of the classes of a classification head, for a merged model.
        overwrite: Replace an earlier export.

    Returns:
        The certificate: the files that were written, and their error against the adapter.

    Raises:
        NotExactError: If the format cannot hold the adapter exactly; nothing is written then.
        AdapterFileError: If the adapter is damaged, of another method, or does not fit the base model.
        SpecError: If the base model is needed and not at hand, or cannot take the adapter.
        OutputExistsError: If the folder has something that may not be replaced.
        DataError: If the texts cannot be read.
    """
    request = ExportRequest(
        adapter=adapter,
        out=Path(out),
        to=to,
        model=model,
        dtype=dtype,
        data=data,
        label_names=label_names,
        overwrite=overwrite,
    )
    return export(request)


def compress_lora(  # noqa: PLR0913 (as above)
    adapter: str | Path,
    out: str | Path,
    *,
    rank: int | None = None,
    error: float | None = None,
    to: str = DEFAULT_FORMAT,
    model: str | None = None,
    dtype: str | None = None,
    data: str | None = None,
    overwrite: bool = False,
) -> Certificate:
    """Write a saved adapter as a plain LoRA of smaller rank, approximately, with its measured error.

    An adapter with a router gets the mean gates over the texts; its certificate's errors of layers are
    relative to that, and the error of the mean itself is in the logits.

    Args:
        adapter: A folder that `save_pretrained` or `rankfold train` wrote, a packed file, or a record of a
            store as `STORE#NAME`.
        out: The folder to write; it appears complete, with its `certificate.json`, or not at all.
        rank: The rank of every layer.
        error: In place of it the largest relative error of a layer; each gets the smallest rank within it.
        to: `lora`, `gguf`, or a format of low-rank matrices of another package.
        model: The base model, needed for an adapter with a router.
        dtype: `fp32`, `fp16` or `bf16`; `fp32` if None.
        data: Texts on which routers are calibrated and logits compared; news articles if None.
        overwrite: Replace an earlier export.

    Returns:
        The certificate: the files that were written, and their error against the adapter.

    Raises:
        SpecError: If not exactly one of rank and error is given, or the base model is needed and not at hand.
        AdapterFileError: If the adapter is damaged, of another method, or does not fit the base model.
        OutputExistsError: If the folder has something that may not be replaced.
        DataError: If the texts cannot be read.
    """
    request = ExportRequest(
        adapter=adapter,
        out=Path(out),
        to=to,
        model=model,
        dtype=dtype,
        data=data,
        compression=Compression(rank, error),
        overwrite=overwrite,
    )
    return export(request)
