"""`rankfold export`: a saved adapter as plain LoRA, for llama.cpp, or merged, with a certificate."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rankfold.cli.console import note, print_checks, print_json, print_table, shown_notes
from rankfold.cli.options import SectionedCommand, json_option, section
from rankfold.errors import SpecError

if TYPE_CHECKING:
    from rankfold.export.certificate import Certificate

_output = section("What to write")
_comparison = section("How to compare")
_verification = section("Checking an export")

_SHOWN_LAYERS = 8


@click.command(cls=SectionedCommand)
@click.argument("locations", nargs=-1, metavar="ADAPTER OUT", type=click.Path(path_type=Path))
@_output(
    "--to",
    help="lora (PEFT, vLLM, TGI; if left out), gguf (llama.cpp), diffusers, kohya (ComfyUI), merged.",
)
@_output("--dtype", help="fp32, fp16 or bf16; fp32 if left out, or that of the base for a merged model.")
@_output("--compress-rank", type=int, metavar="N", help="Approximate with this rank; needed for routers.")
@_output("--compress-error", type=float, metavar="E", help="Approximate with at most this error of a layer.")
@_output("--overwrite", is_flag=True, help="Replace an earlier export.")
@_comparison("--model", help="The base model; the folder that the adapter names if left out.")
@_comparison("--data", metavar="PATH|HUB_ID", help="Texts to compare logits on; news articles if left out.")
@_verification(
    "--verify", is_flag=True, help="Compare the export OUT with its certificate; ADAPTER may be left out."
)
@json_option
def command(locations: tuple[Path, ...], *, verify: bool, as_json: bool, **options: Any) -> None:
    """Write an adapter for other programs into the folder OUT, with a certificate.

    ADAPTER is a folder, a packed file, or a record of a store as STORE#NAME.
    """
    with shown_notes():
        if verify:
            _check_no_output_options(options)
            _verify(locations, options["model"], options["data"], as_json=as_json)
        else:
            _export(locations, options, as_json=as_json)


def _export(locations: tuple[Path, ...], options: dict[str, Any], *, as_json: bool) -> None:
    from rankfold.export.compress import Compression
    from rankfold.export.export import ExportRequest, export
    from rankfold.runs.trained import open_trained

    match locations:
        case (adapter, out):
            pass
        case _:
            raise SpecError(
                f"an export takes two names, ADAPTER and OUT, but there are {len(locations)}; give both."
            )
    rank, error = options.pop("compress_rank"), options.pop("compress_error")
    is_exact = rank is None and error is None
    request = ExportRequest(
        adapter=adapter,
        out=out,
        compression=None if is_exact else Compression(rank, error),
        label_names=open_trained(adapter).label_names,
        **{name: value for name, value in options.items() if value is not None},
    )
    certificate = export(request)
    if as_json:
        print_json(certificate.to_dict())
    else:
        print_certificate(certificate, out)


def print_certificate(certificate: "Certificate", out: Path) -> None:
    """Print the certificate of an export as tables."""
    dtypes = {"fp32": "fp32", "written": certificate.dtype}
    if certificate.dtype == "fp32":
        del dtypes["fp32"]
    rows = [
        [layer.name, str(layer.rank), *(f"{getattr(layer, field):.1e}" for field in dtypes)]
        for layer in sorted(certificate.layers, key=lambda layer: -layer.written)[:_SHOWN_LAYERS]
    ]
    omitted_count = len(certificate.layers) - len(rows)
    promise = "exact up to rounding" if certificate.is_exact else "APPROXIMATE"
    print_table(
        ["layer", "rank", *(f"error {dtype}" for dtype in dtypes.values())],
        rows,
        title=f"{out}: {certificate.target}, {certificate.method}, {promise}",
        caption=f"and {omitted_count} layers with smaller errors" if omitted_count else None,
    )
    logits = certificate.logits
    lines = [["layers", str(len(certificate.layers))], ["rank", str(certificate.rank)]]
    if logits is None:
        lines.append(["logits", f"not compared: {certificate.logits_skipped}"])
    else:
        differences = f"largest difference {logits.largest:.1e}, mean {logits.mean:.1e}"
        lines.append(["logits", f"{differences}, on {logits.texts} texts ({logits.source})"])
    base = certificate.base
    lines.append(["base", f"{base.name or 'not named'} ({(base.sha256 or 'not at hand')[:16]})"])
    lines += [[f"sha256 of {name}", digest[:16]] for name, digest in certificate.result.items()]
    print_table(["certificate", ""], lines, left=(0, 1))


def _check_no_output_options(options: dict[str, Any]) -> None:
    names = [
        f"--{name.replace('_', '-')}"
        for name, value in options.items()
        if name not in ("model", "data") and value not in (None, False)
    ]
    if names:
        raise SpecError(
            f"{' and '.join(names)} say what to write, and --verify writes nothing; leave it out."
        )


def _verify(locations: tuple[Path, ...], model: str | None, data: str | None, *, as_json: bool) -> None:
    from rankfold.export.verify import has_difference, verify

    match locations:
        case (out,):
            adapter = None
        case (adapter, out):
            pass
        case _:
            raise SpecError("--verify takes the folder of one export, perhaps after its adapter; name it.")
    checks = verify(out, adapter=adapter, model=model, data=data)
    if as_json:
        print_json([asdict(check) for check in checks])
    else:
        print_checks(checks, str(out))
    if has_difference(checks):
        note(f"'{out}' differs from its certificate; export the adapter again.")
        raise click.exceptions.Exit(1)
