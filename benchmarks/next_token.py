"""An adapter exported for llama.cpp says the same next token there as in transformers.

SmolLM2, relayed factors on every linear layer of its blocks, random so that most next tokens change; fifty
beginnings of news articles. llama.cpp runs the packaged model twice: as it is, quantised to 4 bits, whose
products it rounds in its own way, and widened to float32, where only the export could differ.

    pip install llama-cpp-python
    python benchmarks/next_token.py --out benchmarks/records/next_token.json
"""

import argparse
import ctypes
import json
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import llama_cpp
import peft
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import rankfold
from rankfold.models.base import resolve_model
from rankfold.tasks.embedded import read_bbc_news

PROMPTS, WORDS = 50, 24
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def trained(location: str, strength: float, folder: Path) -> Any:
    """Return SmolLM2 with an adapter that changes what it says, and save the adapter."""
    model = AutoModelForCausalLM.from_pretrained(location, dtype=torch.float32)
    options: dict[str, Any] = {"r": 8, "k": 4, "target_modules": TARGETS, "task_type": "CAUSAL_LM"}
    config = rankfold.config("relayed_lora", init_weights=False, rank_pattern={"down_proj": 4}, **options)
    adapted: Any = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.mul_(strength)
    adapted.save_pretrained(folder)
    return adapted


@torch.inference_mode()
def by_transformers(model: Any, prompts: list[list[int]]) -> list[int]:
    """Return the likeliest next token of each prompt."""
    return [int(model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()) for tokens in prompts]


def by_llama_cpp(model: Path, prompts: list[list[int]], adapter: Path | None) -> list[int]:
    """Return the same from llama.cpp."""
    lora = None if adapter is None else str(adapter)
    program = llama_cpp.Llama(
        str(model),
        lora_path=lora,
        n_ctx=256,
        n_threads=1,
        n_threads_batch=1,
        logits_all=True,
        verbose=False,
        use_mmap=False,
    )
    answers: list[int] = []
    for tokens in prompts:
        program.reset()
        program.eval(tokens)
        answers.append(int(program.scores[len(tokens) - 1].argmax()))
    program.close()
    return answers


def widened(model: Path, folder: Path) -> Path:
    """Return the model with every weight in float32, as llama.cpp itself reads the quantised ones."""
    wide = folder / "model-f32.gguf"
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_ALL_F32
    params.allow_requantize = True
    params.nthread = 1
    if llama_cpp.llama_model_quantize(str(model).encode(), str(wide).encode(), ctypes.byref(params)):
        raise RuntimeError("llama.cpp did not widen the model.")
    return wide


def agreement(one: list[int], other: list[int]) -> int:
    """Return on how many prompts two programs say the same."""
    return sum(a == b for a, b in zip(one, other, strict=True))


def main() -> None:
    """Export, ask both programs, print and write down how often they agree."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--strength", type=float, default=1.0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    base = resolve_model("smollm2")
    tokenizer = AutoTokenizer.from_pretrained(base.loadable())
    rows = read_bbc_news()["test"].rows[:PROMPTS]
    prompts = [tokenizer(" ".join(str(row["text"]).split()[:WORDS]))["input_ids"] for row in rows]
    plain = by_transformers(
        AutoModelForCausalLM.from_pretrained(base.loadable(), dtype=torch.float32), prompts
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        expected = by_transformers(trained(base.loadable(), arguments.strength, folder / "adapter"), prompts)
        rankfold.export_lora(folder / "adapter", folder / "out", to="gguf", model="smollm2")
        adapter, wide = folder / "out" / "adapter.gguf", widened(base.origin, folder)
        results = {
            "changed_by_adapter": PROMPTS - agreement(plain, expected),
            "same_in_float32": agreement(expected, by_llama_cpp(wide, prompts, adapter)),
            "same_quantised": agreement(expected, by_llama_cpp(base.origin, prompts, adapter)),
            "same_in_float32_without_adapter": agreement(plain, by_llama_cpp(wide, prompts, None)),
            "same_quantised_without_adapter": agreement(plain, by_llama_cpp(base.origin, prompts, None)),
        }
    for name, count in results.items():
        print(f"{name:34} {count} of {PROMPTS}")
    if arguments.out is not None:
        record = {
            "command": ["python", *sys.argv],
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {each.__name__: each.__version__ for each in (rankfold, torch, peft, llama_cpp)},
            "model": base.source,
            "prompts": PROMPTS,
            "strength": arguments.strength,
            "prompts_with": results,
        }
        arguments.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
