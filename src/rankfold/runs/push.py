"""Push an adapter to the Hugging Face hub, with a model card made from its manifest and its record."""

import json
import math
import re
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import huggingface_hub
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from rankfold.errors import HubError, OutputExistsError, SpecError
from rankfold.files import CONFIG_NAME, check_writable, whole_folder
from rankfold.models.names import EMBEDDED_MODELS
from rankfold.presets import discover
from rankfold.runs.record import RunRecord
from rankfold.runs.trained import TrainedAdapter, open_trained
from rankfold.store.adapter import spell_config
from rankfold.store.sharing import Family

CARD_NAME = "README.md"

_HUB_NAMES = {
    "minilm": "sentence-transformers/all-MiniLM-L6-v2",
    "smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct",
}
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_PIPELINES = {
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "CAUSAL_LM": "text-generation",
    "SEQ_2_SEQ_LM": "text-generation",
    "FEATURE_EXTRACTION": "feature-extraction",
}
_AUTO_CLASSES = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
}
_SHARES = ("accuracy", "exact_match")
_NORMAL_95 = 1.959964
_MOST_CLASSES = 30


def push_adapter(
    adapter: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    licence: str | None = None,
    out: str | Path | None = None,
) -> str:
    """Upload an adapter with its manifest and a model card to the Hugging Face hub.

    The repository is made if it is not there. The token is that of `hf auth login`, or of `HF_TOKEN`.

    Args:
        adapter: As for `open_adapter`; only the folder of a run has metrics for the card.
        repo_id: The repository, as `owner/name`.
        private: Make a new repository private.
        revision: The branch to upload to; it is made if it is not there. The main branch if None.
        licence: The licence of the adapter, as the hub names it: `apache-2.0`, `mit`, …
        out: Write what would be uploaded to this folder, and upload nothing.

    Returns:
        The address of the commit, or the folder.

    Raises:
        AdapterFileError: If there is no adapter, it is damaged, or a value is not finite.
        SpecError: If the name of the repository is none, or the folder cannot be written.
        OutputExistsError: If the folder has something in it.
        HubError: If the hub cannot be reached, or refuses.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise SpecError(
            f"'{repo_id}' is no repository of the hub ({error}); write it as owner/name."
        ) from error
    trained = open_trained(adapter)
    if out is not None:
        _write_whole(trained, repo_id, licence, Path(out))
        return str(out)
    with TemporaryDirectory(prefix="rankfold-push-") as scratch:
        write_repository(trained, repo_id, licence, Path(scratch))
        return _upload(Path(scratch), repo_id, private=private, revision=revision)


def _upload(folder: Path, repo_id: str, *, private: bool, revision: str | None) -> str:
    """Upload a folder, and return the address of the commit."""
    with _reaching_hub(repo_id):
        api = huggingface_hub.HfApi(library_name="rankfold")
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            revision=revision,
            commit_message="Upload the adapter with rankfold",
        )
        return str(commit.commit_url)


def write_repository(trained: TrainedAdapter, repo_id: str, licence: str | None, folder: Path) -> None:
    """Write the files of a repository: adapter, manifest and card, without paths of this machine."""
    base = _base_of(trained)
    manifest = trained.manifest
    if manifest is not None and manifest.base is not None and manifest.base.name not in EMBEDDED_MODELS:
        manifest = replace(manifest, base=replace(manifest.base, name=base, source=""))
    config = {**trained.saved.config_values, "base_model_name_or_path": base}
    public = replace(trained.saved, config=spell_config(config)).with_manifest(manifest)
    public.write(folder)
    (folder / CARD_NAME).write_text(str(model_card(trained, repo_id, licence)), "utf-8")


def _write_whole(trained: TrainedAdapter, repo_id: str, licence: str | None, out: Path) -> None:
    def check() -> None:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise OutputExistsError(f"'{out}' exists; choose another folder, or remove it first.")

    check()
    check_writable(out.resolve())
    with whole_folder(out, check=check, last=CONFIG_NAME) as work:
        write_repository(trained, repo_id, licence, work)


def model_card(trained: TrainedAdapter, repo_id: str, licence: str | None = None) -> ModelCard:
    """Return the model card of an adapter: method, data, metrics, licence, and how to load it.

    Args:
        trained: The adapter.
        repo_id: The repository that it will be in, as `owner/name`.
        licence: The licence of the adapter, as the hub names it.
    """
    base, task_type = _base_of(trained), _task_type(trained)
    method = Family.of(trained.saved).method
    data = ModelCardData(
        base_model=base if _HUB_ID.fullmatch(base) else None,
        datasets=_hub_data(trained.record),
        eval_results=_eval_results(trained) or None,
        library_name="peft",
        license=licence,
        metrics=list(_metric_names(trained)) or None,
        model_name=repo_id.rpartition("/")[2],
        pipeline_tag=_PIPELINES.get(task_type),
        tags=["rankfold", "low-rank", method.replace("_", "-")],
    )
    parts = [f"# {repo_id.rpartition('/')[2]}", _introduction(trained, method, base), _facts(trained, method)]
    parts += [part for part in (_results(trained), _classes(trained)) if part]
    parts += [_how_to_load(repo_id, base, task_type, trained)]
    text = "\n\n".join(parts)
    metadata = cast("str", cast("Any", data).to_yaml())
    return ModelCard(f"---\n{metadata}\n---\n\n{text}\n")


def _base_of(trained: TrainedAdapter) -> str:
    """Return the base model by the name that the hub knows; of a folder of this machine its last part."""
    manifest, config = trained.manifest, trained.saved.config_values
    known = None if manifest is None or manifest.base is None else manifest.base.name
    name = known or str(config.get("base_model_name_or_path") or "")
    if name in _HUB_NAMES:
        return _HUB_NAMES[name]
    is_path = Path(name).expanduser().exists() or not _HUB_ID.fullmatch(name)
    return Path(name).name if is_path else name


def _task_type(trained: TrainedAdapter) -> str:
    return str(trained.saved.config_values.get("task_type"))


def _hub_data(record: RunRecord | None) -> list[str] | None:
    """Return the hub's name of the data, if it is from there."""
    name = None if record is None else record.request.data
    is_hub = name is not None and _HUB_ID.fullmatch(name) is not None and not Path(name).exists()
    return [name] if name is not None and is_hub else None


def _metric_names(trained: TrainedAdapter) -> Sequence[str]:
    task = None if trained.manifest is None else trained.manifest.task
    return () if task is None else task.metrics


def _eval_results(trained: TrainedAdapter) -> list[EvalResult]:
    task = None if trained.manifest is None else trained.manifest.task
    if task is None:
        return []
    pipeline = _PIPELINES.get(_task_type(trained), "other")
    data = _hub_data(trained.record)
    return [
        EvalResult(
            task_type=pipeline,
            dataset_type=data[0] if data else task.name,
            dataset_name=task.name,
            dataset_split="validation",
            metric_type=name,
            metric_name=name.replace("_", " "),
            metric_value=round(value, 6),
        )
        for name, value in _values(trained).items()
    ]


def _values(trained: TrainedAdapter) -> Mapping[str, float]:
    """Return the metrics of the run; where its record is gone, those that the manifest has."""
    if trained.record is not None:
        return {name: value for name, value in trained.record.metrics.items() if math.isfinite(value)}
    task = None if trained.manifest is None else trained.manifest.task
    return {} if task is None else task.results


def _introduction(trained: TrainedAdapter, method: str, base: str) -> str:
    preset = discover().get(method)
    about = f" {preset.summary.rstrip('.')}." if preset is not None else ""
    task = "" if trained.manifest is None or trained.manifest.task is None else trained.manifest.task.name
    learned = f", trained on *{task}*" if task else ""
    return (
        f"A low-rank adapter (`{method}`) of [{base}](https://huggingface.co/{base}){learned}.{about}"
        if _HUB_ID.fullmatch(base)
        else f"A low-rank adapter (`{method}`) of *{base}*{learned}.{about}"
    )


def _facts(trained: TrainedAdapter, method: str) -> str:
    saved, record, manifest = trained.saved, trained.record, trained.manifest
    rows = {"Method": f"`{method}`", "Bytes": f"{saved.learned_bytes:,} learned"}
    if manifest is not None and manifest.task is not None:
        rows |= {"Task": f"{manifest.task.name} ({manifest.task.kind})"}
    if manifest is not None and manifest.base is not None and manifest.base.sha256:
        rows |= {"Base weights (SHA-256)": f"`{manifest.base.sha256[:16]}…`"}
    if record is not None:
        rows |= _facts_of_run(record)
    return _table(("", ""), rows.items())


def _facts_of_run(record: RunRecord) -> dict[str, str]:
    options = ", ".join(f"{name}={json.dumps(value)}" for name, value in record.method.options.items())
    rows = ", ".join(f"{count:,} {split}" for split, count in record.data.rows.items())
    training = record.training
    return {
        **({"Options": f"`{options}`"} if options else {}),
        "Parameters": f"{record.parameters.stored:,} in the adapter, {record.parameters.head:,} in the head",
        "Rows": f"{rows} (SHA-256 of the data `{record.data.sha256[:16]}…`)",
        **({"Licence of the data": record.task.licence} if record.task.licence else {}),
        "Training": f"{training.steps:,} steps of {training.batch_size} rows, learning rate "
        f"{training.learning_rate:g}, seed {training.seed}, at most {training.max_length} tokens",
        "Versions": ", ".join(f"{name} {text}" for name, text in record.versions.items()),
    }


def _results(trained: TrainedAdapter) -> str | None:
    """Return the metrics, and of a recorded run their intervals and baselines; None if no metric is known."""
    record, values = trained.record, _values(trained)
    if not values:
        return None
    if record is None:
        return "## Results\n\n" + _table(
            ("metric", "value"), [(name, f"{value:.4f}") for name, value in values.items()]
        )
    count = len(record.predictions)
    rows = [(name, f"{value:.4f}", _interval(name, value, count)) for name, value in record.metrics.items()]
    rows += [(f"{name} (a baseline)", f"{value:.4f}", "") for name, value in record.baselines.items()]
    return f"## Results\n\nOn {record.data.rows.get('validation', count):,} held-out rows.\n\n" + _table(
        ("metric", "value", "95 % interval"), rows
    )


def _interval(name: str, value: float, count: int) -> str:
    """Return Wilson's interval of a share of right answers; nothing for other metrics."""
    if name not in _SHARES or not count or not 0 <= value <= 1:
        return ""
    square = _NORMAL_95**2 / count
    centre = (value + square / 2) / (1 + square)
    half = math.sqrt(square * (value * (1 - value) + square / 4)) / (1 + square)
    return f"{max(0.0, centre - half):.4f} to {min(1.0, centre + half):.4f}"


def _classes(trained: TrainedAdapter) -> str | None:
    names = trained.label_names
    if not names:
        return None
    quoted = (" ".join(name.replace("`", "'").split()) for name in names[:_MOST_CLASSES])
    shown = ", ".join(f"`{name}`" for name in quoted)
    more = f" and {len(names) - _MOST_CLASSES} more" if len(names) > _MOST_CLASSES else ""
    return f"## Classes\n\n{shown}{more}"


def _how_to_load(repo_id: str, base: str, task_type: str, trained: TrainedAdapter) -> str:
    auto = _AUTO_CLASSES.get(task_type, "AutoModel")
    labels = trained.label_names
    head = f", num_labels={len(labels) if labels else 1}" if task_type in ("SEQ_CLS", "TOKEN_CLS") else ""
    return f"""## How to load

With [rankfold](https://pypi.org/project/rankfold), which finds the base model and gives answers:

```python
import rankfold
from huggingface_hub import snapshot_download

model = rankfold.load(snapshot_download("{repo_id}"))
model.predict(["a text"])
```

With PEFT alone (rankfold has to be installed, but need not be imported):

```python
from peft import PeftModel
from transformers import {auto}

base = {auto}.from_pretrained("{base}"{head})
model = PeftModel.from_pretrained(base, "{repo_id}")
```"""


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


@contextmanager
def _reaching_hub(repo_id: str) -> Generator[None]:
    """Turn the errors of the hub into one sentence."""
    try:
        yield
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else f"status {status}"
        raise HubError(
            f"the hub refuses '{repo_id}' ({reason}); log in with `hf auth login`, and check the name "
            "and your rights."
        ) from error
    except Exception as error:  # the library's HTTP client has errors of its own
        reason = " ".join(str(error).split()).rstrip(".")
        raise HubError(
            f"the hub cannot be reached for '{repo_id}' ({reason}); check the network, or write the files "
            "with --out."
        ) from error
