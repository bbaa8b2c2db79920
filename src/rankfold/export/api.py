"""Exporting in one line of Python."""

from collections.abc import Sequence
from pathlib import Path

from rankfold.export.certificate import PLAIN_LORA, Certificate, Target
from rankfold.export.compress import Compression
from rankfold.export.export import ExportRequest, export


def export_lora(  # noqa: PLR0913 (an export has as many arguments as it has options)
    adapter: str | Path,
    out: str | Path,
    *,
    to: Target = PLAIN_LORA,
    model: str | None = None,
    dtype: str | None = None,
    data: str | None = None,
    label_names: Sequence[str] | None = None,
    overwrite: bool = False,
) -> Certificate:
    """Write a saved adapter for programs that know plain LoRA, or none at all, exactly or not at all.

    Args:
        adapter: A folder that `save_pretrained` or `rankfold train` wrote.
        out: The folder to write; it appears complete, with its `certificate.json`, or not at all.
        to: `lora` (PEFT, vLLM, TGI, diffusers), `gguf` (llama.cpp) or `merged` (a plain model).
        model: The base model: `minilm`, `smollm2`, a folder or a hub id. Where the adapter's configuration
            names a folder it is found; a LoRA is written without it too, but its logits are not compared.
        dtype: `fp32`, `fp16` or `bf16`; `fp32` if None, or that of the base for a merged model.
        data: Texts on which logits are compared, as for `rankfold train`; news articles if None.
        label_names: Names of the classes of a classification head, for a merged model.
        overwrite: Replace an earlier export.

    Returns:
        What was written, and how far from the adapter it is.

    Raises:
        NotExactError: If nothing of the kind equals the adapter; nothing is written then.
        AdapterFileError: If the adapter is damaged, of another method, or does not fit the base model.
        SpecError: If the base model is needed and not at hand, or cannot take the adapter.
        OutputExistsError: If the folder has something that may not be replaced.
        DataError: If the texts cannot be read.
    """
    request = ExportRequest(
        adapter=Path(adapter),
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
    to: Target = PLAIN_LORA,
    model: str | None = None,
    dtype: str | None = None,
    data: str | None = None,
    overwrite: bool = False,
) -> Certificate:
    """Write a saved adapter as a plain LoRA of smaller rank, approximately, with its measured error.

    An adapter with a router gets the gates that the texts get on average; its certificate's errors of layers
    are relative to that, and what the mean itself costs is in the logits.

    Args:
        adapter: A folder that `save_pretrained` or `rankfold train` wrote.
        out: The folder to write; it appears complete, with its `certificate.json`, or not at all.
        rank: The rank of every layer.
        error: In place of it the largest relative error of a layer; each gets the smallest rank within it.
        to: `lora` or `gguf`.
        model: The base model, needed for an adapter with a router.
        dtype: `fp32`, `fp16` or `bf16`; `fp32` if None.
        data: Texts on which routers are calibrated and logits compared; news articles if None.
        overwrite: Replace an earlier export.

    Raises:
        SpecError: If not exactly one of rank and error is given, or the base model is needed and not at hand.
        AdapterFileError: If the adapter is damaged, of another method, or does not fit the base model.
        OutputExistsError: If the folder has something that may not be replaced.
        DataError: If the texts cannot be read.
    """
    request = ExportRequest(
        adapter=Path(adapter),
        out=Path(out),
        to=to,
        model=model,
        dtype=dtype,
        data=data,
        compression=Compression(rank, error),
        overwrite=overwrite,
    )
    return export(request)
