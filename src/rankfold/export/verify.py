"""Checking an export against its certificate: every hash and every number anew."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, final

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from rankfold.errors import AdapterFileError, DataError
from rankfold.export.base import Base, find_base
from rankfold.export.certificate import MERGED, NAME, PLAIN_LORA, Certificate
from rankfold.export.certify import compared_logits, exact_bound, hashes
from rankfold.export.export import DTYPES
from rankfold.export.folding import fold_layers, with_layers
from rankfold.export.measure import relative_error
from rankfold.export.merged import drifts
from rankfold.export.opened import OpenedAdapter, open_adapter
from rankfold.export.texts import find_texts
from rankfold.export.written import written_layers

State = Literal["ok", "differs", "skipped"]

# Sums in another order, as another machine makes them, move the errors of layers and of logits this far.
_LAYER_SLACK, _LOGITS_SLACK = 1e-9, 1e-6
_SHARE = 0.01


@final
@dataclass(frozen=True, slots=True)
class Check:
    """One promise of a certificate, looked at again.

    Args:
        what: The promise.
        state: `ok`, `differs`, or `skipped` where what it takes is not at hand.
        detail: What was found.
    """

    what: str
    state: State
    detail: str


def read_certificate(folder: Path) -> Certificate:
    """Return the certificate of an export.

    Raises:
        AdapterFileError: If there is none, or it is damaged.
    """
    path = folder / NAME
    if not folder.is_dir():
        raise AdapterFileError(f"there is no folder '{folder}'; name that of an export.")
    try:
        return _reader().validate_json(path.read_bytes())
    except OSError as error:
        raise AdapterFileError(
            f"'{folder}' has no {NAME} that can be read; name the folder of an export."
        ) from error
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(str(part) for part in fault["loc"]) or "the file"
        raise AdapterFileError(
            f"'{path}' is damaged ({place}: {fault['msg']}); export the adapter again."
        ) from error


def verify(
    folder: Path, *, adapter: Path | None = None, model: str | None = None, data: str | None = None
) -> tuple[Check, ...]:
    """Compare an export with its certificate.

    Args:
        folder: The export.
        adapter: Where the adapter is now; where the certificate says if None.
        model: The base model; where the adapter's configuration says if None.
        data: The texts of the certificate, if they were not the usual ones.

    Returns:
        One check for each promise; the export is what its certificate says if none of them differs.

    Raises:
        AdapterFileError: If there is no certificate, it is damaged, or the adapter is.
        SpecError: If there is no such model.
    """
    certificate = read_certificate(folder)
    checks = [_compared("files", certificate.result, hashes(folder))]
    place = Path(certificate.adapter.folder) if adapter is None else adapter
    if not place.is_dir():
        reason = f"the adapter '{place}' is not at hand; name it before the export's folder."
        return (
            *checks,
            *(Check(what, "skipped", reason) for what in ("adapter", "base", "layers", "logits")),
        )
    saved = open_adapter(place)
    checks.append(_compared("adapter", certificate.adapter.sha256, saved.sha256()))
    base = find_base(saved, model)
    checks.append(_base(certificate, base))
    if any(check.state == "differs" for check in checks):
        reason = "there is nothing to measure where files differ."
        return (*checks, *(Check(what, "skipped", reason) for what in ("layers", "logits")))
    saved = with_layers(saved, base)
    return (*checks, _layers(certificate, saved, base, folder), _logits(certificate, base, folder, data))


@cache
def _reader() -> TypeAdapter[Certificate]:
    # Built on first use: it takes longer than reading.
    return TypeAdapter(with_config(ConfigDict(extra="forbid", strict=True))(Certificate))


def _compared(what: str, expected: Mapping[str, str], found: Mapping[str, str]) -> Check:
    """Compare hashes by file name."""
    wrong = [
        f"'{name}' is {'missing' if name not in found else 'new' if name not in expected else 'changed'}"
        for name in sorted({*expected, *found})
        if expected.get(name) != found.get(name)
    ]
    return Check(what, "differs" if wrong else "ok", ", ".join(wrong) or f"{len(found)} files, hashes agree")


def _base(certificate: Certificate, base: Base | None) -> Check:
    if certificate.base.sha256 is None:
        return Check("base", "skipped", "the base model was not at hand when the certificate was made.")
    if base is None:
        return Check("base", "skipped", "the base model is not at hand; name it with --model.")
    is_same = base.found.sha256() == certificate.base.sha256
    detail = "hash agrees" if is_same else f"'{base.found.name}' has other weights"
    return Check("base", "ok" if is_same else "differs", detail)


def _layers(certificate: Certificate, saved: OpenedAdapter, base: Base | None, folder: Path) -> Check:
    errors = _errors(certificate, saved, base, folder)
    if isinstance(errors, str):
        return Check("layers", "skipped", errors)
    stated = {layer.name: layer.written for layer in certificate.layers}
    wrong = [name for name in {*stated, *errors} if not _agree(stated.get(name), errors.get(name))]
    if wrong:
        name = min(wrong)
        return Check(
            "layers", "differs", f"'{name}' has error {errors.get(name)}, stated is {stated.get(name)}"
        )
    return Check(
        "layers", "ok", f"{len(errors)} layers, errors agree, the largest is {max(errors.values()):.1e}"
    )


def _errors(
    certificate: Certificate, saved: OpenedAdapter, base: Base | None, folder: Path
) -> dict[str, float] | str:
    """Return the error of each layer, measured anew, or why that cannot be done."""
    if certificate.target != PLAIN_LORA and base is None:
        return "the base model is not at hand; name it with --model."
    if saved.config.router is not None:
        return "the gates of a router are the means over texts; the logits tell more."
    if certificate.target == MERGED and base is not None:
        return {each.name: each.written for each in drifts(base.adapted(), DTYPES[certificate.dtype])}
    trained = fold_layers(saved, base, None).trained
    written = written_layers(certificate.target, folder, saved, base)
    return {name: relative_error(written[name], product) for name, product in trained.items()}


def _agree(stated: float | None, found: float | None) -> bool:
    if stated is None or found is None:
        return False
    return abs(stated - found) <= _LAYER_SLACK + _SHARE * stated


def _logits(certificate: Certificate, base: Base | None, folder: Path, data: str | None) -> Check:
    stated = certificate.logits
    if stated is None:
        return Check("logits", "skipped", certificate.logits_skipped or "they were not compared.")
    try:
        texts = find_texts(data)
    except DataError as error:
        return Check("logits", "skipped", str(error))
    if texts.sha256() != stated.sha256:
        return Check("logits", "skipped", f"they were compared on {stated.source}; name it with --data.")
    found = compared_logits(certificate.target, base, texts, folder)
    if isinstance(found, str):
        return Check("logits", "skipped", found)
    is_same = abs(found.largest - stated.largest) <= _LOGITS_SLACK + _SHARE * stated.largest
    detail = f"the largest difference is {found.largest:.1e}, stated is {stated.largest:.1e}"
    if certificate.is_exact and not found.largest <= (bound := exact_bound(DTYPES[certificate.dtype])):
        is_same, detail = False, f"{detail}, and rounding explains {bound:.1e}"
    return Check("logits", "ok" if is_same else "differs", detail)


def failed(checks: Sequence[Check]) -> bool:
    """Return whether an export is not what its certificate says."""
    return any(check.state == "differs" for check in checks)
