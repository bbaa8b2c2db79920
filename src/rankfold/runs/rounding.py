"""Round adapters with a certificate: pack them, save them from a model, and measure them again."""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, final

from peft import PeftModel

from rankfold.errors import AdapterFileError, DataError
from rankfold.export.logits import Texts, read_texts
from rankfold.export.rounding import certify_rounding
from rankfold.export.verify import Check
from rankfold.files import CONFIG_NAME, WEIGHTS_NAME
from rankfold.progress import quiet_libraries
from rankfold.runs.adapter_request import EvaluateRequest
from rankfold.runs.trained import open_trained
from rankfold.store.adapter import SavedAdapter
from rankfold.store.certificate import RoundingCertificate, ScoreChange
from rankfold.store.rounding import GRIDS, Dtype, restore, round_adapter
from rankfold.store.saved import Packed, check_packable, open_adapter, open_stored, write_packed

# Sums in another order, as another machine makes them, move an error this far.
_SLACK = 0.01


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """How the change by a rounding is measured.

    Args:
        model: The base model; the embedded model or the folder that the adapter names if None.
        data: Texts that outputs are compared on, as for `rankfold train`, whose metric is measured too; news
            articles if None.
        task: A named task, whose metric is measured.
        data_root: Folder with one subfolder per task.
        weights_only: Compare the weights alone, without loading the base model.
    """

    model: str | None = None
    data: str | None = None
    task: str | None = None
    data_root: str | None = None
    weights_only: bool = False


def pack_adapter(
    adapter: SavedAdapter | str | Path,
    file: str | Path,
    *,
    dtype: Dtype | None = None,
    overwrite: bool = False,
    **measurement: Any,
) -> Packed:
    """Write a saved adapter, of any PEFT method, as one file; `unpack_adapter` gives the folder back.

    The file of an adapter that is rounded to integers has a certificate: the measured change of the outputs
    of the base with the adapter or, if the base is not at hand, of its weights.

    Args:
        adapter: As for `open_adapter`.
        file: The file to write, in one step.
        dtype: Round the floating-point tensors to this type; without it the folder comes back byte for byte.
            Of a type of integers come back rounded numbers in the original types.
        overwrite: Whether to replace an earlier packed file; no other file is replaced.
        **measurement: Fields of `Measurement`: `model`, `data`, `task`, `data_root`, `weights_only`.

    Raises:
        AdapterFileError: If there is no adapter, it is damaged, or its weights are a pickle; or if a value is
            not finite or too large for the type.
        OutputExistsError: If the file exists, or is a folder; with `overwrite`, if it is no packed file.
        SpecError: If nothing can be written there, or there is no such model or task.
        DataError: If the data cannot be read.
    """
    check_packable(Path(file), overwrite=overwrite)
    certificate = certify(adapter, dtype, Measurement(**measurement))
    return write_packed(adapter, file, dtype=dtype, certificate=certificate, overwrite=overwrite)


def save(model: PeftModel, file: str | Path, *, dtype: Dtype | None = None, **options: Any) -> Packed:
    """Write the active adapter of a PEFT model, of any method, as one packed file.

    Args:
        model: The model.
        file: The file to write, in one step; `rankfold.load` and `rankfold.open_adapter` read it.
        dtype: Round to this type, such as "int4".
        **options: `overwrite`, and the fields of `Measurement`, as for `pack_adapter`.

    Raises:
        AdapterFileError: If a value is not finite or too large for the type.
        OutputExistsError: If the file exists, or is a folder; with `overwrite`, if it is no packed file.
        SpecError: If nothing can be written there, or there is no such model or task.
    """
    return pack_adapter(active_adapter(model), file, dtype=dtype, **options)


def active_adapter(model: PeftModel) -> SavedAdapter:
    """Return the active adapter of a PEFT model as it would be saved."""
    name: str = cast("Any", model).active_adapter
    with tempfile.TemporaryDirectory(prefix="rankfold-") as folder, quiet_libraries():
        cast("Any", model).save_pretrained(folder, selected_adapters=[name])
        path = next(Path(folder).rglob(CONFIG_NAME)).parent
        return replace(open_adapter(path), source="")


def certify(
    adapter: SavedAdapter | str | Path, dtype: Dtype | None, measurement: Measurement
) -> RoundingCertificate | None:
    """Return the measured change of an adapter by rounding it; None for a type that is not of integers.

    Raises:
        AdapterFileError: If there is no adapter, it is damaged, or a value cannot be rounded.
        SpecError: If there is no such model or task.
        DataError: If the data cannot be read.
    """
    if dtype is None or dtype not in GRIDS:
        return None
    exact = open_adapter(adapter)
    exact.check_finite()
    return _measure(adapter, restore(round_adapter(exact, dtype)), dtype, measurement)


def _measure(
    location: SavedAdapter | str | Path, approximation: SavedAdapter, dtype: Dtype, measurement: Measurement
) -> RoundingCertificate:
    certificate = certify_rounding(
        open_adapter(location),
        approximation,
        dtype,
        _texts(measurement),
        model=measurement.model,
        weights_only=measurement.weights_only,
    )
    if measurement.data is None and measurement.task is None:
        return certificate
    return replace(certificate, score=_score_change(location, approximation, measurement))


def _texts(measurement: Measurement) -> Texts | str:
    try:
        return read_texts(measurement.data)
    except DataError as error:
        if measurement.data is not None:
            raise
        return str(error)


def _score_change(
    adapter: SavedAdapter | str | Path, approximation: SavedAdapter, measurement: Measurement
) -> ScoreChange:
    """Evaluate an adapter with its exact and with its rounded numbers."""
    from rankfold.runs.evaluate import EvaluateResult, evaluate  # with what reads data, of an extra

    source = open_trained(adapter) if not isinstance(adapter, SavedAdapter) else None
    exact = open_adapter(adapter)
    if source is not None and source.manifest is not None:
        # An earlier rankfold wrote none; then it is that of the run.
        exact, approximation = (
            form.with_manifest(source.manifest).with_digest_of(form) for form in (exact, approximation)
        )
    with tempfile.TemporaryDirectory(prefix="rankfold-") as scratch:
        results: list[EvaluateResult] = []
        for name, form in (("exact", exact), ("rounded", approximation)):
            form.write(Path(scratch) / name)
            values: dict[str, Any] = {
                "model": measurement.model,
                "data": measurement.data,
                "task": measurement.task,
                "data_root": measurement.data_root,
            }
            results.append(evaluate(EvaluateRequest(adapter=Path(scratch) / name, **values)))
    before, after = results
    metric = before.metric
    return ScoreChange(before.task, metric, before.rows, before.metrics[metric], after.metrics[metric])


def verify_rounding(adapter: str | Path, stored: str | Path, measurement: Measurement) -> tuple[Check, ...]:
    """Compare a rounded adapter with the exact one, and measure its certificate again.

    Args:
        adapter: The exact adapter, as for `open_adapter`.
        stored: The packed file, or the record of a store.
        measurement: As the certificate was measured; the base model may be named anew.

    Returns:
        One check for each part: `adapter`, the measure of the certificate, and `score`.

    Raises:
        AdapterFileError: If one of them is damaged, or the stored one has no certificate.
    """
    exact, small = open_adapter(adapter), open_stored(stored)
    certificate = small.certificate
    if certificate is None:
        raise AdapterFileError(
            f"'{stored}' has no certificate of a rounding; name a file that was packed with --dtype int4."
        )
    is_same = exact.sha256()[WEIGHTS_NAME] == certificate.exact_sha256
    detail = "its hash agrees" if is_same else f"'{adapter}' has other weights than were rounded"
    checks = [Check("adapter", "ok" if is_same else "differs", detail)]
    if not is_same:
        return tuple(checks)
    if set(exact.tensors) != set(restore(small).tensors):
        return (*checks, Check(certificate.measure, "differs", f"'{stored}' has other tensors"))
    measurement = replace(measurement, weights_only=certificate.measure != "outputs")
    again = _measure(adapter, restore(small), cast("Dtype", certificate.dtype), measurement)
    return (*checks, *_compare(certificate, again))


def _compare(statement: RoundingCertificate, again: RoundingCertificate) -> list[Check]:
    part = statement.measure
    if again.measure != part:
        return [Check(part, "skipped", again.reason or "nothing to compare.")]
    if (again.inputs_sha256, again.base_sha256) != (statement.inputs_sha256, statement.base_sha256):
        return [
            Check(
                part, "skipped", f"it was measured on {statement.inputs} with '{statement.base}'; name them."
            )
        ]
    detail = f"the largest change is {again.largest:.2e}, stated is {statement.largest:.2e}"
    checks = [Check(part, _state(statement.largest, again.largest), detail)]
    if (before := statement.score) is not None and (after := again.score) is not None:
        detail = f"{after.name} is {after.rounded:.4f}, stated is {before.rounded:.4f}"
        checks.append(Check("score", _state(before.rounded, after.rounded), detail))
    return checks


def _state(statement: float, value: float) -> Any:
    return "ok" if abs(statement - value) <= _SLACK * abs(statement) + 1e-9 else "differs"
