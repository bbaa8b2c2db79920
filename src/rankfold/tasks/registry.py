"""Named tasks, and where the data of a task is: embedded, in a folder, in a file, or on the hub.

Other packages add tasks through the entry point group `rankfold.tasks`.
"""

import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from rankfold.errors import DataError, SpecError, unknown_name
from rankfold.plugins import find_plugin
from rankfold.tasks.data.read import Row, Source, Table, find_source
from rankfold.tasks.task import SEPARATOR, Task, TaskRequest

logger = logging.getLogger("rankfold.tasks")

EMBEDDED_TASK, EMBEDDED_PICTURES = "bbc_news", ("easy_vqa", "easy_vqa_grids", "emoji_noto")
DATA_ROOT = "RANKFOLD_DATA"
GROUP = "rankfold.tasks"


def find_task(request: TaskRequest) -> tuple[Task, Source | None]:
    """Return the task and where its data is; None is the embedded data.

    A folder of the task's name goes before embedded pictures and before the hub.

    Raises:
        SpecError: If neither task nor data is given, or the task is unknown.
        DataError: If there is no data of that name.
    """
    name = request.task
    if request.data is not None:
        task = Task(request.name, None, ()) if name is None else _require_task(name)
        return task, find_source(request.data)
    if name is None:
        raise nothing_named()
    if name == EMBEDDED_TASK:
        return NAMED_TASKS[name], None
    folder = _folder(request, name)
    if folder is not None and folder.is_dir():
        return _lookup_task(name) or Task(name, None, ()), find_source(str(folder))
    if name in EMBEDDED_PICTURES:
        return NAMED_TASKS[name], None
    task = _require_task(name, folder)
    if folder is not None and _holds_splits(folder.parent):
        raise DataError(
            f"'{folder.parent}' holds splits itself; name the folder above it, or give it with --data."
        )
    return _on_hub(task, f"there is no folder '{folder}'" if folder else f"'{name}' is not embedded")


def check_named(request: TaskRequest) -> None:
    """Check that each task of a request is known, or that a folder has its name, without reading any data.

    Raises:
        SpecError: If neither task nor data is given, or a task is unknown.
    """
    if request.task is None and request.data is None:
        raise nothing_named()
    for name in filter(None, (request.task or "").split(SEPARATOR)):
        folder = _folder(request, name)
        if folder is None or not folder.is_dir():
            _require_task(name, folder)


def _folder(request: TaskRequest, name: str) -> Path | None:
    root = request.data_root or os.environ.get(DATA_ROOT)
    return Path(root).expanduser() / name if root else None


def _holds_splits(folder: Path) -> bool:
    try:
        return folder.is_dir() and bool(find_source(str(folder)).files)
    except DataError:
        return False


def nothing_named() -> SpecError:
    """Return the error for a run that has nothing to learn."""
    return SpecError("neither a task nor data is given; name a task with --task or data with --data.")


def _on_hub(task: Task, nowhere_else: str) -> tuple[Task, Source]:
    remedy = f"name the folder that holds a folder '{task.name}' with --data-root or {DATA_ROOT}"
    if task.hub is None:
        raise DataError(f"{nowhere_else}; {remedy}, or the data itself with --data.")
    logger.info("%s; asking the hub for '%s'.", nowhere_else, task.hub)
    return task, replace(find_source(task.hub), instead=remedy)


def _require_task(name: str, folder: Path | None = None) -> Task:
    """Return the task of a name; where there is none, folders beside its own are suggested too."""
    if (task := _lookup_task(name)) is None:
        names = {*NAMED_TASKS, *entry_points(group=GROUP).names}
        if folder is not None and folder.parent.is_dir():
            names |= {path.name for path in folder.parent.iterdir() if path.is_dir()}
        raise unknown_name("task", name, names)
    return task


def _lookup_task(name: str) -> Task | None:
    """Return the task of a name: one of ours, or of another package, of which only this one is loaded."""
    return find_plugin(GROUP, name, "task", Task, is_ours=name in NAMED_TASKS) or NAMED_TASKS.get(name)


_ENTAILMENT = ("entailment", "not_entailment")
_PARAPHRASE = ("accuracy", "f1")
_NEWS_METRICS = ("accuracy", "macro_f1")


def _news(name: str, labels: tuple[str, ...], licence: str, *rows: int, hub: str | None = None) -> Task:
    return Task(
        name,
        "classification",
        _NEWS_METRICS,
        labels,
        licence,
        version=1,
        rows=dict(zip(("train", "test", "validation"), rows, strict=False)),
        hub=hub,
    )


def _glue(
    name: str, metrics: tuple[str, ...], labels: tuple[str, ...] | None, licence: str, *rows: int
) -> Task:
    """Return a task of GLUE; its rows are those of train, validation and, for mnli, a second validation."""
    return Task(
        name,
        "regression" if labels is None else "classification",
        metrics,
        labels,
        licence,
        version=1,
        rows=dict(zip(("train", "validation", "validation_mismatched"), rows, strict=False)),
        hub=f"nyu-mll/glue:{name}",
    )


def _commonsense(name: str, hub: str, licence: str, *rows: int, word: str = "answer") -> Task:
    """Return a question with choices: of one class if they are the same everywhere, else answered as text."""
    return Task(
        name,
        None,
        ("accuracy",),
        licence=licence,
        version=1,
        rows=dict(zip(("train", "validation", "test"), rows, strict=False)),
        hub=hub,
        choice_word=word,
    )


_TASKS = (
    _news(
        "bbc_news",
        ("business", "entertainment", "politics", "sport", "tech"),
        "BBC articles; for non-commercial research",
        *(1274, 425, 425),
    ),
    _news(
        "ag_news",
        ("World", "Sports", "Business", "Sci/Tech"),
        "non-commercial",
        *(120_000, 7_600),
        hub="fancyzhx/ag_news",
    ),
    _glue("cola", ("matthews", "accuracy"), ("unacceptable", "acceptable"), "not stated", 8_551, 1_043),
    _glue("sst2", ("accuracy",), ("negative", "positive"), "not stated", 67_349, 872),
    _glue("mrpc", _PARAPHRASE, ("not_equivalent", "equivalent"), "research only", 3_668, 408),
    _glue("qqp", _PARAPHRASE, ("not_duplicate", "duplicate"), "non-commercial", 363_846, 40_430),
    _glue("stsb", ("pearson", "spearman"), None, "CC BY-SA 4.0 and others", 5_749, 1_500),
    _glue(
        "mnli",
        ("accuracy",),
        ("entailment", "neutral", "contradiction"),
        "several; see its authors",
        *(392_702, 9_815, 9_832),
    ),
    _glue("qnli", ("accuracy",), _ENTAILMENT, "CC BY-SA 4.0", 104_743, 5_463),
    _glue("rte", ("accuracy",), _ENTAILMENT, "not stated", 2_490, 277),
    _glue("wnli", ("accuracy",), ("not_entailment", "entailment"), "CC BY 4.0", 635, 71),
    _commonsense("boolq", "google/boolq", "CC BY-SA 3.0", 9_427, 3_270),
    _commonsense("arc_easy", "allenai/ai2_arc:ARC-Easy", "CC BY-SA 4.0", 2_251, 570, 2_376),
    _commonsense("arc_challenge", "allenai/ai2_arc:ARC-Challenge", "CC BY-SA 4.0", 1_119, 299, 1_172),
    _commonsense("openbookqa", "allenai/openbookqa:main", "Apache-2.0", 4_957, 500, 500),
    # Of piqa and social_i_qa the authors' own place has a script, which the hub's library runs no more.
    _commonsense("piqa", "baber/piqa", "AFL-3.0", 16_113, 1_838, word="solution"),
    _commonsense("social_i_qa", "lighteval/siqa", "not stated", 33_410, 1_954),
    _commonsense("winogrande", "allenai/winogrande:winogrande_xl", "CC BY 4.0", 40_398, 1_267, word="option"),
    _commonsense("hellaswag", "Rowan/hellaswag", "MIT", 39_905, 10_042, word="ending"),
    Task(
        "easy_vqa",
        "image_text",
        ("accuracy",),
        licence="MIT",
        version=1,
        rows={"train": 38_575, "test": 9_673},
    ),
    Task(
        "easy_vqa_grids",
        "image_text",
        ("accuracy",),
        licence="MIT",
        version=1,
        rows={"train": 4_000, "validation": 600, "test": 600},
    ),
    Task(
        "emoji_noto",
        "image_generation",
        ("denoising_loss", "denoising_gain"),
        licence="Apache-2.0",
        version=1,
        rows={"train": 1_413, "validation": 147},
    ),
    Task(
        "pokemon_captions",
        "image_generation",
        ("denoising_loss", "denoising_gain"),
        licence="CC BY-NC-SA 4.0",
        version=1,
        rows={"train": 833},
        hub="lambdalabs/pokemon-blip-captions",
    ),
)

NAMED_TASKS: Mapping[str, Task] = MappingProxyType({task.name: task for task in _TASKS})
"""The known tasks by name."""


def choice_word_of(task: str) -> str:
    """Return the word for a choice in the prompts of a known task; "answer" for any other task."""
    known_task = NAMED_TASKS.get(task)
    return (known_task.choice_word if known_task else None) or "answer"


_Question = tuple[str, Sequence[str], int]


def as_choices(table: Table) -> Table:
    """Return the rows with `question`, `choices` and `answer`; those in no published layout as they are.

    Raises:
        DataError: If a row has no answer, as in test splits whose answers are kept back, or not the values
            of its layout.
    """
    first = table.rows[0]
    read = next((read for columns, read in _LAYOUTS.items() if first.keys() >= set(columns)), None)
    if "question" in first and any(isinstance(row.get("answer"), bool) for row in table.rows):  # boolq
        read = _true_or_false
    if read is None:
        return table
    rows: list[Row] = []
    for place, row in table.enumerate_rows():
        try:
            question, choices, answer = read(cast("dict[str, Any]", row))
        except DataError as error:
            raise DataError(f"{table.locate(place)}: {error}") from error
        if not 0 <= answer < len(choices):
            raise DataError(
                f"{table.locate(place)} has no answer: they are kept back in this split; "
                "use one that has them."
            )
        extra = {name: row[name] for name in ("id", "context") if name in row}
        rows.append({**extra, "question": question, "choices": list(choices), "answer": answer})
    return replace(table, rows=rows)


def _true_or_false(row: Mapping[str, Any]) -> _Question:
    if not isinstance(row["answer"], bool):
        raise _unlike(row, "answer", "true or false")
    return row["question"], ("false", "true"), int(row["answer"])


def _answer_key(row: Mapping[str, Any]) -> _Question:
    question = row["question_stem"] if "question_stem" in row else row["question"]
    match row["choices"]:
        case {"text": [*texts], "label": [*names]}:
            key = row["answerKey"]
            return question, texts, names.index(key) if key in names else -1
        case _:
            raise _unlike(row, "choices", "an object with the lists 'text' and 'label'")


def _solutions(row: Mapping[str, Any]) -> _Question:
    return row["goal"], (row["sol1"], row["sol2"]), _number(row, "label")


def _answer_letters(row: Mapping[str, Any]) -> _Question:
    return row["question"], (row["answerA"], row["answerB"], row["answerC"]), _number(row, "label") - 1


def _options(row: Mapping[str, Any]) -> _Question:
    return row["sentence"], (row["option1"], row["option2"]), _number(row, "answer") - 1


def _endings(row: Mapping[str, Any]) -> _Question:
    match row["endings"]:
        case [*endings]:
            return f"{row['activity_label']}: {row['ctx']}", endings, _number(row, "label")
        case _:
            raise _unlike(row, "endings", "a list of texts")


def _number(row: Mapping[str, Any], column: str) -> int:
    """Return an answer that is written as number or text; -1 stands for none."""
    if row[column] == "":
        return -1
    whole = re.fullmatch(r"(-?\d+)(\.0)?", str(row[column]))
    if whole is None:
        raise _unlike(row, column, "the number of a choice")
    return int(whole[1])


def _unlike(row: Mapping[str, Any], column: str, requirement: str) -> DataError:
    return DataError(
        f"the column '{column}' holds '{row[column]}' where {requirement} is needed; mend or remove the row."
    )


_LAYOUTS: Mapping[tuple[str, ...], Callable[[Mapping[str, Any]], _Question]] = {
    ("question", "choices", "answerKey"): _answer_key,  # arc_easy, arc_challenge
    ("question_stem", "choices", "answerKey"): _answer_key,  # openbookqa
    ("goal", "sol1", "sol2", "label"): _solutions,  # piqa
    ("question", "answerA", "answerB", "answerC", "label"): _answer_letters,  # social_i_qa
    ("sentence", "option1", "option2", "answer"): _options,  # winogrande
    ("activity_label", "ctx", "endings", "label"): _endings,  # hellaswag
}
"""By the columns that are read."""
