"""`rankfold fit`: the compositions that fit a budget, and a choice between them on the user's data."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from rankfold import __version__
from rankfold.cli.console import (
    kept_when_interrupted,
    note,
    print_json,
    print_table,
    progress_screen,
    shown_notes,
)
from rankfold.cli.options import DATA_FIELDS, SectionedCommand, json_option, request_options, section
from rankfold.errors import SpecError
from rankfold.models.names import EMBEDDED_LIST
from rankfold.runs.check import check_preset_name
from rankfold.runs.fields import split_list
from rankfold.runs.request import RunRequest

if TYPE_CHECKING:
    from rankfold.bench.fit.candidates import Proposal
    from rankfold.bench.fit.search import FitChoice

_SUBJECT, _TRAINING, _PLACE = "What to fit", "How to train, with --run", "Where, with --run"
_subject_option, _training_option, _place_option = map(section, (_SUBJECT, _TRAINING, _PLACE))

# Data are read with --run only, but their kind and length decide what fits; answers are always scored alike.
_FITTED_DATA = tuple(name for name in DATA_FIELDS if name not in ("kind", "max_length", "scoring"))
_HELP_TEXTS = {
    "model": f"{EMBEDDED_LIST}, a folder, a config.json, a GGUF file or a hub id.",
    "eval_rows": "Of the rows that are held out, evaluate on this many.",
}

# What means something without training too.
_ALWAYS = {
    "model", "methods", "budget_params", "budget_bytes", "budget_step", "store", "basis", "candidates",
    "kind", "batch_size", "max_length", "all_shown", "is_run", "as_json",
}  # fmt: skip

_EPILOG = """\b
Examples:
  rankfold fit --model minilm --budget-params 60k
  rankfold fit --model config.json --bytes 128KB --budget-step 1.1x --all
  rankfold fit --model minilm --task bbc_news --bytes 12KiB --run --dry-run
  rankfold fit --model minilm --task bbc_news --bytes 12KiB --run --out runs/fit
"""


@click.command(cls=SectionedCommand, epilog=_EPILOG)
@request_options(RunRequest, ("model",), section=_SUBJECT, help_texts=_HELP_TEXTS)
@_subject_option("--budget-params", metavar="60k", help="Maximum of trained parameters, without a task head.")
@_subject_option(
    "--bytes",
    "--budget-bytes",
    "budget_bytes",
    metavar="12KiB",
    help="Maximum bytes of these parameters as they are stored; KB, MB, KiB, MiB.",
)
@_subject_option(
    "--budget-step",
    metavar="1.1x",
    help="Maximum predicted time of a training step, relative to LoRA of rank 8 on PEFT's default layers.",
)
@_subject_option(
    "--methods", metavar="A,B", help="Only these methods of `rankfold methods`; all of them if left out."
)
@_subject_option(
    "--store",
    metavar="int4,fp32",
    help="The types that adapters may be stored in.  [default: int4,fp32 with --bytes, else fp32]",
)
@_subject_option(
    "--basis", metavar="FILE|NAME", help="A basis of `rankfold basis learn`, for cores and LoRA on it."
)
@_subject_option(
    "--candidates",
    type=int,
    default=25,
    help="How many compositions are on the short list.",
)
@request_options(RunRequest, ("kind", "batch_size", "max_length"), section=_SUBJECT)
@_subject_option(
    "--all", "all_shown", is_flag=True, help="Show every composition, including those that cannot be built."
)
@_subject_option(
    "--run", "is_run", is_flag=True, help="Train the compositions of the short list, and choose one."
)
@_subject_option(
    "--dry-run", "is_dry_run", is_flag=True, help="With --run, print its plan and train nothing."
)
@request_options(RunRequest, _FITTED_DATA, section="Data, with --run", help_texts=_HELP_TEXTS)
@_training_option("--steps", type=int, default=240, help="Updates of the last rung.")
@_training_option(
    "--eta",
    type=int,
    default=5,
    help="Each rung keeps one run in ETA, and trains it for ETA times the steps.",
)
@request_options(RunRequest, ("seed", "precision", "group_by_length"), section=_TRAINING)
@_place_option(
    "--out", type=click.Path(path_type=Path), help="Folder of runs and report.  [default: runs/fit]"
)
@_place_option("--overwrite", is_flag=True, help="Start again in a folder of an earlier choice.")
@request_options(RunRequest, ("device", "threads"), section=_PLACE)
@json_option
def command(
    *,
    methods: str | None,
    budget_params: str | None,
    budget_bytes: str | None,
    budget_step: str | None,
    store: str | None,
    basis: str | None,
    candidates: int,
    all_shown: bool,
    is_run: bool,
    is_dry_run: bool,
    as_json: bool,
    steps: int,
    eta: int,
    out: Path | None,
    overwrite: bool,
    **base: Any,
) -> None:
    """List the compositions that fit a budget, and choose one on your data.

    Parameters of every method are counted for several ranks, options, sets of layers and types, exactly,
    without loading weights. With --run those that use most of the budget are trained, successive halving
    chooses one on rows held out of the training split, and its adapter is written as it is to be stored. A
    choice that was stopped continues with the same command.
    """
    names = split_list("--methods", methods)
    for name in names:
        check_preset_name(name)
    default_types = "fp32" if budget_bytes is None else "int4,fp32"
    types = split_list("--store", default_types if store is None else store)
    from rankfold.bench.fit.budget import Budget, parse_bytes, parse_count, parse_step
    from rankfold.bench.fit.candidates import Space, propose  # --help can do without these seconds

    budget = Budget(
        None if budget_params is None else parse_count(budget_params),
        None if budget_bytes is None else parse_bytes(budget_bytes),
        None if budget_step is None else parse_step(budget_step),
    )
    space = Space(names, types, basis, candidates)
    if not is_run:
        _refuse_unused()
    elif all_shown:
        raise SpecError("--all has no effect with --run, which trains the short list; leave one of them out.")
    settings = {name: value for name, value in base.items() if value is not None}
    with progress_screen() as new_bar:
        proposal = propose(settings, budget, space, reads_data=is_run, progress=new_bar())
    if not is_run:
        _print_list(proposal, all_shown=all_shown, as_json=as_json)
        if not (as_json or all_shown):
            _note_left_out(proposal)
        return
    from rankfold.bench.fit.search import fit, plan_search

    plan = plan_search(proposal, out or Path("runs/fit"), steps=steps, eta=eta)
    rungs = zip(plan.sizes, plan.rungs, strict=True)
    rung_list = ", then ".join(f"{runs} of {steps:,} steps" for runs, steps in rungs)
    note(f"{len(plan.candidates)} candidates: {rung_list}; {plan.updates:,} updates in all.")
    _note_left_out(proposal)
    if plan.reference is None:
        note("PEFT's LoRA in float32 does not fit the budget, so nothing is compared with it.")
    if is_dry_run:
        _print_list(proposal, all_shown=False, as_json=as_json)
        return
    with kept_when_interrupted(overwrite=overwrite), shown_notes(), progress_screen() as new_bar:
        choice = fit(plan, make_progress=new_bar, overwrite=overwrite)
    _report(choice, plan.out, as_json=as_json)


def _refuse_unused() -> None:
    """Refuse options that mean something with --run only."""
    context = click.get_current_context()
    for parameter in context.command.params:
        name = parameter.name or ""
        is_given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if is_given and name not in _ALWAYS:
            raise SpecError(f"{parameter.opts[0]} has no effect without --run; add --run, or leave it out.")


def _print_list(proposal: "Proposal", *, all_shown: bool, as_json: bool) -> None:
    if as_json:
        print_json(proposal.to_dict(all_shown=all_shown))
        return
    budget, candidates = proposal.budget, proposal.fitting if all_shown else proposal.shortlist
    rows = [
        [
            candidate.label,
            f"{candidate.size.numbers:,}",
            f"{candidate.size.bytes:,}",
            f"{candidate.size.step:.3f}x",
            f"{budget.use(candidate.size):.0%}",
        ]
        for candidate in candidates
        if candidate.size is not None
    ]
    print_table(
        ["composition", "trainable", "bytes", "step", "of the budget"],
        rows,
        title=f"within {budget.text()}",
        caption=proposal.small_print(),
    )
    if all_shown and proposal.unbuilt:
        print_table(
            ["not built", "reason"],
            [[candidate.label, candidate.reason or ""] for candidate in proposal.unbuilt],
            left=(0, 1),
        )
    elif not all_shown:
        note(
            f"{len(proposal.fitting)} of {len(proposal.candidates)} compositions fit, and "
            f"{len(proposal.unbuilt)} cannot be built on this model; "
            "--all shows them, --run chooses by training."
        )


def _note_left_out(proposal: "Proposal") -> None:
    for method, reason in proposal.left_out.items():
        note(f"{method} is left out: {reason}.")


def _report(choice: "FitChoice", folder: Path, *, as_json: bool) -> None:
    from shlex import join

    from rankfold.bench.fit.search import CHOSEN_NAME
    from rankfold.cli.results import print_report, report_as_json
    from rankfold.report.study import make_report
    from rankfold.report.write import write_report

    report = make_report(choice.records)
    page = write_report(report, folder, version=__version__)
    if as_json:
        command = list(choice.request.command())
        print_json(
            {
                "chosen": choice.winner.label,
                "reason": choice.reason(),
                "adapter": str(folder / CHOSEN_NAME),
                "command": command,
                **report_as_json(report),
            }
        )
    else:
        print_report(report)
    note(f"chosen: {choice.winner.label}; {choice.reason()}")
    note(f"adapter: {folder / CHOSEN_NAME}; train it at full length on all rows with")
    note(f"  {join(choice.request.command())}")
    note(f"report: {page}")
