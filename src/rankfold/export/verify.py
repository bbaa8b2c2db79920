"""Verify an export: compute the hashes and errors of its certificate again, and compare them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, final

import torch

from rankfold.errors import AdapterFileError, DataError, SpecError
from rankfold.export.base import AdapterBase, find_base, open_rankfold_adapter
from rankfold.export.certificate import Certificate, file_hashes, read_certificate
from rankfold.export.formats import DTYPES, find_format
from rankfold.export.label_scale import with_label_scale
from rankfold.export.layers import ExportSource, with_layers
from rankfold.export.logits import read_texts, rounding_bound
from rankfold.store.saved import RECORD_SIGN

State = Literal["ok", "differs", "skipped"]

# Sums in another order, as another machine makes them, move the errors of layers and of logits this far.
_LAYER_SLACK, _LOGITS_SLACK = 1e-9, 1e-6
_SHARE = 0.01


@final
@dataclass(frozen=True, slots=True)
class Check:
    """The comparison of one part of a certificate.

    Args:
        part: `files`, `adapter`, `base`, `layers` or `logits`.
        state: `ok`, `differs`, or `skipped` where something that it needs is not at hand.
        detail: The result, or the reason that it was skipped.
    """

    part: str
    state: State
    detail: str


def verify(
    folder: Path, *, adapter: str | Path | None = None, model: str | None = None, data: str | None = None
) -> tuple[Check, ...]:
    """Compare an export with its certificate.

    Args:
        folder: The export.
        adapter: The adapter's location now; the one in the certificate if None.
        model: The base model; the folder that the adapter's configuration names if None.
        data: The texts of the certificate, if they were not the default ones.

    Returns:
        One check for each part; the export agrees with its certificate if none of them differs.

    Raises:
        AdapterFileError: If there is no certificate, it is damaged, or the adapter is.
        SpecError: If there is no such model, or no such format.
    """
    certificate = read_certificate(folder)
    find_format(certificate.target)
    checks = [_compare_hashes("files", certificate.result, file_hashes(folder))]
    location = certificate.adapter.folder if adapter is None else adapter
    if not _exists(location):
        reason = f"the adapter '{location}' is not at hand; name it before the export's folder."
        return (*checks, *_skip(("adapter", "base", "layers", "logits"), reason))
    current = open_rankfold_adapter(location)
    checks.append(_compare_hashes("adapter", certificate.adapter.sha256, current.saved.sha256()))
    base = find_base(current, model)
    checks.append(_check_base(certificate, base))
    if has_difference(checks):
        return (*checks, *_skip(("layers", "logits"), "there is nothing to measure where files differ."))
    try:
        texts = read_texts(data)
    except DataError as error:
        texts = str(error)
    if certificate.label_scale is not None:
        current = with_label_scale(current, certificate.label_scale)
        base = None if base is None else replace(base, adapter=current)
    source = ExportSource(with_layers(current, base), base, None, texts)
    return (*checks, _check_layers(certificate, source, folder), _check_logits(certificate, source, folder))


def _exists(location: str | Path) -> bool:
    """Return whether there is a folder or file, or the store of a record `STORE#NAME`."""
    store, sign, _ = str(location).rpartition(RECORD_SIGN)
    return Path(location).exists() or (bool(sign) and Path(store).is_file())


def has_difference(checks: Sequence[Check]) -> bool:
    """Return whether an export differs from its certificate."""
    return any(check.state == "differs" for check in checks)


def _dtype(certificate: Certificate) -> torch.dtype:
    dtype = DTYPES.get(certificate.dtype, getattr(torch, certificate.dtype, None))
    if not isinstance(dtype, torch.dtype):
        raise AdapterFileError(
            f"the certificate's dtype '{certificate.dtype}' is unknown; export the adapter again."
        )
    return dtype


def _skip(parts: Sequence[str], reason: str) -> tuple[Check, ...]:
    return tuple(Check(part, "skipped", reason) for part in parts)


def _compare_hashes(part: str, expectation: Mapping[str, str], hashes: Mapping[str, str]) -> Check:
    """Compare hashes by file name."""
    faults = [
        f"'{name}' is {'missing' if name not in hashes else 'new' if name not in expectation else 'changed'}"
        for name in sorted({*expectation, *hashes})
        if expectation.get(name) != hashes.get(name)
    ]
    detail = ", ".join(faults) or f"{len(hashes)} files, hashes agree"
    return Check(part, "differs" if faults else "ok", detail)


def _check_base(certificate: Certificate, base: AdapterBase | None) -> Check:
    if certificate.base.sha256 is None:
        return Check("base", "skipped", "the base model was not at hand when the certificate was made.")
    if base is None:
        return Check("base", "skipped", "the base model is not at hand; name it with --model.")
    is_same = base.model.sha256() == certificate.base.sha256
    detail = "hash agrees" if is_same else f"'{base.model.name}' has other weights"
    return Check("base", "ok" if is_same else "differs", detail)


def _check_layers(certificate: Certificate, source: ExportSource, folder: Path) -> Check:
    if source.adapter.config.router is not None:
        reason = "the gates of a router are means over texts; the logits measure them."
        return Check("layers", "skipped", reason)
    try:
        layers = find_format(certificate.target).measure(source, folder, _dtype(certificate))
    except SpecError as error:
        return Check("layers", "skipped", str(error))
    errors = {layer.name: layer.written for layer in layers}
    statements = {layer.name: layer.written for layer in certificate.layers}
    faults = [name for name in {*statements, *errors} if not _agree(statements.get(name), errors.get(name))]
    if faults:
        name = min(faults)
        detail = f"'{name}' has error {errors.get(name)}, stated is {statements.get(name)}"
        return Check("layers", "differs", detail)
    largest = max(errors.values())
    return Check("layers", "ok", f"{len(errors)} layers, errors agree, the largest is {largest:.1e}")


def _agree(statement: float | None, error: float | None) -> bool:
    if statement is None or error is None:
        return False
    return abs(statement - error) <= _LAYER_SLACK + _SHARE * statement


def _check_logits(certificate: Certificate, source: ExportSource, folder: Path) -> Check:
    statement, texts = certificate.logits, source.texts
    if statement is None:
        return Check("logits", "skipped", certificate.logits_skipped or "they were not compared.")
    logits = find_format(certificate.target).compare_logits(source.base, texts, folder)
    if isinstance(logits, str):
        return Check("logits", "skipped", logits)
    if logits.sha256 != statement.sha256:
        return Check("logits", "skipped", f"they were compared on {statement.source}; name it with --data.")
    is_same = abs(logits.largest - statement.largest) <= _LOGITS_SLACK + _SHARE * statement.largest
    detail = f"the largest difference is {logits.largest:.1e}, stated is {statement.largest:.1e}"
    bound = rounding_bound(_dtype(certificate))
    if certificate.is_exact and not logits.largest <= bound:
        is_same, detail = False, f"{detail}, and rounding explains {bound:.1e}"
    return Check("logits", "ok" if is_same else "differs", detail)
