"""The generated parts of the pages; `make docs` runs cog, which calls these functions, and then this file."""

import ast
import importlib
import json
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from textwrap import indent
from typing import Any

import click

from benchmarks.predicted import compared
from docs.diagram import DIAGRAM, diagram
from docs.picture import PICTURE, picture
from docs.scale_picture import SCALE_PICTURE, scale_picture
from rankfold.bench.statistics.claims import JudgedClaim
from rankfold.bench.suites.saved_suite import judge_suite, load_suite
from rankfold.cli.main import cli
from rankfold.presets import RECIPES, Option, discover, recommend
from rankfold.report.claims import CLAIM_COLUMNS, claim_cells
from rankfold.runs.fields import choices_of, fields_of, flag_of, option_of, value_type
from rankfold.runs.records import ARCHIVE_NAME as ARCHIVED
from rankfold.runs.records import read_archive
from rankfold.runs.request import HEAD_ONLY_NAME, RunRequest
from rankfold.store.record import schema

SCHEMA = Path(__file__).with_name("store.schema.json")

_ROOT = Path(__file__).resolve().parents[1]
_PACKAGE = _ROOT / "src" / "rankfold"
_RECORDS = _ROOT / "benchmarks" / "records"
_SIZES = _RECORDS / "size.json"
_TITLES = {"lora": "LoRA", "relayed_lora": "Relayed LoRA", "tlora": "TLoRA", "tlora_plus": "TLoRA+"}
_TRAINING_SECTIONS = ("How to train", "Learning rates by role")
_OTHER_OPTIONS = ("init_from", "checkpoint_every", "report_to", "device", "threads")
_VALUES = {int: "whole number", float: "number", bool: "", str: "text", dict: "NAME=VALUE"}
_TYPES = ("factor", "duplicate", "frozen")


def package_map() -> str:
    """Return the packages with what each is for, from the top layer to the bottom."""
    contracts = tomllib.loads((_ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = {
        container: [name.strip("()") for layer in contract["layers"] for name in layer.split(" | ")]
        for contract in contracts
        if contract["type"] == "layers"
        for container in contract["containers"]
    }
    return "\n".join(["```text", *_mapped(_PACKAGE, layers), "```"])


def _mapped(folder: Path, layers: Mapping[str, Sequence[str]], depth: int = 0) -> Iterator[str]:
    """Yield a line for everything in a package that has layers, and for the packages in one that has none."""
    found = layers.get(".".join(folder.relative_to(_PACKAGE.parent).parts))
    for name in found or sorted(inner.parent.name for inner in folder.glob("*/__init__.py")):
        place = folder / name
        source = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        purpose = (ast.get_docstring(ast.parse(source.read_text())) or "").partition("\n")[0]
        yield f"{'  ' * depth + name + '/' * place.is_dir():<20}{purpose}"
        if place.is_dir():
            yield from _mapped(place, layers, depth + 1)


def method_table() -> str:
    """Return the methods as a table: name, what it is, paper."""
    rows = (f"| `{preset.name}` | {preset.summary} | {preset.paper} |" for preset in discover().values())
    return "\n".join(["| method | what it is | paper |", "| --- | --- | --- |", *rows])


def method_pages() -> str:
    """Return a section for each method with its options and their defaults."""
    return "\n\n".join(_method_page(name) for name in discover())


def recipe_table() -> str:
    """Return the recommended rates and layers of every method as a table."""
    rows: list[list[str]] = []
    for name, recipe in RECIPES.items():
        learned = "" if recipe.rate_range is None else "{:g} to {:g}".format(*recipe.rate_range)
        usual = "" if name == HEAD_ONLY_NAME else "PEFT's for the model"
        layers = f"`{recipe.targets}`" if recipe.targets else usual
        rows.append([f"`{name}`", layers, f"{recipe.learning_rate:g}", learned, recipe.record or "none yet"])
    titles = ["method", "layers", "rate", "learned from", "record"]
    lines = [titles, ["---", "---", "---:", "---", "---"], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _method_page(name: str) -> str:
    preset = discover()[name]
    rows = [
        f"| `{option}` | `{value.default!r}` | {_option_text(value)} |"
        for option, value in preset.options.items()
    ]
    return "\n".join(
        [
            f"## {preset.title} {{ #{preset.name} }}",
            "",
            f'`rankfold.config("{preset.name}")` · {preset.paper}',
            "",
            preset.summary,
            "",
            f"`rankfold train` without other values: {recommend(name).describe()}.",
            "",
            "| option | default | meaning |",
            "| --- | --- | --- |",
            *rows,
        ]
    )


def _option_text(option: Option) -> str:
    if not option.choices:
        return option.help
    return f"{option.help} ({', '.join(f'`{choice}`' for choice in option.choices)})"


def task_table() -> str:
    """Return the named tasks as a table."""
    from rankfold.tasks import NAMED_TASKS  # the other pages can do without these seconds

    heads = ["task", "kind", "metrics", "version", "train", "validation", "licence", "on the hub"]
    lines = [f"| {' | '.join(heads)} |", "| --- | --- | --- | --- | ---: | ---: | --- | --- |"]
    for task in NAMED_TASKS.values():
        counts = [f"{task.rows[split]:,}" if split in task.rows else "" for split in ("train", "validation")]
        metrics = ", ".join(task.metrics)
        kind = task.kind or "multiple_choice"
        hub = f"`{task.hub}`" if task.hub else "embedded"
        cells = [f"`{task.name}`", kind, metrics, str(task.version), *counts, task.licence or "", hub]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


_LIMITS = ("limits.py", "tasks/data/decode.py", "tasks/data/json_rows.py", "store/strict_json.py")


def limits_table() -> str:
    """Return the limits on numbers in files and options, each with its meaning."""
    rows: list[list[str]] = []
    for name in _LIMITS:
        module = importlib.import_module(f"rankfold.{name.removesuffix('.py').replace('/', '.')}")
        body = ast.parse((_PACKAGE / name).read_text()).body
        for statement, meaning in pairwise(body):
            match statement, meaning:
                case (
                    ast.Assign(targets=[ast.Name(id=constant)]),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ) if constant.startswith(("MOST_", "MAX_", "MATCH_")):
                    meaning_text = " ".join(text.split()).rstrip(".")
                    rows.append([meaning_text, f"{getattr(module, constant):,}"])
                case _:
                    pass
    return _table_of_numbers(["limit", "value"], rows)


def training_options() -> str:
    """Return the options of a training as a table: option, values, default, meaning."""
    lines = ["| option | values | default | meaning |", "| --- | --- | --- | --- |"]
    for name, field in fields_of(RunRequest).items():
        if option_of(field).section not in _TRAINING_SECTIONS and name not in _OTHER_OPTIONS:
            continue
        default = field.get_default(call_default_factory=True)
        values = " ".join(f"`{choice}`" for choice in choices_of(field)) or _VALUES[value_type(field)]
        text = (field.description or "").partition("  [default")[0].replace("|", "\\|")
        shown = "" if default is None or isinstance(default, dict) else f"`{str(default).lower()}`"
        lines.append(f"| `{flag_of(name, field)}` | {values} | {shown} | {text} |")
    return "\n".join(lines)


def cost_table() -> str:
    """Return the predicted times of a training step beside the measured ones."""
    rows = (
        f"| {each.setting} | {each.variant} | {each.predicted:.2f} | {each.measured:.2f} |"
        for each in compared()
    )
    heads = ["| layers, rank | method | predicted | measured |", "| --- | --- | --- | --- |"]
    return "\n".join([*heads, *rows])


def size_table() -> str:
    """Return the table of adapter sizes and packed sizes, from the record of `benchmarks/size.py`."""
    titles = ["method", "weights file", "learned", "copies", "frozen", "packed", "%", "bf16", "int8", "int4"]
    rows: list[list[str]] = []
    for name, method in _sizes().items():
        types, (exact, *rounded) = method["bytes_by_type"], method["packed"].values()
        sizes = [method["weights_bytes"], *(types.get(type_, 0) for type_ in _TYPES), exact["bytes"]]
        rows.append([name, *(f"{size:,}" if size else "" for size in sizes), f"{100 * exact['ratio']:.3g}"])
        rows[-1] += [f"{file['bytes']:,} ({file['relative_error']:.2g})" for file in rounded]
    return _table_of_numbers(titles, rows)


def verdict_table() -> str:
    """Return what the records of every suite say to its claims."""
    heads = [*CLAIM_COLUMNS, "suite"]
    rows = [
        f"| {' | '.join([*claim_cells(judgement), f'`{suite}`'])} |" for suite, judgement in _judgements()
    ]
    return "\n".join([f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}", *rows])


def verdict_counts() -> str:
    """Return in a sentence how many claims of the papers, and of our own, have which verdict."""

    def count(*, is_own: bool) -> str:
        judgements = [
            claim for _, claim in _judgements() if claim.claim.source.startswith("rankfold") == is_own
        ]
        verdicts = Counter(claim.verdict for claim in judgements).most_common()
        return ", ".join(f"{number} {verdict}" for verdict, number in verdicts)

    return (
        "Claims of the papers, asked again with tuned rates, three or five seeds and paired intervals: "
        f"{count(is_own=False)}. Claims of our own: {count(is_own=True)} "
        "([all of them](docs/experiments.md))."
    )


@cache
def _judgements() -> list[tuple[str, JudgedClaim]]:
    """Return the suites of the committed records with what these say to each claim."""
    return [
        (suite.name, judgement)
        for file in sorted(_RECORDS.glob(f"*/{ARCHIVED}"))
        if (suite := load_suite(file.parent))
        for judgement in judge_suite(suite, read_archive(file).values())
    ]


def measured_table() -> str:
    """Return the main figures of the committed benchmark records as a table: what, how much, command."""
    step = _record("training_step")["settings"]["all-linear r16"]["ratio"]
    store = _record("store")["methods"]["tlora"]
    export = _record("export")["methods"]["relayed_lora"]
    beside_peft = ", ".join(f"{_TITLES[name]} {step[name]:.2f}" for name in _TITLES)
    rows = [
        (
            "time of a training step, as a multiple of PEFT's LoRA (MiniLM, all linear layers, r = 16)",
            beside_peft,
            "training_step.py",
        ),
        (
            f"one file of {store['size']['records']:,} adapters (TLoRA, r = 8)",
            f"{store['size']['file_bytes'] / store['size']['learned_bytes']:.2f} × their learned bytes; "
            f"one is read in {1000 * store['get_seconds']['large']['p50']:.2f} ms (median)",
            "store.py",
        ),
        (
            "loading 1,000 adapters from the store, as a multiple of PEFT's time from folders",
            f"{store['load_1000_seconds']['ratio']:.2f}",
            "store.py",
        ),
        (
            "exact export of Relayed LoRA to plain LoRA: relative error of the weights; time beside an SVD",
            f"{export['fold_error']:.0e}, {export['ratio']:.2f} ×",
            "export.py",
        ),
    ]
    lines = [f"| {what} | {figure} | `benchmarks/{script}` |" for what, figure, script in rows]
    return "\n".join(["| measured | figure | script |", "| --- | --- | --- |", *lines])


def _record(name: str) -> dict[str, Any]:
    return json.loads((_RECORDS / f"{name}.json").read_text("utf-8"))


def _sizes() -> dict[str, Any]:
    return json.loads(_SIZES.read_text("utf-8"))["methods"]


def _table_of_numbers(titles: list[str], rows: list[list[str]]) -> str:
    """Return a table whose first column is words."""
    lines = [f"| {' | '.join(row)} |" for row in (titles, *rows)]
    return "\n".join([lines[0], "| --- |" + " ---: |" * (len(titles) - 1), *lines[1:]])


def command_reference() -> str:
    """Return the help text of every command, as the program prints it."""
    sections = (f"## {path}\n\n{indent(text, '    ')}" for path, text in _help_texts(cli, "rankfold"))
    return "\n\n".join(sections)


def _help_texts(
    command: click.Command, name: str, parent: click.Context | None = None
) -> Iterator[tuple[str, str]]:
    context = click.Context(command, parent, name, terminal_width=100, **command.context_settings)
    yield context.command_path, command.get_help(context)
    if isinstance(command, click.Group):
        for member_name in command.list_commands(context):
            member = command.get_command(context, member_name)
            assert member is not None
            yield from _help_texts(member, member_name, context)


def record_schema() -> str:
    """Return the JSON schema of a store's records, as it is published."""
    return f"{json.dumps(schema(), indent=2)}\n"


if __name__ == "__main__":
    SCHEMA.write_text(record_schema(), "utf-8")
    DIAGRAM.write_text(diagram(), "utf-8")
    PICTURE.write_text(picture(), "utf-8")
    SCALE_PICTURE.write_text(scale_picture(), "utf-8")
